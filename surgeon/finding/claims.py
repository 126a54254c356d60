"""Whether what is invariant on the sample batch is invariant to the rest of the model, too.

Features can lie in an invariant subspace of a larger representation, such as multiples of the identity matrix among
tensors of rank 2. Then not every linear map of them is equivariant, although nothing that was measured transforms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import irreps
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.forms import LinearForm
from surgeon.finding.inference.hypotheses import TOLERANCE, vector_types
from surgeon.finding.measured_ops import Found, linear_types, residual_on_random_features
from surgeon.finding.measurement import OUTPUT_TOLERANCE, Measurement, perturbed
from surgeon.finding.ops import Op, probe_structure, random_like
from surgeon.recording.record import unchanged
from surgeon.registry import Refusal
from surgeon.support.modes import default_dtype
from surgeon.support.trees import map_tensors

WORSE = 10.0
"""Factor by which the model's equivariance error may grow before a claim counts as refuted."""

Outcome = Literal["holds", "refuted", "unchecked"]


def check_claims(measurement: Measurement, claims: Sequence[Found]) -> list[Outcome]:
    """Tell which results that look invariant may be replaced by any invariants without breaking the model.

    A constant random tensor, the same under every group element, and what a random linear map makes of the features
    are added to all of them in one run with perturbed weights; where the model is less equivariant than before, the
    claims are bisected.

    Args:
        measurement: the runs under the group.
        claims: ops between invariants.

    Returns:
        One outcome per claim, in order; "unchecked" where the model cannot tell.
    """
    with default_dtype(torch.float64):
        before = max(measurement.changed.errors().values(), default=float("inf"))
    outcomes: list[Outcome] = ["unchecked"] * len(claims)
    if not measurement.errors or before > OUTPUT_TOLERANCE:
        return outcomes

    def judge(indices: list[int]) -> None:
        chosen = [claims[index] for index in indices]
        error = _error(measurement, [_Addition(found.op, found.type_out, _branch_form(found)) for found in chosen])
        if error is not None and error <= _limit(before):
            outcome: Outcome = "holds"
        elif len(indices) > 1:
            middle = len(indices) // 2
            judge(indices[:middle])
            judge(indices[middle:])
            return
        else:
            outcome = "unchecked" if error is None else "refuted"
        for index in indices:
            outcomes[index] = outcome

    if claims:
        judge(list(range(len(claims))))
    return outcomes


def _branch_form(found: Found) -> LinearForm | None:
    """Return how a branch would act between invariants; None where there is no axis to act on."""
    axes_in, axes_out = found.type_in.axes, found.type_out.axes
    return LinearForm(axes_in, axes_out) if axes_in and axes_out else None


def _limit(before: float) -> float:
    return max(OUTPUT_TOLERANCE, WORSE * before)


def typed_by_use(measurement: Measurement, found: Found) -> Found | Refusal:
    """Find the representation that the rest of the model takes a result for, by adding a tensor that transforms by it.

    Args:
        measurement: the runs under the group.
        found: an op whose result may not be replaced by any invariants.

    Returns:
        The op with this representation at both ends, or why there is none.
    """
    op, twin = found.op, measurement.twin
    arguments, result = measurement.own.first[op.module][0]
    reason = "its result is invariant on the sample batch, but what uses it takes it for a tensor of"
    for candidate in _possible_types(measurement.symmetry.group, op.read_out(twin, arguments, result)):
        error = _error(measurement, [_Addition(op, candidate)])
        if error is not None and error <= OUTPUT_TOLERANCE:
            unknown = Refusal(f"{reason} type {candidate}, which its input is not known to be", "unexplained")
            return _retyped(measurement, op, candidate) or unknown
    return Refusal(f"{reason} some other type", "unexplained")


def _possible_types(group: Group, y: Tensor) -> Iterator[TensorType]:
    """Vector indices, and all degrees from 0 on along an axis of length 4, 9, 16, ..., as spherical harmonics have."""
    yield from vector_types(group, y)
    for axis in range(-1, -y.ndim - 1, -1):
        degrees = math.isqrt(y.shape[axis])
        if group.name in ("SO3", "O3", "SE3", "E3") and degrees > 1 and degrees**2 == y.shape[axis]:
            labels = "+".join(f"1x{degree}{'eo'[degree % 2]}" for degree in range(degrees))
            yield TensorType(irreps(group, labels), (axis,))


