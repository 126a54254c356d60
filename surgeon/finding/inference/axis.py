"""The representation along one axis: label each coordinate, cut the axis into runs, and fit each run."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby, product
from operator import add
from typing import Literal

import torch
from torch import Tensor

from surgeon.algebra.folding import connected_pieces
from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import axes, irreps, matrices, regular, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.finding.inference.probe import STEP, TensorProbe
from surgeon.finding.inference.relations import respects_brackets, respects_relations

LABEL_TOLERANCE, NOISY_LABEL = 1e-2, 0.3
"""Relative; a label only decides what is tried, the random elements judge it. The second is that of noisy features."""

FIT_TOLERANCE = 1e-6
LARGEST_FITTED = 64
"""Width up to which the blocks of a finite group are found by one regression along the axis."""

Layout = Literal["mul_ir", "ir_mul"]
THREE_DIMENSIONAL = ("SO3", "O3", "SE3", "E3")
PLANAR = ("SO2", "O2")


@dataclass(frozen=True)
class AxisRows:
    """One tensor with an axis brought to the end and all others flattened.

    Attributes:
        base: shape (rows, n).
        moved: shape (n_elements, rows, n), in the order of the probe's elements.
        tolerance: largest relative deviation of a representation that explains them.
    """

    probe: TensorProbe
    base: Tensor
    moved: Tensor
    tolerance: float = FIT_TOLERANCE

    @classmethod
    def along(cls, probe: TensorProbe, axis: int, tolerance: float = FIT_TOLERANCE) -> AxisRows:
        """Bring ``axis`` to the end."""
        flat = torch.stack([value.movedim(axis, -1).reshape(-1, value.shape[axis]) for value in probe.values])
        return cls(probe, flat[0], flat, tolerance)

    @property
    def group(self) -> Group:
        """The group."""
        return self.probe.elements.group

    @property
    def first_component(self) -> int:
        """Position of the first further component (or generator of a finite group) in ``moved``."""
        return 1 + 2 * len(self.probe.elements.small)

    def slice(self, index: Tensor) -> AxisRows:
        """Keep some coordinates."""
        return AxisRows(self.probe, self.base[:, index], self.moved[:, :, index], self.tolerance)


def axis_representations(probe: TensorProbe, axis: int, tolerance: float = FIT_TOLERANCE) -> Iterator[Representation]:
    """Yield the representations along an axis that explain the values, from the simplest on."""
    rows = AxisRows.along(probe, axis, tolerance)
    yield from _finite(rows) if rows.group.finite else _continuous(rows)


def _continuous(rows: AxisRows) -> Iterator[Representation]:
    labels = _labels(rows)
    if labels is None:
        return
    terms: list[Representation] = []
    start = 0
    for label, same in groupby(labels):
        length = len(list(same))
        fitted = _fit_run(rows.slice(torch.arange(start, start + length)), label)
        if fitted is None:
            return
        terms += fitted
        start += length
    yield _joined(rows.group, terms)


def _joined(group: Group, terms: list[Representation]) -> Representation:
    """Direct sum; neighbouring irreps of one layout are written as one string."""
    joined: list[Representation] = []
    for term in terms:
        last, new = joined[-1].to_data() if joined else {}, term.to_data()
        if "irreps" in last and "irreps" in new and last["layout"] == new["layout"]:
            joined[-1] = irreps(group, f"{last['irreps']}+{new['irreps']}", new["layout"])
        else:
            joined.append(term)
    return reduce(add, joined)


Label = tuple[int, tuple[int, ...]]
"""Degree (or frequency; 1 for "not invariant" in other groups) and the signs of the further components, 0: none."""


def _labels(rows: AxisRows) -> list[Label] | None:
    """Label every coordinate, or None if one mixes several degrees or is 0 on all rows."""
    norms = rows.moved.norm(dim=(0, 1))
    if bool((norms <= 1e-12 * norms.max()).any()):
        return None
    degrees = _degrees(rows)
    if degrees is None:
        return None
    return [(degree, _component_signs(rows, index, degree)) for index, degree in enumerate(degrees)]


def _degrees(rows: AxisRows) -> list[int] | None:
    """Read l (or the frequency) off the Casimir: ``sum_A (y_+ + y_- - 2y) / eps^2 = -c y`` for every coordinate."""
    count = len(rows.probe.elements.small)
    invariant = (rows.moved[1 : 1 + 2 * count] - rows.base).norm(dim=(0, 1)) <= 1e-9 * rows.moved.norm(dim=(0, 1))
    if rows.group.name not in (*THREE_DIMENSIONAL, *PLANAR):
        return [0 if still else 1 for still in invariant.tolist()]
    second = (rows.moved[1 : 1 + 2 * count].sum(dim=0) - 2 * count * rows.base) / STEP**2
    squares = rows.base.square().sum(dim=0)
    casimir = -(second * rows.base).sum(dim=0) / squares
    rest = (second + casimir * rows.base).norm(dim=0) / squares.sqrt()
    raw = (
        ((-1 + (1 + 4 * casimir.clamp(min=0)).sqrt()) / 2)
        if rows.group.name in THREE_DIMENSIONAL
        else (casimir.clamp(min=0).sqrt())
    )
    rounded = raw.round()
    tolerance = max(LABEL_TOLERANCE, min(NOISY_LABEL, rows.tolerance / FIT_TOLERANCE * LABEL_TOLERANCE))
    pure = (rest <= tolerance * (1 + casimir)) & ((raw - rounded).abs() <= tolerance)
    if not bool(pure.all()):
        return None
    return [int(value) for value in rounded.tolist()]


def _component_signs(rows: AxisRows, index: int, degree: int) -> tuple[int, ...]:
    """Signs of a coordinate under the further components; irreps of O(3) and scalars have them."""
    if rows.group.name not in ("O3", "E3") and degree:
        return ()
    signs = []
    for offset in range(len(rows.probe.elements.components)):
        moved, base = rows.moved[rows.first_component + offset, :, index], rows.base[:, index]
        signs.append(1 if float((moved * base).sum()) >= 0 else -1)
    return tuple(signs)


def _fit_run(rows: AxisRows, label: Label) -> list[Representation] | None:
    """Return the representations of a run of coordinates with one label, in order."""
    degree, signs = label
    length = rows.base.shape[1]
    if degree == 0:
        found = scalars(rows.group, length, signs)
        return [found] if _explains(found, rows) else None
    size = _block_size(rows.group, degree)
    if size is None or length % size:
        return None
    for copies in range(length // size, 0, -1):  # the whole run, or a first part of it and the rest
        first = rows.slice(torch.arange(copies * size))
        for layout in _layouts(copies):
            fitted = _fit_block(first, degree, signs, copies, size, layout)
            if fitted is None:
                continue
            if copies * size == length:
                return [fitted]
            rest = _fit_run(rows.slice(torch.arange(copies * size, length)), label)
            if rest is not None:
                return [fitted, *rest]
    return None


def _layouts(copies: int) -> tuple[Layout, ...]:
    return ("mul_ir",) if copies == 1 else ("mul_ir", "ir_mul")


def _block_size(group: Group, degree: int) -> int | None:
    if group.name in THREE_DIMENSIONAL:
        return 2 * degree + 1
    return 2 if group.name in PLANAR else group.vector_dimension


def scalars(group: Group, count: int, signs: Sequence[float]) -> Representation:
    """Return copies of what is 1 on the identity component and ``signs`` on the further components, if it has them."""
    if group.name in THREE_DIMENSIONAL:
        return irreps(group, f"{count}x0{'o' if -1 in signs else 'e'}")
    if -1 not in signs:
        return trivial(group, count)
    images = {"algebra": [[[0.0]]] * len(group.feature_algebra), "elements": [[[float(sign)]] for sign in signs]}
    return matrices(group, images, count)


def _blocks(values: Tensor, copies: int, size: int, layout: Layout) -> Tensor:
    """Split the last axis to (copies, size) and flatten rows with copies: shape (..., rows * copies, size)."""
    *lead, rows, _ = values.shape
    if layout == "mul_ir":
        return values.reshape(*lead, rows * copies, size)
    return values.reshape(*lead, rows, size, copies).transpose(-1, -2).reshape(*lead, rows * copies, size)


def _fit_block(
    rows: AxisRows, degree: int, signs: tuple[int, ...], copies: int, size: int, layout: Layout
) -> Representation | None:
    """Fit one small matrix per element to a run that is read in one layout; None if that does not explain it."""
    blocks = _blocks(rows.moved, copies, size, layout)
    for named in _named(rows.group, degree, signs, copies, layout):
        if _explains(named, rows):
            return named
    fitted = [regress(blocks[0], moved) for moved in blocks[1:]]
    if any(matrix is None for matrix in fitted):
        return None
    images = [matrix for matrix in fitted if matrix is not None]
    count = len(rows.probe.elements.small)
    algebra = [logarithm(image) / STEP for image in images[: 2 * count : 2]]
    elements = images[2 * count : 2 * count + len(rows.probe.elements.components)]
    if not respects_brackets(rows.group, algebra, elements):
        return None
    data = {"algebra": [m.tolist() for m in algebra], "elements": [m.tolist() for m in elements]}
    return matrices(rows.group, data, copies, layout)


def _explains(rho: Representation, rows: AxisRows) -> bool:
    start = rows.first_component
    elements = torch.cat([rows.probe.elements.components, rows.probe.elements.checks])
    expected = rho.action(elements).apply(rows.base)
    moved = rows.moved[start:]
    return bool((expected - moved).norm() <= rows.tolerance * moved.norm())


def _named(group: Group, degree: int, signs: tuple[int, ...], copies: int, layout: Layout) -> Iterator[Representation]:
    if group.name in THREE_DIMENSIONAL:
        parity = "o" if (signs[0] < 0 if signs else degree % 2) else "e"
        yield irreps(group, f"{copies}x{degree}{parity}", layout)
        return
    if group.name not in PLANAR or degree == 1:
        names, sizes = ("c v", {"c": copies}) if layout == "mul_ir" else ("v c", {"c": copies})
        yield axes(group, names, sizes)
    if group.name in PLANAR:  # (cos m phi, sin m phi), in either order, and turned by a quarter
        for frequency, sign in product((degree, -degree), (1.0, -1.0)[: 1 + len(group.elements)]):
            turn, mirror = [[0.0, -frequency], [frequency, 0.0]], [[sign, 0.0], [0.0, -sign]]
            images = {"algebra": [turn], "elements": [mirror] * len(group.elements)}
            yield matrices(group, images, copies, layout)


def regress(base: Tensor, moved: Tensor) -> Tensor | None:
    """Return M with ``moved = base M^T``; None if the rows leave M open, or if there is none."""
    return _solution(base, moved) if _fills(base) else None


def _fills(base: Tensor) -> bool:
    return int(torch.linalg.matrix_rank(base, rtol=1e-9)) == base.shape[1]


def _solution(base: Tensor, moved: Tensor) -> Tensor | None:
    matrix: Tensor = torch.linalg.lstsq(base, moved).solution.mT
    good = (base @ matrix.mT - moved).norm() <= FIT_TOLERANCE * moved.norm()
    return matrix if bool(good) else None


def _alike(base: Tensor, moved: Tensor) -> Tensor:
    """Return which columns moved are which columns: the one permutation that rows which leave M open may allow."""
    near: Tensor = torch.cdist(moved.mT, base.mT) <= FIT_TOLERANCE * base.norm(dim=0).amax()
    return near.to(base.dtype)


def logarithm(matrix: Tensor) -> Tensor:
    """Logarithm of a matrix near the identity."""
    raw = torch.from_numpy(importlib.import_module("scipy.linalg").logm(matrix.numpy()))
    return raw.real.to(torch.float64)


def _finite(rows: AxisRows) -> Iterator[Representation]:
    """Try copies of one small block in each layout; then regress along the whole axis and read off the blocks."""
    n = rows.base.shape[1]
    for size in range(1, min(n, 2 * len(rows.group.all_elements())) + 1):
        for layout in _layouts(n // size) if n % size == 0 else ():
            simple = _copies_of_one_block(rows, n // size, size, layout)
            if simple is not None:
                yield simple
    different = _different_blocks(rows) if n <= LARGEST_FITTED * 4 else None
    if different is not None:
        yield different


def _different_blocks(rows: AxisRows) -> Representation | None:
    found = _images_of_generators(rows, rows.moved)
    if found is None:
        return None
    blocks = connected(mixes(found))
    if max(len(block) for block in blocks) > LARGEST_FITTED // 2:
        return None
    terms = []
    for index, copies, size, layout in segments(blocks):
        term = _finite_block(rows.group, found, index, copies, size, layout)
        if term is None:
            return None
        terms.append(term)
    covered = sum(term.dimension for term in terms)
    return reduce(add, terms) if covered == rows.base.shape[1] else None


def _copies_of_one_block(rows: AxisRows, copies: int, size: int, layout: Layout) -> Representation | None:
    moved = rows.moved[: 1 + len(rows.probe.elements.components)]
    found = _images_of_generators(rows, _blocks(moved, copies, size, layout))
    # A block that falls apart is none: it would fit the noise of smaller ones.
    whole = found is not None and len(connected(mixes(found))) == 1
    return _named_finite(rows.group, found, copies, layout) if found is not None and whole else None


def _images_of_generators(rows: AxisRows, moved: Tensor) -> list[Tensor] | None:
    """Regress the images of a finite group's generators; None if one is left open, or they multiply otherwise."""
    image = _solution if _fills(moved[0]) else _alike
    images = [image(moved[0], each) for each in moved[1 : 1 + len(rows.probe.elements.components)]]
    found = [image for image in images if image is not None]
    return found if len(found) == len(images) and respects_relations(rows.group, found) else None


