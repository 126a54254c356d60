"""What an ONNX graph computes apart from the values of the model's tensors, and the comparison of two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import Any

Signature = list[tuple[Any, ...]]


def signature(model: Any, state: Collection[str]) -> Signature:
    """Return one row per input, node and output of an ``onnx_ir`` model.

    Tensors of the state dict count by name, shape and dtype; all other constants by value. Names of intermediate values
    and metadata do not matter.

    Args:
        model: ``onnx_ir.Model``.
        state: names of the state dict's tensors.
    """
    graph = model.graph
    numbers: dict[int, str] = {}
    rows: Signature = []
    for value in graph.inputs:
        numbers[id(value)] = f"input {value.name}"
        fixed = tuple(size if isinstance(size, int) else "?" for size in value.shape or ())
        rows.append(("input", value.name, str(value.dtype), fixed))
    for name, value in graph.initializers.items():
        tensor = value.const_value
        form = (tuple(tensor.shape), str(tensor.dtype))
        numbers[id(value)] = f"state {name} {form}" if name in state else f"constant {form} {_digest(tensor)}"
    _add_nodes(graph, numbers, rows)
    rows.append(("output", *((value.name, numbers[id(value)]) for value in graph.outputs)))
    return rows


def _digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.tobytes()).hexdigest()[:16]


def _add_nodes(graph: Any, numbers: dict[int, str], rows: Signature) -> None:
    for node in graph:
        read = tuple("" if value is None else numbers[id(value)] for value in node.inputs)
        attributes = tuple(sorted((name, _attribute(item, numbers)) for name, item in node.attributes.items()))
        place = len(rows)
        rows.append((f"{node.domain}::{node.op_type}", read, attributes))
        for index, value in enumerate(node.outputs):
            numbers[id(value)] = f"%{place}.{index}"


def _attribute(attribute: Any, numbers: dict[int, str]) -> str:
    value, kind = attribute.value, attribute.type.name
    if kind == "TENSOR":
        return f"{tuple(value.shape)} {value.dtype} {_digest(value)}"
    if kind == "GRAPH":  # the body of a loop or a condition, which sees the values outside
        inner: Signature = []
        for index, argument in enumerate(value.inputs):
            numbers[id(argument)] = f"argument {index}"
        for initializer in value.initializers.values():
            numbers[id(initializer)] = f"constant {_digest(initializer.const_value)}"
        _add_nodes(value, numbers, inner)
        return repr((inner, [numbers[id(output)] for output in value.outputs]))
    return f"{kind} {value!r}"


def compare_signatures(before: Signature, after: Signature, limit: int = 5) -> list[str]:
    """Return the first differences of two graphs in words; empty if they agree node by node."""
    rows = enumerate(zip(before, after, strict=False))
    found = [f"row {place} of the ONNX graph: expected {a}, got {b}" for place, (a, b) in rows if a != b]
    if len(before) != len(after):
        found.insert(0, f"expected {len(before)} rows in the ONNX graph, got {len(after)}")
    return found[:limit]


def signature_hash(rows: Signature) -> str:
    """Return the sha256 of a signature."""
    return hashlib.sha256(repr(rows).encode()).hexdigest()
