"""Find sites by measurement: how the tensors at both ends of a module that is linear transform."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.by_weights import type_by_weights
from surgeon.finding.found import Found, found_between, residual_on_random_features
from surgeon.finding.inference.hypotheses import TOLERANCE, Verdict, infer_type, residual_of
from surgeon.finding.inference.propagate import type_by_use
from surgeon.finding.inference.rows import same_rows
from surgeon.finding.measurement import Measurement, differ, perturbed
from surgeon.finding.ops import Op, Structure, linear_pairs, probe_structure, random_like
from surgeon.plan import Coverage
from surgeon.recording.kernels import Kernel
from surgeon.registry import Refusal
from surgeon.support.modes import default_dtype
from surgeon.support.trees import Place, real_leaves, tensor_at, with_tensor

COLUMNS = 64
"""Of the matrices of two representations, so many are compared at a time."""

CHANGE_PLACES = "the group only exchanges the rows of its features: every linear map is equivariant here"

TRANSLATED = (
    "translations change its features, and representations of {} are of those that they do not change: find sites "
    "under O3 or SO3, with an act that turns about the origin"
)

Pair = tuple[str, Place, Place]
"""An argument, the way to its features, and the way to what they feed in the output."""

Reader = Callable[[Mapping[str, Any], Any], Tensor]
"""Picks a tensor out of a call's arguments and result."""


@dataclass(frozen=True, kw_only=True)
class Silent(Refusal):
    """Why an op gets no branch some of whose features are 0 on the whole sample batch, unless their use tells more.

    Attributes:
        structure: which axes it mixes.
        kernels: of more than one point, that it holds.
        ends: how features and result transform, as far as they are not 0.
        silent: which of the two have features that are 0.
    """

    op: Op
    structure: Structure
    kernels: tuple[Kernel, ...]
    ends: tuple[TensorType | None, TensorType | None]
    silent: tuple[bool, bool]


def measure_module(measurement: Measurement, name: str, kernels: Sequence[Kernel]) -> list[Found] | Refusal:
    """Measure a module as an op.

    Args:
        measurement: runs in which the module's calls were kept.
        kernels: the convolutions that were recorded inside it.

    Returns:
        What was found, one entry per argument that takes a branch; or why it is no equivariant linear op, in words.
    """
    calls = measurement.own.calls(name)
    measurement.changed.calls(name)  # here, where the weights are as they should be
    if not calls[0] or any(len(more) != len(calls[0]) for more in calls):
        if not calls[0]:
            return Refusal("never called on the sample batch", "unused")
        return Refusal("how often it is called depends on the input", "unexplained")
    generator, arguments = torch.Generator().manual_seed(0), measurement.few(name, calls[0][0][0])
    with torch.no_grad(), default_dtype(torch.float64), perturbed(measurement.twin, inside=name):
        pairs = linear_pairs(measurement.twin, name, arguments, generator)
        chosen = pairs if isinstance(pairs, Refusal) else _features(measurement, name, pairs)
        if isinstance(chosen, Refusal):
            return chosen
        ops = [Op(name, *pair) for pair in chosen]
        structures = [structure_of(measurement, op) for op in ops]
    results = [measure_op(measurement, op, each, kernels) for op, each in zip(ops, structures, strict=True)]
    found = [result for result in results if not isinstance(result, Refusal)]
    refusals = (result for result in results if isinstance(result, Refusal))
    # Where all that is known of some parts is that they are invariant, the others have the word.
    return next(refusals, found) if all(each.invariant for each in found) else found


def _features(measurement: Measurement, name: str, pairs: list[Pair]) -> list[Pair] | Refusal:
    """Choose, of the arguments in which an op is linear, those that are its features.

    These are what trained weights have had an influence on already; attributes of edges and nodes come straight from
    the data. Of several in which the op is linear only with the others fixed, one is kept.
    """
    own, changed = (probe.first[name][0][0] for probe in (measurement.own, measurement.changed))
    influenced = {
        (argument, path)
        for argument, value in own.items()
        for path, tensor in real_leaves(value).items()
        if not torch.equal(tensor, tensor_at(changed[argument], path))
    }
    features = [pair for pair in pairs if (pair[0], pair[1]) in influenced]
    if influenced and not features:
        linear = ", ".join(dict.fromkeys(pair[0] for pair in pairs))
        return Refusal(
            f"it is linear in {linear} only, which no weights have acted on, not in its features", "not linear"
        )
    if len(pairs) > 1 and not _jointly_linear(measurement, name, pairs):
        return (features or pairs)[:1]
    return features or pairs