def _named_finite(group: Group, images: list[Tensor], copies: int, layout: Layout) -> Representation:
    """Return copies of the block with these images, by its name if it has one."""
    size = len(images[0])
    rounded = [image.round() for image in images]
    pairs = zip(images, rounded, strict=True)
    cleaned = [near if float((image - near).abs().max()) < 1e-9 else image for image, near in pairs]
    if size == 1 and all(float(image) == 1.0 for image in cleaned):
        return trivial(group, copies)
    if size == len(group.all_elements()):
        dense = regular(group, 1).action(group.elements).dense()
        if bool((dense - torch.stack(cleaned)).abs().max() < 1e-9):
            return regular(group, copies, layout)
    return matrices(group, {"algebra": [], "elements": [image.tolist() for image in cleaned]}, copies, layout)


def mixes(images: list[Tensor]) -> Tensor:
    """Which coordinates some image mixes, shape (n, n), symmetric."""
    mixed = torch.stack([image.abs() for image in images]).amax(dim=0) > FIT_TOLERANCE
    return mixed | mixed.mT


def connected(mixed: Tensor) -> list[tuple[int, ...]]:
    """Connected components of a symmetric pattern, by first member."""
    label, count = connected_pieces(len(mixed), *mixed.nonzero().T)
    return [tuple((label == piece).nonzero().flatten().tolist()) for piece in range(count)]


