"""Tensors of modules that look alike, as the layers of a deep network do: they are judged together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from surgeon.recording.calls import Calls
from surgeon.support.trees import real_leaves

T = TypeVar("T")

AT_A_TIME = 64
"""Tensors that are judged at once."""


@dataclass(frozen=True, eq=False)
class Alike(Generic[T]):
    """One tensor of each of several modules; what is asked of a second one is found out for the next ones as well.

    A question that one alone raises, about a representation that was fitted to it, costs no more than it would.

    Attributes:
        find: returns that of the module with some number, in all runs; each is asked for once.
        count: of these modules.
    """

    find: Callable[[int], T]
    count: int
    _found: dict[int, T] = field(default_factory=dict)
    _answers: dict[Hashable, dict[int, float]] = field(default_factory=dict)

    def tensor(self, number: int) -> T:
        """Return one of them."""
        if number not in self._found:
            self._found[number] = self.find(number)
        return self._found[number]

    def answer(self, question: Hashable, number: int, find: Callable[[list[T]], list[float]]) -> float:
        """Return the answer for one of them; ``find`` returns those for several."""
        known = self._answers.setdefault(question, {})
        if number not in known:
            end = min(self.count, number + AT_A_TIME) if known else number + 1
            asked = [each for each in range(number, end) if each not in known]
            known.update(zip(asked, find([self.tensor(each) for each in asked]), strict=True))
        return known[number]


def called_alike(calls: Mapping[str, Iterable[Calls]]) -> dict[str, tuple[list[str], int]]:
    """Return of each module those that are called as it is, tensors of the same shapes in every run, and its number.

    Args:
        calls: of each module those of every run.
    """
    found: dict[Hashable, list[str]] = {}
    for name, runs in calls.items():
        shapes = tuple(tuple((p, t.shape) for call in run for p, t in real_leaves(call).items()) for run in runs)
        found.setdefault(shapes, []).append(name)
    return {name: (names, number) for names in found.values() for number, name in enumerate(names)}