def _retyped(measurement: Measurement, op: Op, type_out: TensorType) -> Found | None:
    """Return an op whose rows transform alike on both sides; None if the axes are not such, or it does not hold."""
    twin, generator = measurement.twin, torch.Generator().manual_seed(2)
    arguments = measurement.own.first[op.module][0][0]
    x = op.read_in(twin, arguments)

    def run(features: Tensor) -> Tensor:
        return op.run(twin, arguments, features)

    with torch.no_grad(), default_dtype(torch.float64):
        with perturbed(twin, inside=op.module):
            structure = probe_structure(run, x, generator)
        if isinstance(structure, str):
            return None
        inputs = {out: axis for axis, out in structure.rows}
        if any(axis not in inputs for axis in type_out.axes):
            return None
        type_in = TensorType(type_out.rho, tuple(inputs[axis] for axis in type_out.axes))
        shaped = linear_types(x, run, structure, (type_in, type_out))
        if isinstance(shaped, str):
            return None
        residual = residual_on_random_features(measurement, op, *shaped[:2])
    if residual is None or residual > TOLERANCE:
        return None
    return Found(op, *shaped, residual)


@dataclass(frozen=True)
class _Addition:
    """A random tensor that is added to the result of an op, and how it transforms; with a form, a linear map too."""

    op: Op
    type: TensorType
    form: LinearForm | None = None


class _Adder:
    """Adds g c and W x to a result: c and W are drawn in the first run and kept; g is that of the present run."""

    def __init__(self, addition: _Addition, seed: int) -> None:
        self.addition, self.element, self.call = addition, torch.empty(0), 0
        self.generator = torch.Generator().manual_seed(seed)
        self.constants: list[Tensor] = []
        self.weight: Tensor | None = None

    def start(self, element: Tensor) -> None:
        """Begin the next run."""
        self.element, self.call = element, 0

    def __call__(self, x: Tensor, result: Tensor) -> Tensor:
        """Return the sum."""
        kind, form = self.addition.type, self.addition.form
        if self.call == len(self.constants):
            shape = [1 if axis - result.ndim in kind.grid else n for axis, n in enumerate(result.shape)]
            self.constants.append(_size(result) * random_like(result.new_empty(shape), self.generator))
        constant = self.constants[self.call].expand(result.shape)
        self.call += 1
        changed = result + kind.act(self.element, constant)
        if form is None:
            return changed
        if self.weight is None:
            d_out, d_in = (
                math.prod(t.shape[a] for a in axes) for t, axes in ((result, form.axes_out), (x, form.axes_in))
            )
            scale = _size(result) / (_size(x) * math.sqrt(d_in))
            self.weight = scale * random_like(result.new_empty(d_out, d_in), self.generator)
        return form.add(changed, (self.weight,), x)


def _size(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt()) or 1.0


def _error(measurement: Measurement, additions: Sequence[_Addition]) -> float | None:
    """Return the model's equivariance error, with perturbed weights; None if it does not run or is not finite."""
    twin, symmetry, outputs = measurement.twin, measurement.symmetry, []
    judges = measurement.own.elements.judges
    adders = [_Adder(addition, seed) for seed, addition in enumerate(additions)]
    try:
        with default_dtype(torch.float64), perturbed(twin), unchanged(twin), ExitStack() as stack:
            for adder in adders:
                stack.enter_context(adder.addition.op.changing(twin, adder))
            for g in (None, *(element.g for element in judges)):
                for adder in adders:
                    adder.start(torch.eye(symmetry.group.dimension, dtype=torch.float64) if g is None else g)
                with torch.random.fork_rng(devices=[]):
                    outputs.append(map_tensors(Tensor.detach, symmetry.run(twin, measurement.inputs, g)))
        with default_dtype(torch.float64):  # act_output creates constants as act does
            errors = symmetry.errors(outputs[0], zip(judges, outputs[1:], strict=True))
    except Exception:  # the model is foreign code, and what it is given here it may never have been given
        return None
    worst = max(errors.values())
    return worst if worst < float("inf") else None
