"""From the values of one tensor under several group elements to a representation on some of its axes.

Hypotheses are tried from the simplest to the most general, and each has to hold under random elements. Only structured
ones are made: invariants, vector indices, direct sums of irreps or of small blocks along one axis, fields on a grid. A
dense fit along a wide axis would "succeed" for any injective map of equivariant features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import combinations, permutations, product

import torch
from torch import Tensor

from surgeon.algebra.equivariance import largest
from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import axes, irreps, trivial
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference.axis import axis_representations, scalars
from surgeon.finding.inference.probe import TensorProbe
from surgeon.finding.inference.rows import FEW_ROWS, few_positions
from surgeon.finding.inference.sums import silent_axes
from surgeon.finding.inference.whole_axis import whole_axis_representation
from surgeon.support.trees import as_numbers

TOLERANCE = 1e-6
"""Largest relative deviation of a measured type in float64; constants of the model may have gone through float32."""

SMALLEST = 1e-9
"""Features count as at least of this size, relative to the largest of their tensor: what is below is rounding."""

OWN_PHASES = (
    "each entry turns by a phase of its own, as Fourier coefficients do under translations, which no branch takes; a "
    "module that transforms there and back is one op"
)

AT_ONCE = 2**20
"""Entries up to which a tensor is compared under several elements at once."""

MOST_VECTOR_AXES = 3


@dataclass(frozen=True)
class Verdict:
    """What was found for one tensor.

    Attributes:
        type: how it transforms; None if no hypothesis holds.
        residual: largest relative deviation under the random elements, of ``type`` or else of the best hypothesis.
        reason: why there is no type, in words; empty if there is one.
        silent: axes along which some entries are 0 in all runs; 0 transforms by any representation.
        filled: if there is no type, the silent axis along which those entries that are not 0 have one.
        refuted: if there is no type, one that holds in some of the runs only.
    """

    type: TensorType | None
    residual: float
    reason: str = ""
    silent: tuple[int, ...] = ()
    filled: int | None = None
    refuted: TensorType | None = None


def residual_of(candidate: TensorType, probe: TensorProbe, apart: tuple[int, ...] = ()) -> float:
    """Return the largest ``|rho(g) y - y_g| / |y_g|`` over the elements that check a hypothesis; dimensionless.

    Each copy of each block of the representation is judged by itself, so that large features do not hide what happens
    to small ones.

    Args:
        candidate: the hypothesis.
        probe: the tensor in all runs.
        apart: negative positions of further axes whose entries are copies to judge by themselves; others are rows.
    """
    further = tuple(axis for axis in apart if axis not in (*candidate.axes, *candidate.grid))
    typed = candidate.with_copies(further, probe.base)
    if probe.alike is None:
        return _residuals(candidate, typed, [probe])[0]
    return probe.alike.answer((candidate, apart), probe.number, partial(_residuals, candidate, typed))


def _residuals(candidate: TensorType, typed: TensorType, probes: Sequence[TensorProbe]) -> list[float]:
    """Return the residuals of tensors of one shape; ``typed`` is the candidate on all axes whose entries are apart."""
    elements, size = probes[0].checks()[0], max(1, probes[0].base.numel())
    count, worst = max(1, AT_ONCE // size), list[float]()
    together = max(1, count // len(elements))
    for first in range(0, len(probes), together):
        chosen = probes[first : first + together]
        bases, values = torch.stack([each.base for each in chosen]), [each.checks()[1] for each in chosen]
        found = [0.0] * len(chosen)
        for start in range(0, len(elements), count):
            moved = torch.stack([torch.stack(each[start : start + count]) for each in values], dim=1)
            both = torch.stack([candidate.act(elements[start : start + count], bases) - moved, moved])
            differences, scales = _norms_of_copies(typed, both.flatten(0, 2)).reshape(*both.shape[:3], -1)
            scales = torch.maximum(scales, SMALLEST * scales.amax(dim=2, keepdim=True))
            ratios = torch.where(differences == 0, differences, differences / scales)
            found = [*map(largest, found, ratios.amax(dim=(0, 2)).tolist())]
        worst += found
    return worst


def _norms_of_copies(typed: TensorType, x: Tensor) -> Tensor:
    """Return the norm of every copy of every block, over all rows of each of n tensors: shape (n, copies)."""
    squares = typed.on_rows(x).square().reshape(len(x), -1, typed.rho.dimension).sum(dim=1)
    parts = []
    for block in typed.rho.blocks:
        part = squares[:, block.start : block.start + block.size].reshape(-1, *block.shape)
        transforming = [1 + axis for axis, _ in block.factors]
        parts.append((part.sum(dim=transforming) if transforming else part).reshape(len(x), -1))
    return torch.cat(parts, dim=1).sqrt()


def infer_type(probe: TensorProbe, tolerance: float = TOLERANCE, apart: tuple[int, ...] = ()) -> Verdict:
    """Find how a tensor transforms.

    Args:
        probe: the tensor in all runs, float64.
        tolerance: largest relative deviation under the random elements.
        apart: negative positions of the axes that are known to count features, which are judged one by one.

    Returns:
        The verdict; the first hypothesis that holds, in the order of :func:`hypotheses`.
    """
    sizes = _sizes(probe)
    if isinstance(sizes, str):
        return Verdict(None, float("inf"), sizes)
    best, silent = float("inf"), silent_axes(sizes)
    for sample in _samples(probe, apart):
        for candidate in hypotheses(sample, tolerance):
            if sample is not probe and -probe.base.ndim in (*candidate.axes, *candidate.grid):
                continue  # of rows, which are fewer here
            residual = residual_of(candidate, sample, apart)
            if residual <= tolerance and sample is not probe:
                residual = residual_of(candidate, probe, apart)
            if residual <= tolerance:
                return Verdict(candidate, residual, silent=silent)
            best = min(best, residual)
    reason = f"no structured representation fits (best relative residual {best:.1e})"
    filled = (
        axis for axis in silent if -axis < probe.base.ndim and _fits_where_not_zero(probe, sizes, axis, tolerance)
    )
    reason = OWN_PHASES if _turn_by_own_phases(probe, tolerance) else reason
    return Verdict(None, best, reason, silent, next(filled, None))


def _fits_where_not_zero(probe: TensorProbe, sizes: Tensor, axis: int, tolerance: float) -> bool:
    """Tell whether the entries along an axis that are not 0 in all runs have a type by themselves."""
    kept = sizes.movedim(axis, 0).flatten(1).any(dim=1).nonzero()[:, 0]
    values = tuple(value.index_select(axis, kept) for value in probe.values)
    return infer_type(TensorProbe(probe.elements, values), tolerance).type is not None


def _turn_by_own_phases(probe: TensorProbe, tolerance: float) -> bool:
    """Tell of complex numbers in real pairs whether each entry of a row is multiplied by one phase in all rows."""
    if probe.base.shape[-1] != 2 or probe.base.ndim < 3 or len(probe.base) < 2:
        return False
    base, *moved = (as_numbers(value).flatten(1) for value in (probe.base, *probe.checks()[1]))
    sizes, largest_entry = base.abs().square().sum(0), float(base.abs().max())
    phases = [torch.where(sizes > 0, (base.conj() * each).sum(0) / sizes, 1) for each in moved]
    return all(
        float((each - phase * base).abs().max()) <= tolerance * largest_entry
        and float((phase.abs() - 1).abs().max()) <= tolerance
        for each, phase in zip(moved, phases, strict=True)
    )


def _samples(probe: TensorProbe, apart: tuple[int, ...]) -> list[TensorProbe]:
    """Return the tensor, and before it one of a few rows if it has many: what fits those is tried on all."""
    base = probe.base
    rows, others = base.shape[:1], base.shape[1:]
    if base.ndim < 2 or rows[0] <= 2 * FEW_ROWS or rows[0] in others or -base.ndim in apart:
        return [probe]
    chosen = few_positions(rows[0])
    return [TensorProbe(probe.elements, tuple(value[chosen] for value in probe.values)), probe]


def _sizes(probe: TensorProbe) -> Tensor | str:
    """Return the largest absolute value of each entry in all runs, or why nothing can be said of a tensor."""
    base = probe.base
    if not base.is_floating_point() or not base.numel():
        return f"{base.dtype} of shape {tuple(base.shape)} holds no features"
    if any(value.shape != base.shape for value in probe.values):
        return "its shape depends on the group element"
    sizes = torch.stack(probe.values).abs().amax(0)
    if not bool(torch.isfinite(sizes).all()):
        return "it holds numbers that are not finite"
    return sizes if bool(sizes.any()) else "it is 0 on the sample batch, so that nothing can be measured"


def hypotheses(probe: TensorProbe, tolerance: float = TOLERANCE) -> Iterator[TensorType]:
    """Yield candidate types of a tensor, simplest first."""
    group = probe.elements.group
    yield from _one_dimensional(group, probe)
    tensors = vector_types(group, probe.base.shape)
    yield from tensors
    for kind in tensors:
        yield from _pseudo_tensor(kind, probe)
    for axis in _axes_by_preference(probe.base):
        yield from (TensorType(rho, (axis,)) for rho in axis_representations(probe, axis, tolerance))
    for axis in _axes_by_preference(probe.base):
        whole = whole_axis_representation(probe, axis)
        if whole is not None:
            yield TensorType(whole, (axis,))
    yield from _complex(probe)
    yield from _on_grids(group, probe)


def _complex(probe: TensorProbe) -> Iterator[TensorType]:
    """Components of complex numbers whose real and imaginary parts have an axis of their own, the last."""
    base = probe.base
    for axis in _axes_by_preference(base[..., 0]) if base.ndim > 2 and base.shape[-1] == 2 else ():
        values = tuple(value.movedim(axis - 1, -2).flatten(-2) for value in probe.values)
        whole = whole_axis_representation(TensorProbe(probe.elements, values), -1)
        if whole is not None:
            yield TensorType(whole, (axis - 1, -1))


def _axes_by_preference(base: Tensor) -> list[int]:
    return [axis for axis in range(-1, -base.ndim - 1, -1) if base.shape[axis] > 1]


def _one_dimensional(group: Group, probe: TensorProbe) -> Iterator[TensorType]:
    """Invariants, and one-dimensional representations that change sign in some components."""
    yield _invariant(group)
    if not len(group.feature_elements):
        return
    signs = [_sign(probe.base, moved) for _, moved in probe.components()]
    if -1.0 in signs and 0.0 not in signs:
        yield TensorType(scalars(group, 1, signs), ())


@lru_cache(maxsize=16)
def _invariant(group: Group) -> TensorType:
    return TensorType(trivial(group, 1), ())


def _sign(base: Tensor, moved: Tensor) -> float:
    """Return s = +-1 with ``moved = s base``, or 0."""
    for sign in (1.0, -1.0):
        if float((moved - sign * base).norm()) <= 1e-3 * float(base.norm()):
            return sign
    return 0.0


@lru_cache(maxsize=256)
def vector_types(group: Group, shape: torch.Size) -> tuple[TensorType, ...]:
    """Return vector indices on axes of the group's dimension; in three dimensions also axial vectors."""
    return tuple(_vector_types(group, shape))


