"""Whether what is invariant on the sample batch is invariant to the rest of the model, too.

Features can lie in an invariant subspace of a larger representation, such as multiples of the identity matrix among
tensors of rank 2. Then not every linear map of them is equivariant, although nothing that was measured transforms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group, GroupElement
from surgeon.algebra.representations.build import irreps
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.annotated_ops import UNCHECKED
from surgeon.finding.by_weights import type_by_weights
from surgeon.finding.forms import LinearForm
from surgeon.finding.found import Found, found_between
from surgeon.finding.inference.axis import THREE_DIMENSIONAL
from surgeon.finding.inference.hypotheses import TOLERANCE, residual_of, vector_types
from surgeon.finding.inference.probe import TensorProbe
from surgeon.finding.measured_ops import Silent
from surgeon.finding.measurement import OUTPUT_TOLERANCE, Measurement, perturbed
from surgeon.finding.ops import Op, Structure, probe_structure, random_like
from surgeon.plan import Site
from surgeon.recording.record import unchanged
from surgeon.registry import Refusal
from surgeon.support.modes import default_dtype
from surgeon.support.trees import as_pairs, map_tensors, tensors_in

WORSE = 10.0
"""Factor by which the model's equivariance error may grow before a claim counts as refuted."""

RANK = 8
"""Of the random maps that are tried: all of them are held at once, and full ones would be as large as the weights."""

NOT_CHECKED = Refusal(UNCHECKED.format("on the sample batch"), "invariant")


Claim = Found | Silent
"""An op between what looks invariant, or one of which some features are 0."""


def check_claims(
    measurement: Measurement, claims: Sequence[Claim], sites: Sequence[Site] = ()
) -> list[Found | Refusal | None]:
    """Tell which results that look invariant may be replaced by any invariants without breaking the model.

    A constant random tensor, the same under every group element, and what a random linear map makes of the features
    are added to all of them in one run with perturbed weights. Where the model is less equivariant than before, the
    derivative of its error by the size of each addition tells which it is, and by that of tensors that transform, how
    the rest of the model takes the result. What follows is tried out in one run each. So there are at most four runs
    of the model under the identity and under an element of each component, however many claims there are.

    Args:
        claims: ops between invariants, and those whose result is partly 0.
        sites: of the model, as whose features and results the rest of the model may take a result.

    Returns:
        For each claim, in order, None if any invariants would do; else the op with the representation that the rest of
        the model takes its result for, or why there is none, or that the model cannot tell.
    """
    with default_dtype(torch.float64):
        before = max(measurement.changed.errors().values(), default=float("inf"))
    if not claims or not measurement.errors or before > OUTPUT_TOLERANCE:
        return [NOT_CHECKED] * len(claims)
    limit, free = max(OUTPUT_TOLERANCE, WORSE * before), [_free(found) for found in claims]
    if all(free) and _error(measurement, [each for own in free for each in own]) <= limit:
        return [None] * len(claims)
    known = _types_of(sites)
    typed = [_typed(measurement, found, known) for found in claims]
    additions = [each for own in (*free, *typed) for each in own]
    slopes = _slopes(measurement, additions)
    if slopes is None:
        return [NOT_CHECKED] * len(claims)
    fitting = {id(each) for each, slope in zip(additions, slopes, strict=True) if slope <= limit}
    holds = [bool(own) and all(id(each) in fitting for each in own) for own in free]
    taken = [next((each for each in own if id(each) in fitting), None) for own in typed]
    held = [each for own, holding in zip(free, holds, strict=True) if holding for each in own]
    used = [each for each, holding in zip(taken, holds, strict=True) if not holding and each is not None]
    held_fits, used_fits = (not chosen or _error(measurement, chosen) <= limit for chosen in (held, used))

    def answer(found: Claim, holding: bool, addition: _Addition | None) -> Found | Refusal | None:
        if holding:
            return None if held_fits else NOT_CHECKED
        return _by_use(measurement, found, addition) if used_fits or addition is None else NOT_CHECKED

    return [answer(*each) for each in zip(claims, holds, taken, strict=True)]


def _free(claim: Claim) -> list[_Addition]:
    """Return what may be added to a result if any invariants would do: a constant, and what a branch would add."""
    if isinstance(claim, Silent):
        kind = claim.ends[1] if claim.coverage == "invariant" else None
        return [] if kind is None else [_Addition(claim.op, kind)]
    axes_in, axes_out = claim.type_in.axes, claim.type_out.axes
    form = LinearForm(axes_in, axes_out) if axes_in and axes_out else None  # else there is no axis to act on
    return [_Addition(claim.op, claim.type_out), *([_Addition(claim.op, claim.type_out, form)] if form else [])]


