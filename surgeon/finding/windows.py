"""Windows of convolutions and pooling that do not fit a grid evenly, so that turning or reflecting it moves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from surgeon.recording.record import Recording

_ATEN = torch.ops.aten
_POOLS = {
    *(_ATEN.max_pool2d_with_indices.default, _ATEN.max_pool3d_with_indices.default),
    *(_ATEN.avg_pool2d.default, _ATEN.avg_pool3d.default),
}
_DILATED = {_ATEN.max_pool2d_with_indices.default, _ATEN.max_pool3d_with_indices.default}


def uneven_windows(recording: Recording) -> list[str]:
    """Say which ops of a run break the symmetry of a grid by its size or by one-sided padding, with what would not."""
    nodes = (node for node in recording.graph.nodes if node.op == "call_function" and not node.meta["backward"])
    return list(dict.fromkeys(words for node in nodes for words in [uneven(node)] if words))


def uneven(node: fx.Node) -> str:
    """Say how the windows of an op lie unevenly on a grid, and for which sizes they would not; empty if they do not."""
    where = node.meta["owner"] or "the model's own forward"
    if node.target is _ATEN.constant_pad_nd.default:
        pads = list(node.args[1])  # type: ignore[arg-type]
        uneven_pairs = [pair for pair in zip(pads[::2], pads[1::2], strict=True) if pair[0] != pair[1]]
        if not uneven_pairs:
            return ""
        before, after = uneven_pairs[0]
        return f"{where} pads {before} points before a grid and {after} after it: pad both ends alike"
    for size, width, step, padding in _windows(node):
        left_over = (size + 2 * padding - width) % step
        if left_over:
            even = [n for n in range(max(1, size - step), size + step) if (n + 2 * padding - width) % step == 0]
            return (
                f"{where}: windows of {width}, in steps of {step} with padding {padding}, end {left_over} points "
                f"earlier at one end of an axis of {size} points than at the other; they lie evenly on "
                f"{' or '.join(map(str, even))}"
            )
    return ""


def _windows(node: fx.Node) -> Iterator[tuple[int, int, int, int]]:
    """Yield size of the grid, width, step and padding of a window, for each axis of a grid."""
    if node.target is _ATEN.convolution.default and not node.args[6]:
        kernel = _shape(node.args[1])[2:]
        stride, padding, dilation = (_each(node.args[index], len(kernel)) for index in (3, 4, 5))
    elif node.target in _POOLS:
        count = 3 if "3d" in str(node.target) else 2
        given = [*node.args[1:], *[[], 0, 1][len(node.args) - 2 :]]
        kernel = tuple(_each(given[0], count))
        stride, padding = _each(given[1] or kernel, count), _each(given[2], count)
        dilation = _each(given[3], count) if node.target in _DILATED else [1] * count
    else:
        return
    sizes = _shape(node.args[0])[-len(kernel) :]
    for size, points, step, pad, gap in zip(sizes, kernel, stride, padding, dilation, strict=True):
        yield size, gap * (points - 1) + 1, step, pad


def _shape(value: object) -> tuple[int, ...]:
    assert isinstance(value, fx.Node)
    return tuple(value.meta["shape"])


def _each(value: object, count: int) -> list[int]:
    """Return one number per axis; aten takes one for all of them, too."""
    numbers = list(value) if isinstance(value, Sequence) else [value]
    return numbers * count if len(numbers) == 1 else numbers  # type: ignore[return-value]
