"""Who uses an op's weights in a recorded run: the op itself, a caller behind its back, or another op tied to it."""

from __future__ import annotations

from torch import nn

from surgeon.graph import Recording, bypassed_parameters, used_parameters
from surgeon.graph.provenance import runs_inside
from surgeon.types import Coverage


class WeightUsage:
    """Ownership and use of a model's parameters, by qualified module names."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self._model = model
        self._recording = recording
        self.bypassed = bypassed_parameters(recording)
        self._used = used_parameters(recording)
        self._first_names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._owners: dict[int, list[str]] = {}
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(name)

    def tied_to(self, name: str) -> set[str]:
        """Return the modules outside ``name`` that own one of its parameters too."""
        parameters = self._model.get_submodule(name).parameters()
        owners = {owner for parameter in parameters for owner in self._owners[id(parameter)]}
        return {owner for owner in owners if not _inside(owner, name)}

    def complaint(self, name: str) -> str:
        """Return why a branch at ``name`` would not act where its weights act; empty if it would."""
        tied = {name, *self.tied_to(name)}
        found = set().union(*(self.bypassed.get(owner, set()) for owner in tied))
        outside = {user for user in found if not any(runs_inside(self._recording, user, owner) for owner in tied)}
        if outside:
            users = ", ".join(sorted(user or "the model itself" for user in outside))
            return f"its weights are also used directly by {users}, where a branch cannot act"
        names = (self._first_names[id(parameter)] for parameter in self._model.get_submodule(name).parameters())
        users_of_own = set().union(*(self._used.get(parameter, set()) for parameter in names))
        if not any(runs_inside(self._recording, user, name) for user in users_of_own):
            return "does not use its own weights in the recorded forward"
        return ""

    def coverage(self, name: str) -> Coverage:
        """Return the audit's class of a module about which there is a complaint."""
        return "unused" if "does not use" in self.complaint(name) and name not in self.bypassed else "bypassed"


def _inside(name: str, ancestor: str) -> bool:
    return not ancestor or name == ancestor or name.startswith(f"{ancestor}.")