def _jointly_linear(measurement: Measurement, name: str, pairs: list[Pair]) -> bool:
    """Tell whether an op is a sum of maps of its arguments; a product of two is not."""
    generator = torch.Generator().manual_seed(1)
    arguments = measurement.few(name, measurement.own.first[name][0][0])
    twin = measurement.twin
    first, second = (Op(name, *pair) for pair in pairs[:2])
    x, y = (random_like(op.read_in(twin, arguments), generator) for op in (first, second))
    zero = torch.zeros_like(y)

    def at(left: Tensor, right: Tensor) -> Tensor:
        given = {**arguments, second.argument: with_tensor(arguments[second.argument], second.path_in, right)}
        return first.run(twin, given, left)

    with torch.no_grad(), default_dtype(torch.float64):
        none = at(torch.zeros_like(x), zero)
        mixed = at(x, y) - at(x, zero) - at(torch.zeros_like(x), y) + none
        return bool(mixed.norm() <= 1e-8 * (at(x, y) - none).norm())


def structure_of(measurement: Measurement, op: Op) -> Structure | str:
    """Find the rows of a linear op with the weights that the twin has; see :func:`probe_structure`."""
    arguments, twin = measurement.few(op.module, measurement.own.first[op.module][0][0]), measurement.twin
    generator = torch.Generator().manual_seed(2)
    return probe_structure(lambda x: op.run(twin, arguments, x), op.read_in(twin, arguments), generator)


def measure_op(
    measurement: Measurement, op: Op, structure: Structure | str, kernels: Sequence[Kernel]
) -> Found | Refusal:
    """Measure one op: the types at both ends, and its equivariance on random features.

    Args:
        structure: found with perturbed weights.

    Returns:
        What was found, or why it is no equivariant linear op, in words.
    """
    if isinstance(structure, str):
        return Refusal(structure, "unexplained")
    with torch.no_grad(), default_dtype(torch.float64):
        if not structure.mixed_in and not structure.mixed_out:
            return Refusal("it only scales each entry by itself", "not linear")
        kernels = [kernel for kernel in kernels if math.prod(kernel.size) > 1]
        ends = _types_of_ends(measurement, op, structure, kernels)
        if isinstance(ends, Refusal):
            return ends
        found = found_between(measurement, op, structure, kernels, ends)
        if isinstance(found, Found) or found.coverage != "not equivariant":
            return found
        # What was measured may be an invariant subspace of what the op is made for.
        type_in = type_by_weights(measurement, op, structure, ends[1])
        more = found_between(measurement, op, structure, kernels, (type_in, ends[1])) if type_in != ends[0] else found
        return more if isinstance(more, Found) else found


def _types_of_ends(
    measurement: Measurement, op: Op, structure: Structure, kernels: Sequence[Kernel]
) -> tuple[TensorType, TensorType] | Refusal:
    twin = measurement.twin
    mixed_in, mixed_out = structure.mixed_in, structure.mixed_out
    place_in, place_out = (op.argument, op.path_in), (None, op.path_out)

    def read_in(given: Mapping[str, Any], result: Any) -> Tensor:
        return op.read_in(twin, given)

    def read_out(given: Mapping[str, Any], result: Any) -> Tensor:
        return op.read_out(twin, given, result)

    verdict_in = _type_under_both(measurement, op, read_in, place_in, mixed_in)
    verdict_out = _type_under_both(measurement, op, read_out, place_out, mixed_out)
    if _is_silent(verdict_out, mixed_out) and op.node is None:
        verdict_out = _from_sums(measurement, op, mixed_out) or verdict_out
    type_in, type_out = verdict_in.type, verdict_out.type
    silent_in, silent_out = _is_silent(verdict_in, mixed_in), _is_silent(verdict_out, mixed_out)
    if silent_in or silent_out:
        told = None if silent_out or type_out is None else type_by_weights(measurement, op, structure, type_out)
        if isinstance(told, TensorType) and type_out is not None:
            return told, type_out
        why = told if isinstance(told, str) else ""
        return _silent(op, structure, kernels, (type_in, type_out), (silent_in, silent_out), why)
    group = measurement.symmetry.group
    if type_in is None and group.affine:
        still, moved = measurement.translated.tensor(op.module, read_in).values
        if differ(moved, still):
            return Refusal(TRANSLATED.format(group.name), "unexplained")
    if type_in is None and _only_change_places(measurement, op, structure, read_in, read_out):
        return Refusal(CHANGE_PLACES, "invariant")
    if type_in is None and type_out is not None:  # features may fill a part of what they could be, as of real vectors
        told = type_by_weights(measurement, op, structure, type_out)
        if isinstance(told, TensorType):
            return told, type_out
    for end, verdict in (("input", verdict_in), ("output", verdict_out)):
        if verdict.type is None:
            wrong = type_in is not None and _fails_as(measurement, op, type_in, verdict.refuted)
            reason = f"how its {end} transforms is not known: {verdict.reason}"
            return Refusal(reason, "not equivariant" if wrong else "unexplained")
    assert type_in is not None
    assert type_out is not None
    return type_in, type_out