def _vector_types(group: Group, shape: torch.Size) -> Iterator[TensorType]:
    fitting = [axis for axis in range(-len(shape), 0) if shape[axis] == group.vector_dimension]
    for count in range(1, min(len(fitting), MOST_VECTOR_AXES) + 1):
        for chosen in combinations(reversed(fitting), count):
            names = " ".join("vwu"[:count])
            yield TensorType(axes(group, names, {}), tuple(sorted(chosen)))
            if count == 1 and group.name in ("O3", "E3"):
                yield TensorType(irreps(group, "1x1e"), chosen)
    for pair in combinations(range(-len(shape), 0), 2):  # complex vectors: components, and real and imaginary parts
        first, last = (shape[axis] for axis in pair)
        if last == 2 and pair[1] == -1 and first * last == group.vector_dimension:
            yield TensorType(axes(group, "v", {}), pair)


def _pseudo_tensor(kind: TensorType, probe: TensorProbe) -> Iterator[TensorType]:
    """The same indices, multiplied by -1 in some components besides: what a Levi-Civita symbol makes of tensors."""
    data = kind.rho.to_data()
    signs = [_sign(kind.act(g, probe.base), moved) for g, moved in probe.components()] if "axes" in data else []
    if -1.0 in signs and 0.0 not in signs:
        yield TensorType(axes(kind.rho.group, data["axes"], {}, [int(sign) for sign in signs]), kind.axes)


