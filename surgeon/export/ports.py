"""The tensors that an exported file takes and gives, in words: types, and which axes are fixed and which free."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from surgeon.export.program import inputs_of

MADE_UP_SIZE = 3
"""Of a free axis, where a file is run on numbers that nobody measured."""

_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def name_sizes(graph: Any, titles: Mapping[tuple[str, int], str]) -> None:
    """Give the free sizes of an ONNX graph their names, in place.

    Args:
        titles: as :meth:`surgeon.export.sample.Sample.titles` gives them.
    """
    import onnx_ir

    names = _names(((value.name, value.shape or ()) for value in graph.inputs), titles)
    made = [value for node in graph.all_nodes() for value in node.outputs]
    for value in [*graph.inputs, *made]:
        if value.shape is not None:
            value.shape = onnx_ir.Shape([_named(size, names) for size in value.shape])


def axes_of_graph(graph: Any) -> dict[str, str]:
    """Return, for every input and output of an ``onnx_ir`` graph, its type and sizes, as "float32 (positions_0, 3)"."""
    return {
        value.name: _words(str(value.dtype.numpy()), [str(size) for size in value.shape or ()])
        for value in [*graph.inputs, *graph.outputs]
    }


def axes_of_program(program: Any, titles: Mapping[tuple[str, int], str]) -> dict[str, str]:
    """Return the same for a ``torch.export`` program that takes and returns dicts of tensors; ``titles`` as above."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if "val" in node.meta}
    signature = program.graph_signature
    given = dict(zip(inputs_of(program), (values[name] for name in signature.user_inputs), strict=True))
    returned = program.call_spec.out_spec.unflatten([values[name] for name in signature.user_outputs])
    names = _names(((name, value.shape) for name, value in given.items()), titles)
    return {
        name: _words(str(value.dtype).removeprefix("torch."), [str(_named(size, names)) for size in value.shape])
        for name, value in [*given.items(), *returned.items()]
    }


def made_up(axes: str) -> tuple[str, tuple[int, ...]]:
    """Return type and sizes of a tensor that fits what :func:`axes_of_graph` says, each free axis with one size."""
    kind, _, sizes = axes.partition(" ")
    listed = [size.strip() for size in sizes.strip("()").split(",") if size.strip()]
    return kind, tuple(int(size) if size.isdigit() else MADE_UP_SIZE for size in listed)


def _names(inputs: Iterable[tuple[str, Sequence[Any]]], titles: Mapping[tuple[str, int], str]) -> dict[str, str]:
    """Return the name of every symbol that is itself the size of some axis."""
    names: dict[str, str] = {}
    for name, sizes in inputs:
        for axis, size in enumerate(sizes):
            if not isinstance(size, int) and _SYMBOL.fullmatch(str(size)):
                names.setdefault(str(size), titles[name, axis])
    return names


def _named(size: Any, names: Mapping[str, str]) -> int | str:
    """Return a size as it is if it is fixed, else in these names; expressions of sizes stay expressions."""
    return size if isinstance(size, int) else _SYMBOL.sub(lambda found: names.get(found[0], found[0]), str(size))


def _words(kind: str, sizes: Sequence[str]) -> str:
    return f"{kind} ({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