def _only_change_places(
    measurement: Measurement, op: Op, structure: Structure, read_in: Reader, read_out: Reader
) -> bool:
    """Tell whether the group moves features and results together from one row to another, as of several frames."""
    pairs, last = structure.rows, measurement.own.elements.judging_matrices
    for probe, context in ((measurement.changed, _as_perturbed(measurement, op)), (measurement.own, nullcontext())):
        with context:
            ends = [probe.tensor(op.module, read).values for read in (read_in, read_out)]
        axes = ([pair[0] for pair in pairs], [pair[1] for pair in pairs])
        (x, *moved_x), (y, *moved_y) = (
            [_on_rows(value, of_end) for value in (values[0], *values[-len(last) :])]
            for values, of_end in zip(ends, axes, strict=True)
        )
        for moved, result in zip(moved_x, moved_y, strict=True):
            places = same_rows(x, moved, TOLERANCE) if moved.shape == x.shape else None
            if places is None or differ(result[places[0]], y[places[1]], TOLERANCE):
                return False
    return True


def _on_rows(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Put some axes first, as one, and all others behind them, as one."""
    return x.movedim(tuple(axes), tuple(range(len(axes)))).flatten(len(axes)).flatten(0, len(axes) - 1)


def _silent(
    op: Op,
    structure: Structure,
    kernels: Sequence[Kernel],
    ends: tuple[TensorType | None, TensorType | None],
    silent: tuple[bool, bool],
    why: str,
) -> Silent:
    where = " and ".join(end for end, is_silent in zip(("input", "output"), silent, strict=True) if is_silent)
    moves = bool(kernels) and any(end is not None and end.grid for end in ends)
    invariant = all(end is not None and end.is_invariant for end in ends) and not moves
    rest = f", and {why}" if why else ", the others are invariant" if invariant else ""
    reason = f"some features of its {where} are 0 on the whole sample batch and cannot be measured{rest}"
    coverage: Coverage = "invariant" if invariant else "unexplained"
    return Silent(reason, coverage, op=op, structure=structure, kernels=tuple(kernels), ends=ends, silent=silent)


def _fails_as(measurement: Measurement, op: Op, type_in: TensorType, type_out: TensorType | None) -> bool:
    """Tell whether an op of which a result transforms by ``type_out`` with some weights only is what breaks that."""
    residual = None if type_out is None else residual_on_random_features(measurement, op, type_in, type_out)
    return residual is not None and residual > TOLERANCE


def _is_silent(verdict: Verdict, mixed: tuple[int, ...]) -> bool:
    """Tell whether some feature, not only some row, is 0 in all runs."""
    features = {*mixed, verdict.filled, *(() if verdict.type is None else verdict.type.axes)}
    return not features.isdisjoint(verdict.silent)


def _from_sums(measurement: Measurement, op: Op, mixed: tuple[int, ...]) -> Verdict | None:
    """Find the type of a result from what it is added to."""
    calls = measurement.changed.first[op.module]
    probe, index = measurement.changed, list(real_leaves(calls[0][1])).index(op.path_out)
    return None if probe.recording is None else type_by_use(probe.recording, probe.sums, op.module, index, mixed)


def _type_under_both(
    measurement: Measurement, op: Op, read: Reader, place: Hashable, mixed: tuple[int, ...]
) -> Verdict:
    """Infer a type from the runs with perturbed weights; it has to hold with the model's own, in every call.

    What the op mixes are features, each of which has to transform as the type says, however small it is.
    """
    name, changed = op.module, measurement.changed
    place = place if op.node is None else None
    with _as_perturbed(measurement, op):
        tensors = [changed.tensor(name, read, call, place) for call in range(len(changed.first[name]))]
    verdict = infer_type(tensors[0], measurement.tolerance, mixed)
    if verdict.type is None:
        return verdict
    tensors += [measurement.own.tensor(name, read, call, place) for call in range(len(tensors))]
    deepest = max((-axis for axis in (*verdict.type.axes, *verdict.type.grid, *mixed)), default=0)
    for index, tensor in enumerate(tensors[1:], start=1):
        if tensor.base.ndim < deepest:
            return Verdict(None, float("inf"), "its shape is not the same in all calls")
        residual = residual_of(verdict.type, tensor, mixed)
        if not residual <= measurement.tolerance:
            where = "in another call" if index < len(tensors) // 2 else "with other weights"
            reason = f"{verdict.type} does not hold {where} (relative residual {residual:.1e})"
            return Verdict(None, residual, reason, refuted=verdict.type)
    return verdict


def _as_perturbed(measurement: Measurement, op: Op) -> AbstractContextManager[None]:
    """What an op inside a forward received is computed anew, with the weights of the runs in question."""
    return perturbed(measurement.twin, inside=op.module) if op.node is not None else nullcontext()


def same_action(left: Representation, right: Representation, elements: Tensor) -> bool:
    """Tell whether two representations of one group are the same matrices."""
    if left.dimension != right.dimension:
        return False
    if left.blocks == right.blocks:
        return True
    actions = left.action(elements), right.action(elements)
    for chosen in torch.split(torch.arange(left.dimension), COLUMNS):
        columns = torch.zeros(left.dimension, len(chosen), dtype=torch.float64)
        columns[chosen, torch.arange(len(chosen))] = 1
        one, other = (action.left(columns) for action in actions)
        if not torch.allclose(one, other, atol=1e-6):
            return False
    return True