def segments(blocks: list[tuple[int, ...]]) -> Iterator[tuple[list[tuple[int, ...]], int, int, Layout]]:
    """Group blocks into runs of copies in one layout."""
    position = 0
    remaining = list(blocks)
    while remaining:
        first = remaining[0]
        size = len(first)
        stride = first[1] - first[0] if size > 1 else 1
        layout: Layout = "mul_ir" if stride == 1 else "ir_mul"
        same = []
        for offset, block in enumerate(remaining):
            expected = (
                tuple(range(position + offset * size, position + (offset + 1) * size))
                if layout == "mul_ir"
                else tuple(position + offset + stride * step for step in range(size))
            )
            if block != expected or (layout == "ir_mul" and offset >= stride):
                break
            same.append(block)
        if not same:
            return
        yield same, len(same), size, layout
        remaining = remaining[len(same) :]
        position += len(same) * size


def _finite_block(
    group: Group, images: list[Tensor], blocks: list[tuple[int, ...]], copies: int, size: int, layout: Layout
) -> Representation | None:
    parts = [torch.stack([image[list(block)][:, list(block)] for block in blocks]) for image in images]
    if any(float((part - part[:1]).abs().max()) > FIT_TOLERANCE for part in parts):
        if layout == "ir_mul" or copies == 1:
            return None
        terms = [_finite_block(group, images, [block], 1, size, layout) for block in blocks]
        good = [term for term in terms if term is not None]
        return reduce(add, good) if len(good) == len(terms) else None
    first = [part[0] for part in parts]
    return _named_finite(group, first, copies, layout)
