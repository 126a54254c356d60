"""What of a branch an op's own weights can take in: the op is run with other weights, and nothing else need be known.

The matrix of an op is read off its results for unit features. A plan holds what that needs beside the model: the names
of the weights, the shape of the features, and a few rows of what else the op is given.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.folding import FoldMap, folding_parts
from surgeon.algebra.probing import probed_matrix
from surgeon.errors import PlanError, first_line
from surgeon.finding.forms import form_of
from surgeon.finding.inside_forward import inside_forward
from surgeon.finding.ops import call_forward
from surgeon.finding.raw_ops import raw_op_at
from surgeon.finding.sample_calls import NotFoldableError, sample_calls
from surgeon.finding.unit_features import Wrap, matrices_of, tried_copies
from surgeon.plan import Site
from surgeon.support.copies import cast_to_double, copied
from surgeon.support.modes import default_dtype, renew, set_training
from surgeon.support.modules import own_weight
from surgeon.support.trees import as_pairs, fresh_copy, map_tensors, tensor_at, with_tensor

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1e-1}
"""Largest relative deviation that an op of a dtype may show.

In float64 it allows for constants that were made in float32, as those of a model that was built so and then converted.
"""

MOST_ENTRIES = 30_000_000
"""Entries of an op's matrices up to which it is run with other weights."""

MOST_PRODUCTS = 10**7
"""Products of a weight and a feature in a run up to which a plan is made with all copies of an irrep."""

MOST_FOLDED = 4 * 10**9
"""The same up to which an op is folded at all."""


@dataclass(frozen=True)
class Tried:
    """What the weights of an op take in.

    Attributes:
        parameters: names of those that this changes.
        note: how much of all intertwiners they reach, in words; empty if all.
    """

    fold_map: FoldMap
    parameters: list[str]
    note: str


Known = dict[Hashable, Tried]
"""What reaches all intertwiners, by what its op looks like."""


def not_foldable(site: Site, why: str) -> Site:
    """Return a site that cannot be folded, with the reason."""
    return dataclasses.replace(site, fold=None, fold_while="", fold_note=f"not foldable: {why}")


def with_fold(
    site: Site,
    op: nn.Module,
    calls: Sequence[Mapping[str, Any]] | None,
    tied: Collection[str],
    wrap: Wrap | None = None,
    known: Known | None = None,
) -> Site:
    """Return a site with what is needed to fold it, or why it cannot be folded.

    Args:
        calls: arguments by name of each recorded call; None without a recorded run.
        tied: modules outside the op that own its weights as well.
        wrap: for features inside an object, how to make that.
        known: fold maps of other ops of the model, tried out before one is found anew; what is found is added.
    """
    if tied:
        return not_foldable(site, f"its weights are tied to {', '.join(sorted(tied))}, which folding would change too")
    known = {} if known is None else known
    before, complaint = [each.fold_map for each in known.values()], ""
    for tried in (known, Known()):
        try:
            own, found = _found(site, op, calls, wrap, tried)
        except NotFoldableError as error:
            return not_foldable(site, str(error))
        chosen = calls or () if found.fold_while else (calls or ())[:1]
        complaints = _complaints(op, found, chosen, own, torch.Generator().manual_seed(0))
        complaint = next(filter(None, complaints), "")
        if not complaint:
            return found
        if not any(own is each for each in before):
            break
    return not_foldable(site, complaint)


def _looks(site: Site, op: nn.Module) -> Hashable:
    """Return what two ops have in common whose weights may reach the same intertwiners."""
    weights = tuple((name, weight.shape, weight.requires_grad) for name, weight in op.named_parameters())
    ends = (site.rho_in, site.axes_in, site.path_in, site.rho_out, site.axes_out, site.path_out)
    return type(op), weights, site.argument, site.node, site.parameters, ends, json.dumps(site.fold)


def fold_map_at(op: nn.Module, site: Site, wrap: Wrap | None = None) -> FoldMap:
    """Return what the weights that a plan names can take in.

    Args:
        site: with fold data.
        wrap: for features inside an object, how to make that.

    Raises:
        PlanError: if the op cannot be run as the plan says, or its weights do not enter as it says.
    """
    try:
        assert site.fold is not None
        own = _fold_map(op, site, site.fold, wrap)
        if own.rank:
            return own
        problem = "no change of them does what it needs"
    except (NotFoldableError, LookupError, TypeError, ValueError, AttributeError) as error:
        problem = first_line(error)
    raise PlanError(
        f"expected {site.key!r} to fold into {_names(site.fold)} of {type(op).__name__}, but {problem}: the plan was "
        "made for another model, make a new one with `surgeon inspect`, or set fold to null"
    )


