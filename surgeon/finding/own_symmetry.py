"""Whether a group is the model's own symmetry: each component is judged by the error that the model has anyway.

Networks that are equivariant only approximately, by design, are judged by the exactly equivariant one beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry, equivariance_error
from surgeon.algebra.groups.core import OTHER_ELEMENTS, Group
from surgeon.algebra.groups.named import rotations_of
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon.finding.measurement import OUTPUT_TOLERANCE, Measurement
from surgeon.registry import Proposal
from surgeon.support.copies import copied
from surgeon.support.trees import tensors_in

NOT_A_SYMMETRY = 0.02
"""Relative error above which a group is not the model's symmetry; approximate non-linearities stay below."""

TIMES = 10.0
"""How many times its error under rotations a model may have under reflections, inversions or reversal of time."""

ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-4}
"""Relative errors up to this size are none; in float64 it allows for constants that were made in float32."""

HALF = 1e-2
"""The same for half precision."""

ELEMENTS = 3
"""Random elements per component, where float64 cannot be run."""


@dataclass(frozen=True)
class Complaint:
    """Why a group is not the model's symmetry.

    Attributes:
        words: what was expected, what was measured, and what to do.
        component: of the group, under which the model's output does not transform.
        error: relative, under that component.
        reference: the same under the group's rotations.
        holds: the group of these, if the output transforms under them; None if not, or there are no others.
    """

    words: str
    component: str
    error: float
    reference: float
    holds: str | None = None

    @property
    def going_on(self) -> str:
        """Say that the smaller group is taken."""
        return (
            f"the model is not symmetric under {self.component} (error {self.error:.1e} against {self.reference:.1e} "
            f"under rotations): going on under {self.holds}"
        )


def symmetry_complaint(
    model: nn.Module,
    symmetry: Symmetry,
    inputs: tuple[Any, ...],
    measurement: Measurement | None,
    proposals: Mapping[str, tuple[str, Proposal]],
) -> Complaint | None:
    """Say why a group is not the model's symmetry: its output does not transform as ``act_output`` says.

    The float64 runs are judged by the largest error. Where there are none, the model is run in its own dtype and judged
    by the median of each component: a component that is no symmetry is broken under all its elements alike, while ties
    of float32 flip under some. A network that is equivariant only approximately is judged by its symmetrised copy;
    under changes of scale that copy deviates too, where images and ranges of scales end, so that nothing can be said.

    Args:
        model: the network, in eval mode.
        measurement: the float64 runs; None if the model cannot be run so.
        proposals: those of adapters, which know the ops that are equivariant only approximately.

    Returns:
        The component, its error, and the group that holds instead if there is one; None if nothing speaks against it.
    """
    group = symmetry.group
    approximate = symmetrised_copy(model, proposals)
    if symmetry.act_output is None or (approximate is not None and group.rescales):
        return None
    if measurement is not None and approximate is None:
        return judged(group, measurement.errors, torch.float64)
    network = model if approximate is None else approximate
    errors = equivariance_error(network, [inputs], symmetry, count=ELEMENTS)
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), torch.float32)
    medians = {component: error.median for component, error in errors.items()}
    return judged(group, medians, dtype, ", median of elements")


def judged(
    group: Group,
    errors: Mapping[str, float],
    dtype: torch.dtype,
    which: str = ", largest",
    limit: float = NOT_A_SYMMETRY,
) -> Complaint | None:
    """Judge relative errors per component: rotations by a limit, all others by ten times the error under rotations.

    Args:
        errors: component of the group's test elements to the relative error of the model's output under it.
        dtype: in which the model computed.
        which: of each component's errors these are, in words.
        limit: largest error of any component.

    Returns:
        What is wrong; None if nothing is.
    """
    smaller = rotations_of(group.name)
    own = _component_names(parse_group(smaller)) if smaller is not None else _component_names(group)
    if smaller is None and not group.finite:
        own = {group.component_names[0]}
    reference = max((error for component, error in errors.items() if component in own), default=0.0)
    others = min(limit, max(TIMES * reference, ROUNDING.get(dtype, HALF)))
    for component in sorted(errors, key=lambda component: component not in own):
        error = errors[component]
        if error <= (limit if component in own else others):
            continue
        kind = f"relative, {str(dtype).removeprefix('torch.')}{which}"
        part = " (its connected component)" if not group.finite and component == group.component_names[0] else ""
        told = f"under {component!r}{part} its outputs deviate by {error:.1e} ({kind})"
        holds = smaller if reference <= limit else None
        advice = f"choose {holds}, under which they deviate by {reference:.1e}" if holds else "choose a smaller group"
        words = (
            f"expected {group.name} to be a symmetry of the model, but {told}: {advice}, correct act and act_output, "
            "or look for the place with `surgeon inspect --find-breaks`"
        )
        return Complaint(words, component, error, reference, holds)
    return None


