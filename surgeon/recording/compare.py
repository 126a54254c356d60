"""Node-by-node comparison of two recorded graphs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from surgeon.recording.record import Recording

_CONSTANT = "_constant_"


def _signature(graph: fx.Graph) -> list[tuple[Any, ...]]:
    index = {node: position for position, node in enumerate(graph.nodes)}

    def argument(value: Any) -> Any:
        if isinstance(value, torch.Generator):  # made anew in each run, and shown by its address
            return f"a generator on {value.device}"
        return f"%{index[value]}" if isinstance(value, fx.Node) else value

    rows, constants = [], dict[str, str]()
    for node in graph.nodes:
        target = str(node.target)
        if target.startswith(_CONSTANT):  # numbered as they were met, those of ops that were left out included
            target = constants.setdefault(target, f"{_CONSTANT}{len(constants)}")
        arguments = fx.node.map_aggregate((node.args, node.kwargs), argument)
        meta = (node.meta.get(key) for key in ("owner", "call_index", "shape", "dtype"))
        rows.append((node.op, target, repr(arguments), *(repr(value) for value in meta)))
    return rows


def forward_part(graph: fx.Graph) -> fx.Graph:
    """Return a copy without what autograd ran inside the forward, and without what depends on that."""
    return _filtered(graph, lambda node: not node.meta["backward"], {})


_aten = torch.ops.aten
_SUMS = {_aten.add, _aten.addmm, _aten.baddbmm}
_VIEWS = {
    *(_aten.view, _aten._unsafe_view, _aten.clone, _aten.permute, _aten.transpose, _aten.t, _aten.expand),
    *(_aten.squeeze, _aten.unsqueeze, _aten.alias, _aten.view_as_real, _aten.view_as_complex),
}
_PASS_ON = _SUMS | _VIEWS


def erase_branches(graph: fx.Graph, child: str) -> tuple[fx.Graph, Counter[str]]:
    """Take the ops of branches out of the forward part of a recorded graph.

    Args:
        graph: recorded with branches in place.
        child: name of the child module that holds the branches of an op.

    Returns:
        A copy without the ops that ran inside branches, whose results are replaced by what they were added to; and per
        branch (qualified name) the number of times it ran.
    """
    inside = [node for node in graph.nodes if node.op != "output" and child in node.meta["owner"].split(".")]
    inside = [node for node in inside if not node.meta["backward"]]
    calls = {(node.meta["owner"], node.meta["call_index"]) for node in inside}
    # output + what the branch adds is the last sum of a branch; before and after it the output may be reshaped
    replaced = {node: node.args[0] for node in inside if _passes_on(node)}
    dropped = {node for node in inside if node not in replaced}
    dropped |= {node for node in graph.nodes if node.op == "get_attr" and child in str(node.target).split(".")}
    erased = _filtered(graph, lambda node: not node.meta["backward"] and node not in dropped, replaced)
    return erased, Counter(name for name, _ in calls)


def _passes_on(node: fx.Node) -> bool:
    if node.target is _aten.mul.Scalar:  # times 1: so vmap writes the first summand of addmm
        return bool(node.args[1] == 1)
    return getattr(node.target, "overloadpacket", None) in _PASS_ON


def _filtered(graph: fx.Graph, keep: Callable[[fx.Node], bool], replaced: Mapping[fx.Node, Any]) -> fx.Graph:
    """Copy the nodes to keep that depend on kept ones only; a replaced node becomes another one."""
    result, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if node.op == "output":
            result.output(tuple(copies[part] for part in node.all_input_nodes if part in copies))
        elif node in replaced:
            if replaced[node] in copies:
                copies[node] = copies[replaced[node]]
        elif keep(node) and all(part in copies for part in node.all_input_nodes):
            copies[node] = result.node_copy(node, copies.__getitem__)
    return result


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


class Constant(NamedTuple):
    """A tensor that a run reads and that is neither input, parameter, buffer nor computed.

    Attributes:
        tensor: its values after the run.
        read_by: op and module that read it first, in words.
    """

    tensor: Tensor
    read_by: str


def constants_of(recording: Recording) -> dict[str, Constant]:
    """Return the constants that a run reads, in the order in which it reads them; so equal graphs have equal names."""
    read = [node for node in recording.graph.nodes if node.op == "get_attr" and str(node.target).startswith(_CONSTANT)]
    return {f"{_CONSTANT}{n}": Constant(recording.values[node], _reader(node)) for n, node in enumerate(read)}


def _reader(node: fx.Node) -> str:
    first = next(iter(node.users), None)
    return "nothing" if first is None else f"{first.target} in {first.meta.get('owner') or 'the model'}"


def graph_hash(graph: fx.Graph) -> str:
    """Return the sha256 of a recorded graph; equal graphs in the sense of :func:`compare_graphs` have equal hashes."""
    return hashlib.sha256(repr(_signature(graph)).encode()).hexdigest()