def _names(fold: Any) -> str:
    names = fold.get("parameters") if isinstance(fold, Mapping) else None
    return ", ".join(map(repr, names)) if isinstance(names, Sequence) and names else "its weights"


def _found(
    site: Site, op: nn.Module, calls: Sequence[Mapping[str, Any]] | None, wrap: Wrap | None, known: Known
) -> tuple[FoldMap, Site]:
    """Try the constants of what else the op is given, and then its rows themselves; keep what folds more.

    What reaches all intertwiners is all there is, so that the next op that looks alike can be tried out with it.
    """
    weights = op.named_parameters()
    names = [name for name, weight in weights if weight.requires_grad and as_pairs(weight).is_floating_point()]
    names = [name for name in names if site.node is None or name in site.parameters]
    if not names:
        raise NotFoldableError("its weights are frozen")
    best: tuple[FoldMap, Site] | None = None
    for call, holds_while in sample_calls(site, op, calls, wrap is not None):
        fold = {"parameters": names, **call}
        trial = dataclasses.replace(site, fold=fold)
        looks = _looks(trial, op)
        own = known.get(looks) or _tried(trial, op, wrap)
        if own.fold_map.rank and (best is None or own.fold_map.rank > best[0].rank):
            fold["parameters"] = [*own.parameters]
            best = own.fold_map, dataclasses.replace(site, fold=fold, fold_while=holds_while, fold_note=own.note)
            if not own.note:
                known[looks] = own
                break
    if best is None:
        also = " and does the same in every row of what else it is given" if calls and len(calls[0]) > 1 else ""
        raise NotFoldableError(f"no change of its weights changes its linear map alone{also}")
    best[0].holds_while = best[1].fold_while
    return best


def _tried(site: Site, op: nn.Module, wrap: Wrap | None) -> Tried:
    """Run the op of a site, which has fold data, with other weights."""
    assert site.fold is not None
    most, names = _most(site, op), site.fold["parameters"]
    own = _fold_map(op, site, site.fold, wrap, most)
    changed = [name for name in names if own.changes(name)] if most is None else names
    return Tried(own, changed, _coverage(own, site, most) if own.rank else "")