def _on_grids(group: Group, probe: TensorProbe) -> Iterator[TensorType]:
    """Fields on a grid that a finite group maps to itself: the grid is turned back, then the values are judged."""
    if not group.finite or not _maps_grids(group):
        return
    base, d = probe.base, group.vector_dimension
    for grid in combinations(range(-base.ndim, 0), d):
        sizes = {base.shape[axis] for axis in grid}
        if len(sizes) != 1 or sizes == {1}:
            continue
        for frame in frames(group):
            yield from _values_on_grid(group, probe, grid, frame)


def _values_on_grid(
    group: Group, probe: TensorProbe, grid: tuple[int, ...], frame: tuple[tuple[int, ...], ...]
) -> Iterator[TensorType]:
    plain = TensorType(trivial(group, 1), (), grid, frame)
    yield plain
    elements = [torch.eye(group.dimension, dtype=torch.float64), *probe.elements.components, *probe.elements.checks]
    back = tuple(plain.act(torch.linalg.inv(g), value) for g, value in zip(elements, probe.values, strict=True))
    turned = TensorProbe(probe.elements, back)
    for axis in _axes_by_preference(probe.base):
        if axis not in grid:
            yield from (TensorType(rho, (axis,), grid, frame) for rho in axis_representations(turned, axis))


def _maps_grids(group: Group) -> bool:
    rounded = group.feature_elements.round()
    return bool((group.feature_elements - rounded).abs().max() < TOLERANCE)


def frames(group: Group) -> list[tuple[tuple[int, ...], ...]]:
    """Return the signed permutations that give different actions of the group on a grid."""
    d = group.vector_dimension
    found: list[tuple[tuple[int, ...], ...]] = []
    actions: list[Tensor] = []
    for order in permutations(range(d)):
        for signs in product((1, -1), repeat=d):
            frame = torch.zeros(d, d, dtype=torch.float64)
            for row, (column, sign) in enumerate(zip(order, signs, strict=True)):
                frame[row, column] = sign
            action = frame @ group.feature_elements @ frame.mT
            if not any(torch.allclose(action, other) for other in actions):
                actions.append(action)
                found.append(tuple(tuple(int(entry) for entry in row) for row in frame))
    return found
