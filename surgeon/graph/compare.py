"""Node-by-node comparison of two recorded graphs."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import fx


def _signature(graph: fx.Graph) -> list[tuple[Any, ...]]:
    index = {node: position for position, node in enumerate(graph.nodes)}

    def argument(value: Any) -> Any:
        return f"%{index[value]}" if isinstance(value, fx.Node) else value

    rows = []
    for node in graph.nodes:
        arguments = fx.node.map_aggregate((node.args, node.kwargs), argument)
        meta = (node.meta.get(key) for key in ("owner", "call_index", "shape", "dtype"))
        rows.append((node.op, str(node.target), repr(arguments), *(repr(value) for value in meta)))
    return rows


def compare_graphs(before: fx.Graph, after: fx.Graph, limit: int = 5) -> list[str]:
    """Return the first ``limit`` differences of two recorded graphs in words; empty if they agree node by node.

    Compared are op, target, arguments, owning module, call index, shape and dtype; names of nodes do not matter.
    """
    left, right = _signature(before), _signature(after)
    differences = [
        f"node {position}: expected {a[1]} in {a[3]} with {a[2]}, got {b[1]} in {b[3]} with {b[2]}"
        for position, (a, b) in enumerate(zip(left, right, strict=False))
        if a != b
    ]
    if len(left) != len(right):
        differences.insert(0, f"expected {len(left)} nodes, got {len(right)}")
    return differences[:limit]


def graph_hash(graph: fx.Graph) -> str:
    """Return the sha256 of a recorded graph; equal graphs in the sense of :func:`compare_graphs` have equal hashes."""
    return hashlib.sha256(repr(_signature(graph)).encode()).hexdigest()