def _typed(measurement: Measurement, claim: Claim, known: Sequence[TensorType]) -> list[_Addition]:
    """Return one tensor of each type that the rest of the model may take a result for."""
    op, twin, probe = claim.op, measurement.twin, measurement.own
    with torch.no_grad(), default_dtype(torch.float64):
        result = probe.tensor(op.module, lambda given, output: op.read_out(twin, given, output))
    kinds = [
        *_possible_types(measurement.symmetry.group, result.base),
        *(kind for kind in known if _fits(kind, result)),
    ]
    return [_Addition(op, kind) for kind in kinds]


def _types_of(sites: Sequence[Site]) -> list[TensorType]:
    """Return how the features and results of some sites transform."""
    found: dict[TensorType, None] = {}
    for site in sites:
        frame = () if site.convolution is None else site.convolution.frame
        grid = tuple(range(-len(frame), 0))
        ends = ((site.rho_in, site.axes_in), (site.rho_out, site.axes_out))
        found |= dict.fromkeys(TensorType(rho, axes, grid, frame) for rho, axes in ends if not rho.is_trivial)
    return list(found)


def _fits(kind: TensorType, result: TensorProbe) -> bool:
    """Tell whether a result may be of a type: its shape, and what of it is not 0."""
    ends, base = (*kind.axes, *kind.grid), result.base
    if min(ends) < -base.ndim or math.prod(base.shape[axis] for axis in kind.axes) != kind.rho.dimension:
        return False
    return residual_of(kind, result) <= TOLERANCE


def _by_use(measurement: Measurement, claim: Claim, addition: _Addition | None) -> Found | Refusal:
    """Return an op with the representation that its use tells at both ends, or why there is none."""
    what = "partly 0" if isinstance(claim, Silent) else "invariant"
    reason = f"its result is {what} on the sample batch, but what uses it takes it for a tensor of"
    if addition is None:
        return Refusal(f"{reason} some other type", "unexplained")
    unknown = Refusal(f"{reason} type {addition.type}, which its input is not known to be", "unexplained")
    return _retyped(measurement, claim, addition.type) or unknown


def _possible_types(group: Group, y: Tensor) -> Iterator[TensorType]:
    """Vector indices, and all degrees from 0 on along an axis of length 4, 9, 16, ..., as spherical harmonics have."""
    yield from vector_types(group, y.shape)
    for axis in range(-1, -y.ndim - 1, -1):
        degrees = math.isqrt(y.shape[axis])
        if group.name in THREE_DIMENSIONAL and degrees > 1 and degrees**2 == y.shape[axis]:
            labels = "+".join(f"1x{degree}{'eo'[degree % 2]}" for degree in range(degrees))
            yield TensorType(irreps(group, labels), (axis,))


def _retyped(measurement: Measurement, claim: Claim, type_out: TensorType) -> Found | None:
    """Return an op with a result of a type, if its weights tell how its features transform and it is equivariant so."""
    op, twin = claim.op, measurement.twin
    arguments = measurement.few(op.module, measurement.own.first[op.module][0][0])
    with torch.no_grad(), default_dtype(torch.float64):
        if isinstance(claim, Silent):
            structure: Structure | str = claim.structure
        else:
            with perturbed(twin, inside=op.module):
                x, generator = op.read_in(twin, arguments), torch.Generator().manual_seed(2)
                structure = probe_structure(lambda features: op.run(twin, arguments, features), x, generator)
        if isinstance(structure, str):
            return None
        type_in = type_by_weights(measurement, op, structure, type_out)
        kernels = claim.kernels if isinstance(claim, Silent) else ()
        found = found_between(measurement, op, structure, kernels, (type_in, type_out))
    return found if isinstance(found, Found) else None


@dataclass(frozen=True)
class _Addition:
    """What is added to the result of an op: a random tensor that transforms so; with a form, W x in its place."""

    op: Op
    type: TensorType
    form: LinearForm | None = None