def _most(site: Site, op: nn.Module) -> int | None:
    """Return how many copies of each irrep a plan is made with, at least two; None for all of them.

    Whether the others fold as well is seen when the fold is made.

    Raises:
        NotFoldableError: if a fold would take too long.
    """
    assert site.fold is not None
    copies = tried_copies(site) if site.convolution is None else None
    if copies is None:
        return None
    rows = math.prod(site.fold["shape"]) // site.shape[1]
    products = rows * sum(weight.numel() for weight in op.parameters())
    most, largest = max(2, MOST_PRODUCTS // products), max((len(own) for _, own in copies.values()), default=0)
    if products * largest > MOST_FOLDED:
        raise NotFoldableError(
            f"running it for every copy of an irrep takes {products * largest:.0e} products with {rows} rows of what "
            "else it is given, which is too much"
        )
    return most if largest > most else None


def _coverage(own: FoldMap, site: Site, most: int | None) -> str:
    """Say how much of the space of intertwiners the op's weights reach; empty if all of it."""
    copies = tried_copies(site, most) if site.convolution is None else None
    if copies is None:
        return f"its weights reach {own.rank} dimensions of intertwiners; of how many is not counted"
    total = sum(len(rows) * len(columns) for rows, columns in copies.values())
    if own.rank == total:
        return ""
    of = "" if most is None else f" from {most} copies of each irrep"
    return f"its weights reach {own.rank} of {total} intertwiner dimensions{of}"


def _fold_map(
    op: nn.Module, site: Site, fold: Mapping[str, Any], wrap: Wrap | None, most: int | None = None
) -> FoldMap:
    """Run an op with other weights, in training mode (in eval mode some libraries keep what they make of them)."""
    names = list(fold["parameters"])
    try:
        twin = cast_to_double(copied(op).cpu()).requires_grad_(False)
    except Exception as error:
        raise NotFoldableError(f"it cannot be copied ({first_line(error)})") from error
    own = {name: own_weight(twin, name) for name in names}
    weights = [as_pairs(weight) for weight in own.values()]
    sizes = [weight.numel() for weight in weights]
    problem = "its linear map is not linear in its weights, or too many of them meet in each entry"
    for training in (True, False):
        set_training(twin, training)
        try:
            with torch.no_grad(), default_dtype(torch.float64):
                _put(weights, torch.randn(sum(sizes), generator=torch.Generator().manual_seed(0)))
                matrices = matrices_of(twin, site, fold, wrap, most)
                shape = matrices().shape
                if shape.numel() > MOST_ENTRIES:
                    raise NotFoldableError(f"its matrices have {shape.numel()} entries, too many to run it for each")
                jacobian = probed_matrix(partial(_run, weights, matrices), sizes)
        except NotFoldableError:
            raise
        except Exception as error:  # the op is foreign code
            problem = f"it could not be run with other weights ({first_line(error)})"
            continue
        if jacobian is not None:
            shapes = {name: weight.shape for name, weight in zip(names, weights, strict=True)}
            pairs = {name for name, weight in own.items() if weight.is_complex()}
            parts = folding_parts(jacobian, shape[0], matrices.entries)
            return FoldMap(site.shape, shapes, parts, site.fold_while, pairs)
    raise NotFoldableError(problem)


def _put(weights: Sequence[Tensor], values: Tensor) -> None:
    for weight, value in zip(weights, torch.split(values, [weight.numel() for weight in weights]), strict=True):
        weight.copy_(value.view_as(weight))


def _run(weights: Sequence[Tensor], matrices: Callable[[], Tensor], values: Tensor) -> Tensor:
    _put(weights, values)
    return matrices().flatten()


def fold_complaint(
    op: nn.Module, site: Site, call: Mapping[str, Any], fold_map: FoldMap, generator: torch.Generator
) -> str:
    """Return why changed weights do not do what ``fold_map`` says in a call of the op; empty if they do.

    A caller may pass the weights, or another argument may be no longer what it was. The largest entry counts, so that
    one row out of many is seen.
    """
    return next(_complaints(op, site, [call], fold_map, generator))


def _complaints(
    op: nn.Module, site: Site, calls: Sequence[Mapping[str, Any]], fold_map: FoldMap, generator: torch.Generator
) -> Iterator[str]:
    """Yield the complaint about each call, empty for none."""
    twin: nn.Module | None = None
    for call in calls:
        try:
            twin = twin or copied(op)
            before = [weight.detach().clone() for weight in twin.parameters()]
            with torch.no_grad():
                residual, limit = _fold_residual(twin, site, call, fold_map, generator)
                if call is not calls[-1]:
                    for weight, value in zip(twin.parameters(), before, strict=True):
                        weight.copy_(value)
                    renew(twin)
        except Exception as error:  # the op is foreign code
            yield f"it could not be run with changed weights ({first_line(error)})"
            return
        much = f"changed weights do not act as they do alone, relative deviation {residual:.1e}"
        yield "" if residual <= limit else much


def _fold_residual(
    twin: nn.Module, site: Site, call: Mapping[str, Any], fold_map: FoldMap, generator: torch.Generator
) -> tuple[float, float]:
    if site.node is not None:
        return _raw_residual(twin, site, call, fold_map, generator)
    real = tensor_at(call[site.argument], site.path_in)
    x = torch.randn(real.shape, generator=generator).to(real)
    weight = fold_map.project(torch.randn(fold_map.shape, generator=generator).to(x))
    arguments = {**call, site.argument: with_tensor(call[site.argument], site.path_in, x)}
    before = tensor_at(call_forward(twin, arguments), site.path_out)
    _change(twin, fold_map, weight)
    after = tensor_at(call_forward(twin, arguments), site.path_out)
    expected = form_of(site).add(torch.zeros_like(before), (weight,), x)
    if not expected.numel():
        return 0.0, 0.0
    scale = float(expected.abs().max()) + float(before.abs().max()) + torch.finfo(x.dtype).tiny
    return float((after - before - expected).abs().max()) / scale, TOLERANCE.get(x.dtype, 1e-4)


def _change(op: nn.Module, fold_map: FoldMap, weight: Tensor) -> None:
    for name, change in fold_map.weight_change(weight).items():
        op.get_parameter(name).add_(change)
    renew(op)


def _raw_residual(
    op: nn.Module, site: Site, call: Mapping[str, Any], fold_map: FoldMap, generator: torch.Generator
) -> tuple[float, float]:
    """Compare the whole forward with changed weights with one in which the op's result alone is changed."""
    inside, raw = inside_forward(op, site.node or ""), raw_op_at(site.node or "", site.parameters)
    like = as_pairs(op.get_parameter(next(iter(fold_map.parameters))))
    weight = torch.randn(fold_map.shape, generator=generator).to(like)
    produced = fold_map.project(weight)
    with inside.changing(raw, lambda x, y: form_of(site).add(y, (produced,), x)):
        expected = _differentiably(op, call)
    _change(op, fold_map, weight)
    return relative_difference(_differentiably(op, call), expected), TOLERANCE.get(like.dtype, 1e-4)


def _differentiably(op: nn.Module, call: Mapping[str, Any]) -> Any:
    """Run a forward that may differentiate."""
    with torch.enable_grad():
        return map_tensors(Tensor.detach, call_forward(op, map_tensors(fresh_copy, call)))