def as_another_element(measurement: Measurement) -> str:
    """Say with which element in place of g ``act_output`` would fit the model; empty if with none of those tried."""
    own, symmetry = measurement.own, measurement.symmetry
    judges, act_output = own.elements.judges, symmetry.act_output
    orthogonal = all(torch.allclose(g @ g.mT, torch.eye(len(g), dtype=g.dtype)) for _, _, g in judges)
    tried: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
        ("g^-1, which is g^T," if orthogonal else "g^-1", torch.linalg.inv),
        ("g^T", lambda g: g.mT),
        ("the transposed of g^-1", lambda g: torch.linalg.inv(g).mT),
    )
    for words, change in tried if act_output is not None else ():
        elements = [element._replace(g=change(element.g)) for element in judges]
        try:
            errors = symmetry.errors(own.outputs[0], zip(elements, own.outputs[-len(judges) :], strict=True))
        except TaskError:  # of motions, the transposed is none
            continue
        if max(errors.values()) <= OUTPUT_TOLERANCE:
            return f"it would be a symmetry if act_output took {words} in place of g; for row vectors it is y @ g.T"
    return ""


def unseen(symmetry: Symmetry, inputs: tuple[Any, ...]) -> str:
    """Say which elements move no vector of a sample batch, so that no run can tell whether they are symmetries.

    Args:
        inputs: of one sample call, float64; vectors are what ``act`` turns as such, of a group with translations their
            differences from the mean.
    """
    group, found = symmetry.group, list[Tensor]()
    if group.name not in ("O2", "SO3", "O3", "SE3", "E3"):
        return ""
    elements = [element.g for element in group.test_elements(torch.Generator().manual_seed(0), 2)]
    runs = [tensors_in(symmetry.moved(g, inputs)) for g in elements]
    moves = group.dimension > group.vector_dimension
    for index, given in enumerate(tensors_in(inputs)):
        fitting = [axis for axis in range(-given.ndim, 0) if given.shape[axis] == group.vector_dimension]
        for axis in fitting if given.is_floating_point() else ():
            x, *images = (_vectors(tensor, axis, moves) for tensor in (given, *(run[index] for run in runs)))
            expected, size = (x @ group.linear(g).mT for g in elements), float(x.abs().max())
            if all(torch.allclose(*pair, atol=1e-6 * size) for pair in zip(expected, images, strict=True)):
                found.append(x)
                break
    rank = int(torch.linalg.matrix_rank(torch.cat(found), rtol=1e-6)) if found else group.vector_dimension
    missing = group.vector_dimension - rank
    if missing < (1 if len(group.elements) else 2):
        return ""
    place, still = ("a line", "rotations about it") if missing == 2 else ("a plane", "the reflection through it")
    if group.vector_dimension == 2:
        place, still = "a line", "the reflection through it"
    return (
        f"all vectors of the sample batch lie on {place}, so that {still} cannot be told from doing nothing: what "
        "breaks that symmetry, or has no other, is not seen; give samples that do not"
    )


def _vectors(x: Tensor, axis: int, centred: bool) -> Tensor:
    rows = x.double().movedim(axis, -1).reshape(-1, x.shape[axis])
    return rows - rows.mean(dim=0) if centred else rows


def _component_names(group: Group) -> set[str]:
    return {element.component for element in group.test_elements(torch.Generator(), random=1)} - {OTHER_ELEMENTS}


def symmetrised_copy(model: nn.Module, proposals: Mapping[str, tuple[str, Proposal]]) -> nn.Module | None:
    """Return a copy in which every approximately equivariant op has weights that make it exactly equivariant.

    What such a network breaks of the symmetry is its own; whether the group is the right one, and the actions on its
    inputs and outputs are, can be seen on the copy.

    Args:
        proposals: those of adapters, by name of the module.

    Returns:
        The copy; None if no adapter knows such an op in the model.
    """
    changes: dict[str, Tensor] = {
        f"{name}.{own}".lstrip("."): value
        for name, (_, proposal) in proposals.items()
        for own, value in (proposal.symmetrised or {}).items()
    }
    if not changes:
        return None
    result = copied(model)
    own = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    with torch.no_grad():
        for name, value in changes.items():
            own[name].copy_(value)
    return result
