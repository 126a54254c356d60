"""Whether a group is a symmetry of the model: each component is judged by the error that the model has anyway."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from surgeon.algebra.equivariance import equivariance_error
from surgeon.algebra.groups.core import OTHER_ELEMENTS, Group
from surgeon.algebra.groups.named import rotations_of
from surgeon.algebra.groups.parse import parse_group
from surgeon.finding.inference.symmetry import Symmetry
from surgeon.finding.measurement import Measurement
from surgeon.finding.symmetrised import symmetrised_by
from surgeon.registry import Proposal

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


def symmetry_complaint(
    model: nn.Module,
    symmetry: Symmetry,
    inputs: tuple[Any, ...],
    measurement: Measurement | None,
    proposals: Mapping[str, tuple[str, Proposal]],
) -> str | None:
    """Say why a group is not the model's symmetry: its output does not transform as ``act_output`` says.

    The float64 runs are judged by the largest error. Where there are none, the model is run in its own dtype and judged
    by the median of each component: a component that is no symmetry is broken under all its elements alike, while ties
    of float32 flip under some. A network that is equivariant only approximately is judged by its symmetrised copy;
    under changes of scale that copy deviates too, where images and ranges of scales end, so that nothing can be said.

    Args:
        model: the network, in eval mode.
        symmetry: the group and its actions.
        inputs: one sample call.
        measurement: the float64 runs; None if the model cannot be run so.
        proposals: those of adapters, which know the ops that are equivariant only approximately.

    Returns:
        The component, its error, and the group that holds instead if there is one; None if nothing speaks against it.
    """
    group = symmetry.group
    approximate = symmetrised_by(model, proposals)
    if symmetry.act_output is None or (approximate is not None and group.rescales):
        return None
    if measurement is not None and approximate is None:
        return judged(group, measurement.errors, torch.float64)
    network = model if approximate is None else approximate
    errors = equivariance_error(
        lambda given: symmetry.forward(network, *given),
        [inputs],
        symmetry.moved,
        symmetry.act_output,
        group,
        count=ELEMENTS,
    )
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), torch.float32)
    medians = {component: error.median for component, error in errors.items()}
    return judged(group, medians, dtype, ", median of elements")


def judged(group: Group, errors: Mapping[str, float], dtype: torch.dtype, which: str = ", largest") -> str | None:
    """Judge relative errors per component: rotations by 2 %, all others by ten times the error under rotations.

    Args:
        group: the group.
        errors: component of the group's test elements to the relative error of the model's output under it.
        dtype: in which the model computed.
        which: of each component's errors these are, in words.

    Returns:
        What is wrong, in words; None if nothing is.
    """
    smaller = rotations_of(group.name)
    own = _components(parse_group(smaller)) if smaller is not None else _components(group)
    if smaller is None and not group.finite:
        own = {group.component_names[0]}
    reference = max((error for component, error in errors.items() if component in own), default=0.0)
    others = min(NOT_A_SYMMETRY, max(TIMES * reference, ROUNDING.get(dtype, HALF)))
    for component in sorted(errors, key=lambda component: component not in own):
        error = errors[component]
        if error <= (NOT_A_SYMMETRY if component in own else others):
            continue
        kind = f"relative, {str(dtype).removeprefix('torch.')}{which}"
        part = " (its connected component)" if not group.finite and component == group.component_names[0] else ""
        told = f"under {component!r}{part} its outputs deviate by {error:.1e} ({kind})"
        advice = "choose a smaller group"
        if smaller is not None and reference <= NOT_A_SYMMETRY:
            advice = f"choose {smaller}, under which they deviate by {reference:.1e}"
        return (
            f"expected {group.name} to be a symmetry of the model, but {told}: {advice}, correct act and act_output, "
            "or look for the place with `surgeon inspect --find-breaks`"
        )
    return None


def _components(group: Group) -> set[str]:
    return {element.component for element in group.test_elements(torch.Generator(), random=1)} - {OTHER_ELEMENTS}
