"""How the features of an op transform, from how its result does: what is 0 on the whole batch has no other way to tell.

An op with weights w is equivariant if ``M_w(g) rho_in(g) = rho_out(g) M_w`` for every w. Of several random w, the
matrices stacked on each other have the rank of the features that any weight reads, and rho_in(g) follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.representations.build import trivial
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference.hypotheses import TOLERANCE, infer_type, residual_of
from surgeon.finding.inference.probe import TensorProbe
from surgeon.finding.measurement import Measurement, perturbed
from surgeon.finding.ops import Op, Structure, random_like
from surgeon.support.trees import equal

ROWS = 61
"""So many random features show the representation; a prime, as no axis of features is likely to be long."""

WIDEST = 512
"""Features up to which all of them are tried one by one."""


def type_by_weights(measurement: Measurement, op: Op, structure: Structure, type_out: TensorType) -> TensorType | str:
    """Return how the features have to transform for an op to be equivariant with all weights.

    Args:
        structure: which axes the op mixes.
        type_out: how its result transforms.

    Returns:
        The type, which holds for the features of the sample batch, too; or why there is none, in words.
    """
    rows = {out: axis for axis, out in structure.rows}
    if type_out.axes and not type_out.grid and all(axis in rows for axis in type_out.axes):
        return TensorType(type_out.rho, tuple(rows[axis] for axis in type_out.axes))  # it treats their entries alike
    calls, probe = measurement.changed.calls(op.module), measurement.changed
    given = [measurement.few(op.module, each[0][0]) for each in calls]
    x = op.read_in(measurement.twin, given[0])
    shared = (axis for axis, out in structure.rows if out in type_out.axes)
    features = tuple(sorted({*structure.mixed_in, *shared} - set(type_out.grid)))
    units = _Units(x, features, type_out)
    if units.count > WIDEST:
        return f"its {units.count} features are too many to try them one by one"
    images = _images(measurement, op, given, units, type_out)
    if isinstance(images, str):
        return images
    base = units.random()
    moved = [units.turned(g, base @ image.mT) for g, image in zip(probe.elements.all(), images, strict=True)]
    verdict = infer_type(TensorProbe(probe.elements, tuple(moved)), apart=features)
    if verdict.type is None:
        return f"{verdict.reason} of its input"
    real = probe.tensor(op.module, lambda arguments, _: op.read_in(measurement.twin, arguments))
    fits = residual_of(verdict.type, real, features) <= measurement.tolerance
    return verdict.type if fits else f"its features do not transform as {verdict.type}, for which its weights are made"


class _Units:
    """Features of which one is not 0, the same in all rows; on a grid, a random field in place of the 1.

    Attributes:
        count: of features.
    """

    def __init__(self, like: Tensor, features: tuple[int, ...], type_out: TensorType) -> None:
        group, grid = type_out.rho.group, type_out.grid
        self._on_grid = TensorType(trivial(group, 1), (), grid, type_out.frame)
        self._features = TensorType(trivial(group, 1), features)
        self._like, self._generator = like, torch.Generator().manual_seed(5)
        field = [n if axis - like.ndim in grid else 1 for axis, n in enumerate(like.shape)]
        self._field = random_like(like.new_empty(field), self._generator) if grid else like.new_ones(field)
        self._narrow = [n if axis - like.ndim in (*features, *grid) else 1 for axis, n in enumerate(like.shape)]
        self.count = self._features.on_rows(like).shape[-1]

    def at(self, g: Tensor) -> list[Tensor]:
        """Return all of them, with the field turned by g."""
        field = self._on_grid.act(g, self._field)
        rows = self._features.on_rows(self._like).shape
        units = torch.eye(self.count, dtype=self._like.dtype)
        return [self._features.off_rows(unit.expand(rows), self._like) * field for unit in units]

    def random(self) -> Tensor:
        """Return random features, with an axis of rows before all others: shape (rows, ..., count)."""
        return self._features.on_rows(random_like(self._like.new_empty(ROWS, *self._narrow), self._generator))

    def turned(self, g: Tensor, rows: Tensor) -> Tensor:
        """Put features back to their axes, and turn the grid."""
        return self._on_grid.act(g, self._features.off_rows(rows, self._like.new_empty(ROWS, *self._narrow)))


def _images(
    measurement: Measurement, op: Op, given: list[Mapping[str, Any]], units: _Units, type_out: TensorType
) -> list[Tensor] | str:
    """Return rho_in(g) of every element that the model was run under, shape (d_in, d_in); or why there is none."""
    elements, twin = measurement.changed.elements.all(), measurement.twin
    firsts, rank = list[Tensor](), 0
    for seed in count(1):  # each random w may read more of the features
        with perturbed(twin, seed, op.module):
            firsts.append(_columns(measurement, op, given[0], units.at(elements[0])))
        stacked, before = torch.cat([_matrix(first) for first in firsts]), rank
        rank = int(torch.linalg.matrix_rank(stacked, rtol=1e-9))
        if rank == units.count:
            break
        if rank == before:
            unread = int((stacked == 0).all(dim=0).sum())
            what = f"no weight reads {unread} of its" if unread else f"all that weights read are {rank} mixtures of its"
            return f"{what} {units.count} features"
    read: list[list[Tensor]] = [[] for _ in elements]
    expected: list[list[Tensor]] = [[] for _ in elements]
    for seed, first in enumerate(firsts, start=1):
        with perturbed(twin, seed, op.module):
            for number, g in enumerate(elements):
                same = not type_out.grid and _same_but(op.argument, given[0], given[number])
                moved = first if same else _columns(measurement, op, given[number], units.at(g))
                read[number].append(_matrix(moved))
                expected[number].append(_matrix(type_out.act(g, first)))
    images = []
    for left, right in zip(map(torch.cat, read), map(torch.cat, expected), strict=True):
        image: Tensor = torch.linalg.lstsq(left, right).solution
        if not bool((left @ image - right).norm() <= TOLERANCE * right.norm()):
            return "with no representation of its features it is equivariant for all weights"
        images.append(image)
    return images


def _matrix(columns: Tensor) -> Tensor:
    return columns.flatten(1).T


def _columns(measurement: Measurement, op: Op, arguments: Mapping[str, Any], units: list[Tensor]) -> Tensor:
    """Return what an op makes of each unit, but for its bias: shape (units, ...)."""
    zero = op.run(measurement.twin, arguments, torch.zeros_like(units[0]))
    return torch.stack([op.run(measurement.twin, arguments, unit) - zero for unit in units])


def _same_but(argument: str, left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Tell whether two calls were given the same, but for one argument."""
    return argument in left and all(equal(left[name], right[name]) for name in left if name != argument)
