"""Fold what was found by measurement: ops that mix channels and treat every component of a vector or tensor alike.

Such an op computes ``y[.., m, o] = sum_i A[o, i] x[.., m, i]`` with a matrix of its own, as ``nn.Linear`` does on the
last axis. So its weights can produce the same A for every component, and of a branch W they take up
``A[o, i] = (1/d) sum_m W[(m, o), (m, i)]``, the mean over the d components.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.intertwiners import FoldMap, WeightEntries
from surgeon.errors import GroupError, PlanError
from surgeon.finding.measured_ops import Found
from surgeon.finding.measurement import Measurement
from surgeon.finding.ops import random_like
from surgeon.finding.usage import further_arguments
from surgeon.plan import Site
from surgeon.support.modes import default_dtype

AGREEMENT = 1e-9
"""Largest relative difference in float64 between what an op computes and the product with its matrix."""


def with_channel_fold(site: Site, found: Found, measurement: Measurement, tied: Collection[str]) -> Site:
    """Return a measured site with what is needed to fold it, if its op multiplies channels by a matrix of its own.

    Args:
        site: the site that was found.
        found: the op and its types.
        measurement: the runs that it was found in.
        tied: modules outside the op that own its weights as well.
    """
    parameter = _matrix_on_channels(measurement, found)
    if parameter is None:
        return site
    if tied:
        why = f"its weights are tied to {', '.join(sorted(tied))}, which folding would change too"
        return replace(site, fold_note=f"not foldable: {why}")
    site = replace(site, fold={"parameter": parameter}, fold_note="")
    site = replace(site, fold_while=further_arguments(site, _calls(measurement, site.name)))
    own = channel_map(measurement.twin.get_submodule(site.name), site)
    try:
        return replace(site, fold_note=own.coverage(found.type_out.rho, found.type_in.rho))
    except GroupError:  # no direct sum of irreps, so that intertwiners are not counted
        return replace(site, fold_note="its weights reach the maps of channels alone")


def channel_map(op: nn.Module, site: Site) -> FoldMap:
    """Return which intertwiners the matrix that a site names can produce: A, the same for every component.

    Args:
        op: the module.
        site: found by measurement; its features have their channels on the last axis, which varies fastest in W.

    Raises:
        PlanError: if the op has no such matrix, or it does not fit the shape of W.
    """
    name = str((site.fold or {}).get("parameter"))
    weight = dict(op.named_parameters(recurse=False)).get(name)
    d = 0 if weight is None or weight.ndim != 2 else site.shape[0] // weight.shape[0]
    if weight is None or site.shape != tuple(d * size for size in weight.shape):
        raise PlanError(
            f"expected {site.name!r} to own a matrix {name!r} that fits W of shape {site.shape}, but "
            f"{type(op).__name__} does not: the plan was made for another model, make a new one with `surgeon inspect`"
        )
    n_out, n_in = weight.shape
    rows, columns = (torch.arange(n)[:, None] + n * torch.arange(d) for n in (n_out, n_in))
    position = torch.arange(n_out * n_in)
    ones = torch.ones(len(position), dtype=torch.float64)
    entries = WeightEntries(rows, columns, position, position // n_in, position % n_in, ones)
    return FoldMap(name, {"channels": entries}, (d * n_out, d * n_in))


def _matrix_on_channels(measurement: Measurement, found: Found) -> str | None:
    """Return the name of the matrix that an op multiplies the last axis with; None if it does something else.

    The op is run with another matrix: the result has to be the product with it, and the offset the same as before, in
    every call of the sample batch.
    """
    op, twin = found.op, measurement.twin
    if (
        op.node is not None
        or found.convolution is not None
        or (found.type_in.axes[-1], found.type_out.axes[-1]) != (-1, -1)
    ):
        return None
    own = twin.get_submodule(op.module).named_parameters(recurse=False)
    matrices = {name: weight for name, weight in own if weight.ndim == 2}
    if len(matrices) != 1:
        return None
    name, weight = next(iter(matrices.items()))
    calls = _calls(measurement, op.module)
    return name if all(_multiplies(found, twin, weight, arguments) for arguments in calls) else None


def _multiplies(found: Found, twin: nn.Module, weight: Tensor, arguments: Mapping[str, Any]) -> bool:
    """Tell whether an op, given these arguments, multiplies the last axis by a matrix and does no more with it."""
    op, generator = found.op, torch.Generator().manual_seed(5)
    x = random_like(op.read_in(twin, arguments), generator)
    zero, other = torch.zeros_like(x), random_like(weight, generator)
    if not _divides(found, weight, x):
        return False
    with torch.no_grad(), default_dtype(torch.float64):
        offset = op.run(twin, arguments, zero)
        with _holding(weight, other):
            after, result = op.run(twin, arguments, zero), op.run(twin, arguments, x) - offset
    expected = x @ other.T
    close = result.shape == expected.shape and bool((result - expected).norm() <= AGREEMENT * expected.norm())
    return close and torch.equal(after, offset)


def _calls(measurement: Measurement, name: str) -> list[Mapping[str, Any]]:
    """Return the arguments by name of a module's calls on the sample batch."""
    return [arguments for arguments, _ in measurement.own.calls[name][0]]


def _divides(found: Found, weight: Tensor, x: Tensor) -> bool:
    """Tell whether W has one block of the matrix's shape per pair of components."""
    d_out, d_in = found.type_out.rho.dimension, found.type_in.rho.dimension
    n_out, n_in = weight.shape
    return n_in == x.shape[-1] and d_in % n_in == 0 and d_out == d_in // n_in * n_out


@contextmanager
def _holding(weight: Tensor, values: Tensor) -> Iterator[None]:
    """Give a parameter other values while the context is open, in place."""
    before = weight.detach().clone()
    try:
        weight.copy_(values)
        yield
    finally:
        weight.copy_(before)
