"""Who uses an op's weights in a recorded run: the op itself, a caller behind its back, or another op tied to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgeon.plan import Coverage, Site
from surgeon.recording.provenance import bypassed_parameters, runs_inside, used_parameters
from surgeon.recording.record import Recording
from surgeon.registry import Refusal
from surgeon.support.modules import own_weight


class Ties:
    """Which modules of a model own the same parameters, or memory of them: a tie needs no run to be seen.

    Made once for all ops of a model, since it goes through every module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._owners: dict[int, list[str]] = {}
        parameters: dict[int, nn.Parameter] = {}
        for name, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                self._owners.setdefault(id(parameter), []).append(name)
                parameters[id(parameter)] = parameter
        self._near = _near(parameters.values())

    def of(self, name: str, parameter: str | None = None) -> set[str]:
        """Return the modules outside ``name`` that own one of its parameters too.

        Args:
            name: of a module in it; its further names do not count.
            parameter: qualified relative to the module; default all of its parameters.
        """
        op = self.model.get_submodule(name)
        wanted = op.parameters() if parameter is None else [own_weight(op, parameter)]
        alike = {id(other) for one in wanted for other in self._near.get(id(one), (one,)) if _same(one, other)}
        owners = {owner for key in alike for owner in self._owners[key]}
        inside = set(op.modules())
        return {owner for owner in owners if self.model.get_submodule(owner) not in inside}


def _near(parameters: Iterable[nn.Parameter]) -> dict[int, list[nn.Parameter]]:
    """Return, by identity, for each parameter those whose memory runs into each other's; of the rest nothing."""
    real = [parameter for parameter in parameters if not parameter.is_meta and parameter.numel()]
    runs: list[list[nn.Parameter]] = []
    device, reached = torch.device("meta"), 0
    for parameter in sorted(real, key=lambda each: (str(each.device), *_extent(each))):
        start, end = _extent(parameter)
        if parameter.device == device and start < reached:
            runs[-1].append(parameter)
        else:
            runs.append([parameter])
            device, reached = parameter.device, 0
        reached = max(reached, end)
    return {id(each): run for run in runs if len(run) > 1 for each in run}


def _same(one: nn.Parameter, other: nn.Parameter) -> bool:
    """Tell whether two parameters are one object, or look at the same memory."""
    if one is other or one.is_meta or other.is_meta or one.device != other.device:
        return one is other
    (start, end), (from_, to) = _extent(one), _extent(other)
    return max(start, from_) < min(end, to)


def _extent(parameter: nn.Parameter) -> tuple[int, int]:
    """Return where a parameter's numbers begin and end in memory, in bytes."""
    start = parameter.data_ptr()
    if not parameter.numel():
        return start, start
    last = sum((size - 1) * stride for size, stride in zip(parameter.shape, parameter.stride(), strict=True))
    return start, start + (last + 1) * parameter.element_size()


class WeightUsage:
    """Ownership and use of a model's parameters, by qualified module names."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self._model, self.ties = model, Ties(model)
        self._recording = recording
        self.bypassed = bypassed_parameters(recording)
        self._used = used_parameters(recording)
        self._first_names = {id(parameter): name for name, parameter in model.named_parameters()}

    def refusal(self, name: str) -> Refusal | None:
        """Return why a branch at ``name`` would not act where its weights act; None if it would."""
        tied = {name, *self.ties.of(name)}
        found = set().union(*(self.bypassed.get(owner, set()) for owner in tied))
        outside = {user for user in found if not any(runs_inside(self._recording, user, owner) for owner in tied)}
        if outside:
            users = ", ".join(sorted(user or "the model itself" for user in outside))
            return Refusal(f"its weights are also used directly by {users}, where a branch cannot act", "bypassed")
        names = (self._first_names[id(parameter)] for parameter in self._model.get_submodule(name).parameters())
        users_of_own = set().union(*(self._used.get(parameter, set()) for parameter in names))
        if any(runs_inside(self._recording, user, name) for user in users_of_own):
            return None
        coverage: Coverage = "bypassed" if name in self.bypassed else "unused"
        return Refusal("does not use its own weights in the recorded forward", coverage)


def further_arguments(site: Site, calls: Sequence[Mapping[str, Any]]) -> str:
    """Name what an op was given beside the features of a site; empty if nothing.

    Args:
        calls: arguments by name of each recorded call.
    """
    given = {name: value for call in calls for name, value in call.items() if not is_nothing(value)}
    names = [name for name in given if name != site.argument]
    names += [f"the rest of {site.argument}"] if site.path_in else []
    return f"{', '.join(names)} {'acts' if len(names) == 1 else 'act'} as on the sample batch" if names else ""


def is_nothing(value: Any) -> bool:
    """Tell whether an argument says nothing: None, or an empty container."""
    return value is None or (isinstance(value, (tuple, list, dict)) and not value)
