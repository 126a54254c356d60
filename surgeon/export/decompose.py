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
_FRESH = {
    *(_ATEN.new_zeros.default, _ATEN.zeros.default, _ATEN.zeros_like.default, _ATEN.new_empty.default),
    *(_ATEN.add.Tensor, _ATEN.sub.Tensor, _ATEN.mul.Tensor, _ATEN.div.Tensor, _ATEN.pow.Tensor_Scalar),
    *(_ATEN.cat.default, _ATEN.stack.default),
}
"""Operations whose result is nobody else's memory."""


_KEPT = {_ATEN.reshape, _ATEN.narrow, _ATEN.flatten, _ATEN.expand_as, _ATEN.view_as}
"""What ONNX has, although torch's own decomposition takes apart all views that are made of others."""


class _Unusual(Exception):
    """Something that only torch's own decomposition treats."""


def divide_by_tensors(graph: fx.Graph) -> None:
    """Make remainders by free sizes such by tensors of one number, the only ones that the exporter knows; in place."""
    for node in graph.find_nodes(op="call_function", target=_ATEN.remainder.Scalar):
        size = node.args[1]
        if isinstance(size, fx.Node):
            value = node.meta["val"]
            with graph.inserting_before(node):
                made = graph.call_function(_ATEN.scalar_tensor.default, (size,), {"dtype": value.dtype})
            made.meta = {**node.meta, "val": value.new_empty(())}
            node.target, node.args = _ATEN.remainder.Tensor, (node.args[0], made)


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
            _without_writing(result, node, table, now)
        elif node.target in table or _is_composed_view(node.target):
            now[node] = _parts(result, node, node.target, table, now)
        elif node.op == "get_attr" or isinstance(node.target, torch._ops.HigherOrderOperator):
            raise _Unusual
        else:
            now[node] = result.node_copy(node, now.__getitem__)
    result.eliminate_dead_code()
    result.lint()
    return result


def _without_writing(graph: fx.Graph, node: fx.Node, table: Table, now: dict[fx.Node, Any]) -> None:
    """Add what makes a new tensor of what a node would write into, which takes its place from there on."""
    into: Any = node.args[0]
    if _is_part(into):
        base, dim, start, length = into.args
        part = _add(graph, node, _ATEN.copy.default, (now[into], now[node.args[1]]), into.meta["val"])  # type: ignore[index]
        arguments = (now[base], part, dim, start, start + length)
        now[base] = _add(graph, node, _ATEN.slice_scatter.default, arguments, base.meta["val"])
        return
    target: Any = node.target
    pure = getattr(getattr(_ATEN, target._opname.removesuffix("_")), target._overloadname)
    if pure in table:
        now[node] = now[into] = _parts(graph, node, pure, table, now)
    else:
        args, named = fx.map_arg((node.args, node.kwargs), now.__getitem__)
        now[node] = now[into] = graph.create_node("call_function", pure, args, named, name=node.name)
        now[node].meta = dict(node.meta)


def _add(graph: fx.Graph, node: fx.Node, target: Any, arguments: tuple[Any, ...], value: Any) -> fx.Node:
    made = graph.create_node("call_function", target, arguments, name=f"{node.name}_{target.__name__}")
    made.meta = {**node.meta, "val": value}
    return made


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _check_writes(graph: fx.Graph) -> None:
    """Refuse all writes but those into a new tensor, or one part of it, that nothing else has seen before."""
    before = set[fx.Node]()
    for node in graph.nodes:
        if _writes(node):
            into: Any = node.args[0]
            if _is_part(into) and (node.target is not _ATEN.copy_.default or node.users):
                raise _Unusual
            base = into.args[0] if _is_part(into) else into
            if base is into and len({value.dtype for value in _floating(node)}) != 1:  # without a write, it is promoted
                raise _Unusual
            if base.target not in _FRESH or any(user in before and not _only_written(user) for user in base.users):
                raise _Unusual
        before.add(node)


def _is_composed_view(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload) or target.overloadpacket in _KEPT:
        return False
    composed = target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)
    return composed and any(each.alias_info is not None for each in target._schema.returns)


def _floating(node: fx.Node) -> list[torch.Tensor]:
    values = [each.meta["val"] for each in node.all_input_nodes]
    return [value for value in values if isinstance(value, torch.Tensor) and value.dtype.is_floating_point]


def _is_part(view: fx.Node) -> bool:
    return view.target is _ATEN.narrow.default and all(isinstance(number, int) for number in view.args[1:])


def _only_written(user: fx.Node) -> bool:
    """Tell whether a tensor's user only writes: a part that nothing reads, or a write whose result is not used."""
    parts = _is_part(user) and all(_writes(each) and each.args[0] is user for each in user.users)
    return parts or (_writes(user) and not user.users)


def _parts(graph: fx.Graph, node: fx.Node, target: Any, table: Table, now: Mapping[fx.Node, Any]) -> Any:
    """Add what an operation on a node's arguments is made of to a graph, and return its result there."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import make_fx

    given = node.all_input_nodes

    def run(*values: Any) -> Any:
        of = dict(zip(given, values, strict=True))
        named = fx.map_arg(node.kwargs, of.__getitem__)
        return target(*fx.map_arg(node.args, of.__getitem__), **named)

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
