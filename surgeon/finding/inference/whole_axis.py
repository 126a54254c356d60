"""All of one axis at once, where no labelled irreps fit: multivectors, bivectors, spinors, monomials of components.

The images of the generators are regressed on one half of the rows, confirmed on the other, checked against the group's
commutation relations and cut into the blocks that they connect.
"""

from __future__ import annotations

from functools import reduce
from operator import add

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import axes, matrices, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.finding.inference.axis import (
    FIT_TOLERANCE,
    LARGEST_FITTED,
    AxisRows,
    Layout,
    connected,
    logarithm,
    mixes,
    regress,
    segments,
)
from surgeon.finding.inference.probe import STEP, TensorProbe
from surgeon.finding.inference.relations import respects_brackets

WHOLE = 1e-7
"""Entries of generators this close to whole numbers are these; what was measured by a small step is rounded so."""


_ORDER: dict[Layout, str] = {"mul_ir": "c v", "ir_mul": "v c"}


def whole_axis_representation(probe: TensorProbe, axis: int) -> Representation | None:
    """Return the representation on an axis of at most 64 coordinates, where twice as many rows are known.

    Args:
        probe: the tensor in all runs.
        axis: negative position.

    Returns:
        A direct sum of blocks, none of which falls apart in the coordinates of the tensor; None if there is none, or
        if the group is finite, for which there are better hypotheses.
    """
    group, width = probe.elements.group, probe.base.shape[axis]
    if group.finite or not 1 < width <= LARGEST_FITTED:
        return None
    if probe.base.numel() < 2 * width * width:
        return None
    found = _images(AxisRows.along(probe, axis))
    if found is None or not respects_brackets(group, *found):
        return None
    return _in_blocks(group, *found)


def _images(rows: AxisRows) -> tuple[list[Tensor], list[Tensor]] | None:
    """Return the images of the generators of the Lie algebra, and of the elements of the further components."""
    count, start = len(rows.probe.elements.small), rows.first_component
    moved = [*rows.moved[1 : 1 + 2 * count : 2], *rows.moved[start : start + len(rows.probe.elements.components)]]
    images = []
    for each in moved:
        image = regress(rows.base[::2], each[::2])
        held_out = each[1::2]
        if image is None or not (rows.base[1::2] @ image.mT - held_out).norm() <= FIT_TOLERANCE * held_out.norm():
            return None
        images.append(image)
    return [_rounded(logarithm(image) / STEP) for image in images[:count]], [
        _rounded(image) for image in images[count:]
    ]


def _rounded(matrix: Tensor) -> Tensor:
    near = matrix.round()
    return torch.where((matrix - near).abs() < WHOLE, near, matrix)


def _in_blocks(group: Group, algebra: list[Tensor], elements: list[Tensor]) -> Representation | None:
    """Cut into connected blocks; None where these lie in no layout, or one is as wide as half of what is tried."""
    width = len(algebra[0])
    blocks = connected(mixes([*algebra, *elements]))
    if max(len(block) for block in blocks) > LARGEST_FITTED // 2:
        return None
    terms: list[Representation] = []
    for copies, count, _, layout in segments(blocks):
        pairs = [_part(algebra, block) for block in copies], [_part(elements, block) for block in copies]
        alike = all(torch.allclose(part, parts[0], atol=WHOLE, rtol=0) for parts in pairs for part in parts)
        if alike:
            terms.append(_named(group, pairs[0][0], pairs[1][0], count, layout))
        elif layout == "mul_ir":
            terms += [_named(group, a, s, 1, layout) for a, s in zip(*pairs, strict=True)]
        else:
            return None
    return reduce(add, terms) if sum(term.dimension for term in terms) == width else None


def _part(images: list[Tensor], block: tuple[int, ...]) -> Tensor:
    chosen = list(block)
    parts = [image[chosen][:, chosen] for image in images]
    return torch.stack(parts) if parts else torch.zeros(0, len(chosen), len(chosen), dtype=torch.float64)


def _named(group: Group, algebra: Tensor, elements: Tensor, copies: int, layout: Layout) -> Representation:
    """Return copies of a block, as invariants or vectors if it is that."""
    if algebra.shape[-1] == 1 and not bool(algebra.any()) and bool((elements == 1).all()):
        return trivial(group, copies)
    known = (group.feature_algebra, group.feature_elements)
    if algebra.shape == known[0].shape and all(
        torch.allclose(part, own, atol=WHOLE, rtol=0) for part, own in zip((algebra, elements), known, strict=True)
    ):
        return axes(group, "v", {}) if copies == 1 else axes(group, _ORDER[layout], {"c": copies})
    return matrices(group, {"algebra": algebra.tolist(), "elements": elements.tolist()}, copies, layout)
