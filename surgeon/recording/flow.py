"""The data flow between the modules of a recorded run, reduced to what a person can look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import fx

from surgeon.recording.record import Recording

INPUT, OUTPUT = "inputs", "outputs"


@dataclass(frozen=True)
class Flow:
    """A directed acyclic graph of boxes.

    Attributes:
        boxes: in the order of execution; the first is the inputs, the last the outputs.
        edges: pairs (from, to); an edge that a longer path implies is left out.
        level: the length of the longest path from the inputs.
    """

    boxes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    level: Mapping[str, int]


def data_flow(recording: Recording, boxed: Iterable[str]) -> Flow:
    """Collapse a recorded graph to some of its modules.

    Args:
        recording: the run; what autograd does inside the forward is left out.
        boxed: qualified names of the modules to show; all ops outside them become part of the edges.

    Returns:
        The flow; a module that is called several times is one box.
    """
    names = sorted(boxed, key=len, reverse=True)
    order: dict[str, int] = {INPUT: 0}
    edges: dict[tuple[str, str], None] = {}
    sources: dict[fx.Node, frozenset[str]] = {}
    for node in recording.graph.nodes:
        before = frozenset[str]().union(*(sources.get(part, frozenset()) for part in node.all_input_nodes))
        if node.op == "output":
            edges |= {(source, OUTPUT): None for source in before}
        elif node.op == "placeholder":
            sources[node] = frozenset({INPUT})
        elif not node.meta["backward"]:
            box = _box_of(node.meta["owner"], names)
            if box is None or not node.meta["activation"]:
                sources[node] = before
                continue
            order.setdefault(box, len(order))
            edges |= {(source, box): None for source in before if source != box and order[source] < order[box]}
            sources[node] = frozenset({box})
    order[OUTPUT] = len(order)
    kept = _without_shortcuts(list(edges), order)
    return Flow(tuple(order), tuple(kept), _levels(order, kept))


def _box_of(owner: str, names: list[str]) -> str | None:
    """The innermost boxed module that an op runs in."""
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


def _levels(order: Mapping[str, int], edges: list[tuple[str, str]]) -> dict[str, int]:
    level = dict.fromkeys(order, 0)
    for box in sorted(order, key=order.__getitem__):
        level[box] = max((level[source] + 1 for source, target in edges if target == box), default=0)
    level[OUTPUT] = 1 + max(depth for box, depth in level.items() if box != OUTPUT)
    return level
