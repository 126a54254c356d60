"""Give single entries of a network's tensors other values before it is trained, as its task asks, and list them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, TaskError


@dataclass(frozen=True)
class Change:
    """One entry that gets another value.

    Attributes:
        tensor: its name in the state dict.
        index: of the entry; empty for a tensor without axes.
        label: what the entry is called ("H").
        before, after: exactly the values that the tensor holds.
        trained: whether the training may change it further.
    """

    tensor: str
    index: tuple[int, ...]
    label: str
    before: float
    after: float
    trained: bool = False


@dataclass(frozen=True)
class Adjustments:
    """What a task changes before a network is trained, so that training, certificate and files all see the same.

    Attributes:
        what: in words ("reference energies").
        why: how they were found, as a sentence without a full stop.
        changes: entries of tensors of the network.
        arguments: what is added to the task's own arguments, where the network has no place for it.
    """

    what: str
    why: str
    changes: tuple[Change, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changes or self.arguments)

    @property
    def sentence(self) -> str:
        """What is changed, and why."""
        tensors = list(dict.fromkeys(change.tensor for change in self.changes))
        count = len(self.changes)
        entries, were = ("1 entry", "was") if count == 1 else (f"{count} entries", "were")
        counted = f"{entries} of {', '.join(tensors)} {were} changed" if tensors else ""
        added = "; the task gets " + ", ".join(self.arguments) if self.arguments else ""
        return f"{self.what}: {self.why}{'; ' * bool(counted)}{counted}{added}"


NOTHING = Adjustments("", "")
"""That it was decided to change nothing."""


def changes_of(
    model: nn.Module, tensor: str, values: Mapping[tuple[int, ...], float], labels: Mapping[tuple[int, ...], str]
) -> tuple[Change, ...]:
    """Describe new values of a tensor's entries, rounded to its dtype; those that stay the same are left out.

    Args:
        model: only read.
        tensor: a name in its state dict.
        values: index to new value.
        labels: index to what the entry is called.
    """
    held, trained = model.state_dict()[tensor], _is_trained(model, tensor)
    made = (
        Change(tensor, index, labels[index], held[index].item(), held.new_tensor(value).item(), trained)
        for index, value in values.items()
    )
    return tuple(change for change in made if change.before != change.after)


def _is_trained(model: nn.Module, tensor: str) -> bool:
    parameter = dict(model.named_parameters(remove_duplicate=False)).get(tensor)
    return parameter is not None and parameter.requires_grad


@torch.no_grad()
def adjust(model: nn.Module, adjustments: Adjustments, where: str = "the network") -> None:
    """Make the listed changes in place, all or none.

    Raises:
        CheckpointError: if an entry is not there, or does not hold the value from which it is to be changed.
    """
    state = model.state_dict()
    wrong = list(_others(adjustments.changes, state, "before"))
    if wrong:
        raise CheckpointError(
            f"expected {where} as it was when its {adjustments.what} were changed, but {wrong[0]}: "
            "it is another checkpoint, or the list of changes is damaged"
        )
    for change in adjustments.changes:
        state[change.tensor][change.index] = change.after


def require_allowed(adjustments: Adjustments, allowed: Collection[str]) -> None:
    """Check that a task changes only what it says it may.

    Raises:
        TaskError: naming another tensor.
    """
    for sentence in not_allowed(adjustments.changes, allowed):
        raise TaskError(f"{sentence}: name it in `adjustable` of the task")


def not_allowed(changes: Iterable[Change], allowed: Collection[str]) -> Iterator[str]:
    """Name the changes of tensors that the task may not adjust."""
    for name in dict.fromkeys(change.tensor for change in changes):
        if name not in allowed:
            yield f"{name} was changed, and the task may adjust {', '.join(allowed) or 'nothing'} only"


def other_values(
    changes: Collection[Change], original: Mapping[str, Tensor] | None, result: Mapping[str, Tensor]
) -> list[str]:
    """Compare a list of changes with the tensors of the original, if they are known, and of the result."""
    found = [] if original is None else [f"original: {text}" for text in _others(changes, original, "before")]
    fixed = [change for change in changes if not change.trained]
    return found + [f"result: {text}" for text in _others(fixed, result, "after")]


def _others(changes: Iterable[Change], tensors: Mapping[str, Tensor], when: str) -> Iterator[str]:
    for change in changes:
        name, listed = f"{change.tensor}{list(change.index)}", getattr(change, when)
        try:
            held = tensors[change.tensor][change.index].item()
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError):
            yield f"there is no entry {name}"
            continue
        if held != listed:
            yield f"{name} ({change.label}) is {held!r}, listed is {listed!r}"
