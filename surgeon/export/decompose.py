"""Decompose what ONNX has no operators for, node by node; the rest of a program stays as it was traced.

torch's own ``run_decompositions`` runs the whole program again, twice, with sizes that are symbols. That takes longer
than tracing it did, and most operations come out as they went in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

Table = Mapping[Any, Any]
"""Operation to what it is made of."""

_ATEN = torch.ops.aten
_FRESH = {_ATEN.new_zeros.default, _ATEN.zeros.default, _ATEN.zeros_like.default, _ATEN.new_empty.default}
"""Operations whose result is nobody else's memory."""


class _Unusual(Exception):
    """Something that only torch's own decomposition treats."""


def decompose(program: Any, table: Table) -> Any:
    """Replace the operations of a table, and writes into parts of new tensors, by what they are made of, in place.

    Args:
        program: a ``torch.export.ExportedProgram``.
        table: operation to its decomposition, as for ``run_decompositions``.

    Returns:
        The same program; what ``run_decompositions`` gives where the program has other writes, constants inside of its
        graph, or inner graphs.
    """
    try:
        graph = _decomposed(program.graph_module.graph, table)
    except Exception:  # of torch's parts, which change from version to version
        return type(program).run_decompositions(program, table)
    module = fx.GraphModule(program.graph_module, graph)
    module.meta = dict(program.graph_module.meta)
    program._graph_module = module  # as torch's exporter does
    return program


def _decomposed(graph: fx.Graph, table: Table) -> fx.Graph:
    _check_writes(graph)
    result, now = fx.Graph(), dict[fx.Node, Any]()
    for node in graph.nodes:
        if node.op == "output":
            names = [each.name for each in node.all_input_nodes]
            copy = result.node_copy(node, now.__getitem__)
            if [each.name for each in copy.all_input_nodes] != names:  # the signature knows them
                raise _Unusual
        elif _writes(node):
            view, source = node.args[:2]
            base, dim, start, length = view.args
            part = _add(result, node, _ATEN.copy.default, (now[view], now[source]), view.meta["val"])
            arguments = (now[base], part, dim, start, start + length)
            now[base] = _add(result, node, _ATEN.slice_scatter.default, arguments, base.meta["val"])
        elif node.target in table:
            now[node] = _parts(result, node, table, now)
        elif node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):
            raise _Unusual
        else:
            now[node] = result.node_copy(node, now.__getitem__)
    result.eliminate_dead_code()
    result.lint()
    return result


def _add(graph: fx.Graph, node: fx.Node, target: Any, arguments: tuple[Any, ...], value: Any) -> fx.Node:
    made = graph.create_node("call_function", target, arguments, name=f"{node.name}_{target.__name__}")
    made.meta = {**node.meta, "val": value}
    return made


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _check_writes(graph: fx.Graph) -> None:
    """Refuse all writes but those into one part of a new tensor, of which nothing else was taken before."""
    before = set[fx.Node]()
    for node in graph.nodes:
        if _writes(node):
            view = node.args[0]
            if node.target is not _ATEN.copy_.default or node.users or not _is_part(view):
                raise _Unusual
            base = view.args[0]
            if base.target not in _FRESH or any(user in before and not _only_written(user) for user in base.users):
                raise _Unusual
        before.add(node)


def _is_part(view: fx.Node) -> bool:
    return view.target is _ATEN.narrow.default and all(isinstance(number, int) for number in view.args[1:])


def _only_written(view: fx.Node) -> bool:
    return _is_part(view) and all(_writes(user) and user.args[0] is view for user in view.users)


def _parts(graph: fx.Graph, node: fx.Node, table: Table, now: Mapping[fx.Node, Any]) -> Any:
    """Add what a node is made of to a graph, and return its result there."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    given = node.all_input_nodes

    def run(*values: Any) -> Any:
        of = dict(zip(given, values, strict=True))
        named = fx.map_arg(node.kwargs, of.__getitem__)
        return node.target(*fx.map_arg(node.args, of.__getitem__), **named)  # type: ignore[operator]

    values: list[Any] = [each.meta["val"] for each in given]
    mode = next(value.fake_mode for value in values if hasattr(value, "fake_mode"))
    with torch.no_grad(), mode, enable_python_dispatcher():
        traced = make_fx(run, decomposition_table=dict(table))(*values).graph
    inner: dict[fx.Node, Any] = dict(
        zip(traced.find_nodes(op="placeholder"), (now[each] for each in given), strict=True)
    )
    made = traced.output_node().args[0]
    for each in traced.nodes:
        if each.op not in ("placeholder", "output"):
            if each.op != "call_function" or _writes(each):
                raise _Unusual
            name = node.name if each is made else f"{node.name}_{each.name}"  # outputs are known by their names
            inner[each] = graph.create_node(
                each.op, each.target, *fx.map_arg((each.args, each.kwargs), inner.__getitem__), name=name
            )
            inner[each].meta = {**node.meta, "val": each.meta["val"]}
    return fx.map_arg(made, inner.__getitem__)