class _Adder:
    """Adds s g c or s W x to a result: c and W are drawn in the first run and kept; g is that of the present run."""

    def __init__(self, addition: _Addition, seed: int, size: Tensor | float = 1.0) -> None:
        self.addition, self.size, self.element, self.call = addition, size, torch.empty(0), 0
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: list[Tensor] = []

    def start(self, element: Tensor) -> None:
        """Begin the next run."""
        self.element, self.call = element, 0

    def __call__(self, x: Tensor, result: Tensor) -> Tensor:
        """Return the sum."""
        kind, form = self.addition.type, self.addition.form
        if form is not None:
            if not self.drawn:
                self._draw_weight(x, result, form)
            return result + self.size * form.add(torch.zeros_like(result), self.drawn, x)
        if self.call == len(self.drawn):
            shape = [1 if axis - result.ndim in kind.grid else n for axis, n in enumerate(result.shape)]
            self.drawn.append(_size(result) * random_like(result.new_empty(shape), self.generator))
        constant = self.drawn[self.call].expand(result.shape)
        self.call += 1
        return result + self.size * kind.act(self.element, constant)

    def _draw_weight(self, x: Tensor, result: Tensor, form: LinearForm) -> None:
        d_out, d_in = (math.prod(t.shape[a] for a in axes) for t, axes in ((result, form.axes_out), (x, form.axes_in)))
        rank, scale = min(RANK, d_in, d_out), _size(result) / (_size(x) * math.sqrt(d_in))
        self.drawn.append(scale * random_like(result.new_empty(rank, d_in), self.generator))
        self.drawn.append(random_like(result.new_empty(d_out, rank), self.generator) / math.sqrt(rank))


def _size(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt()) or 1.0


def _judges(measurement: Measurement) -> list[GroupElement]:
    """Return random elements, one of each component that has others; of a finite group every one that judges.

    Two representations that differ do so under almost every element of a component other than the identity's.
    """
    judges, group = measurement.own.elements.judges, measurement.symmetry.group
    if group.finite:
        return judges
    last = {element.component: element for element in judges}
    first = group.component_names[0]
    return [element for name, element in last.items() if name != first or len(last) == 1]


def _runs(measurement: Measurement, adders: Sequence[_Adder]) -> Iterator[Any]:
    """Yield what a model returns under the identity and all that judge, with additions to some results."""
    twin, symmetry = measurement.twin, measurement.symmetry
    with unchanged(twin), ExitStack() as stack:
        for adder in adders:
            stack.enter_context(adder.addition.op.changing(twin, adder))
        for g in (None, *(element.g for element in _judges(measurement))):
            for adder in adders:
                adder.start(torch.eye(symmetry.group.dimension, dtype=torch.float64) if g is None else g)
            with torch.random.fork_rng(devices=[]):
                outputs = symmetry.run(twin, measurement.inputs, g)
            yield outputs


def _error(measurement: Measurement, additions: Sequence[_Addition]) -> float:
    """Return the model's equivariance error, with perturbed weights; infinite if it does not run or is not finite."""
    adders = [_Adder(addition, seed) for seed, addition in enumerate(additions)]
    try:
        with default_dtype(torch.float64), perturbed(measurement.twin):
            outputs = [map_tensors(Tensor.detach, each) for each in _runs(measurement, adders)]
            moved = zip(_judges(measurement), outputs[1:], strict=True)  # act_output creates constants as act does
            return max(measurement.symmetry.errors(outputs[0], moved).values())
    except Exception:  # the model is foreign code, and what it is given here it may never have been given
        return float("inf")


def _slopes(measurement: Measurement, additions: Sequence[_Addition]) -> list[float] | None:
    """Return how fast the model's equivariance error grows with each addition, relative to its output.

    One backward pass through the runs tells all: the derivative by s, at 0, of ``<v, f(g x) - g f(x)>`` for random v.

    Returns:
        The largest over all elements; None if the model cannot be differentiated.
    """
    sizes = torch.zeros(len(additions), dtype=torch.float64).requires_grad_()
    apart = enumerate(zip(additions, sizes.unbind(), strict=True))  # by index each would have a gradient as long as all
    adders = [_Adder(addition, seed, size) for seed, (addition, size) in apart]
    symmetry, generator, worst = measurement.symmetry, torch.Generator().manual_seed(0), torch.zeros(len(additions))
    try:
        with default_dtype(torch.float64), perturbed(measurement.twin), torch.enable_grad():
            runs = _runs(measurement, adders)
            first = next(runs)
            for element, moved in zip(_judges(measurement), runs, strict=True):
                ends = (map(as_pairs, tensors_in(end)) for end in (moved, symmetry.expected(element.g, first)))
                pairs = zip(*ends, strict=True)
                felt = [(one, other) for one, other in pairs if one.is_floating_point() and one.requires_grad]
                size = torch.stack([one.detach().square().sum() for one, _ in felt]).sum().sqrt()
                terms = [((one - other) * random_like(one.detach(), generator)).sum() for one, other in felt]
                (slope,) = torch.autograd.grad(torch.stack(terms).sum(), sizes, retain_graph=True)
                worst = torch.maximum(worst, slope.abs() / size)
    except Exception:  # as above
        return None
    return worst.tolist()
