"""The way of the data through the modules of a recorded run."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from surgeon.plan import Plan
from surgeon.recording.record import Recording

INPUT, OUTPUT = "inputs", "outputs"

MOST = 60
"""Boxes, at most, where modules are told apart; of more than these, modules around them are one box each."""


@dataclass(frozen=True)
class Flow:
    """A directed acyclic graph of boxes.

    Attributes:
        boxes: in the order of execution; the first is the inputs, the last the outputs.
        edges: pairs (from, to) of boxes.
    """

    boxes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]

    @functools.cached_property
    def level(self) -> Mapping[str, int]:
        """The length of the longest path from the inputs to each box; the outputs are below all others."""
        level = dict.fromkeys(self.boxes, 0)
        for box in self.boxes:
            level[box] = max((level[source] + 1 for source, target in self.edges if target == box), default=0)
        level[OUTPUT] = 1 + max(depth for box, depth in level.items() if box != OUTPUT)
        return level


def boxed_modules(plan: Plan) -> dict[str, str]:
    """Return the modules to show, sites and owners of other parameters, with what is said of those without a site.

    Where they are more than ``MOST`` they are folded: modules that contain them take their places.
    """
    notes = {site.name: "" for site in plan.sites}
    for entry in plan.audit:
        owner = entry.parameter.rpartition(".")[0]
        related = any(_contains(owner, site.name) or _contains(site.name, owner) for site in plan.sites if site.name)
        if entry.coverage != "site" and not related and owner and owner not in notes:
            notes[owner] = entry.coverage
    depth = max((name.count(".") + 1 for name in notes), default=0)
    while len(notes) > MOST and depth > 1:
        depth -= 1
        folded: dict[str, dict[str, None]] = {}
        for name, note in notes.items():
            folded.setdefault(".".join(name.split(".")[:depth]), {})[note] = None
        notes = {name: ", ".join(filter(None, parts)) for name, parts in folded.items()}
    return notes


def _contains(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def data_flow(recording: Recording, boxed: Iterable[str]) -> Flow:
    """Collapse a recorded graph to some of its modules.

    Args:
        recording: the run; what autograd does inside the forward is left out.
        boxed: qualified names of the modules to show; all ops outside them become part of the edges.

    Returns:
        The flow; a module that is called several times is one box, and edges that longer paths imply are left out.
    """
    names = sorted(boxed, key=len, reverse=True)
    order: dict[str, int] = {INPUT: 0}
    edges: dict[tuple[str, str], None] = {}
    sources: dict[fx.Node, frozenset[str]] = {}
    for node in recording.graph.nodes:
        before = frozenset[str]().union(*(sources.get(part, frozenset()) for part in node.meta["sources"]))
        if node.op == "output":
            edges |= {(source, OUTPUT): None for source in before}
        elif node.op == "placeholder":
            sources[node] = frozenset({INPUT})
        elif not node.meta["backward"]:
            box = box_of(node.meta["owner"], names)
            if box is None or not node.meta["activation"]:
                sources[node] = before
                continue
            order.setdefault(box, len(order))
            edges |= {(source, box): None for source in before if source != box and order[source] < order[box]}
            sources[node] = frozenset({box})
    order[OUTPUT] = len(order)
    kept = _without_shortcuts(list(edges), order)
    return Flow(tuple(order), tuple(kept))


def box_of(owner: str, names: Sequence[str]) -> str | None:
    """Return the innermost module that an op runs in, of names that are sorted by length, the longest first."""
    return next((name for name in names if owner == name or owner.startswith(f"{name}.") or not name), None)


def _without_shortcuts(edges: list[tuple[str, str]], order: Mapping[str, int]) -> list[tuple[str, str]]:
    """Transitive reduction of an acyclic graph."""
    after: dict[str, set[str]] = {box: set() for box in order}
    for source, target in edges:
        after[source].add(target)
    reach: dict[str, set[str]] = {}
    for box in sorted(order, key=order.__getitem__, reverse=True):
        reach[box] = after[box].union(*(reach[target] for target in after[box]))
    return [
        (source, target)
        for source, target in edges
        if not any(target in reach[other] for other in after[source] if other != target)
    ]
