"""Adapter for steerable networks built from escnn: ``nn.Linear`` and ``nn.R2Conv`` for rotations of the plane."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import groupby
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.groups import Group
from surgeon.intertwiners import FoldMap
from surgeon.registry import Proposal, Refusal
from surgeon.representations import Representation, axes, matrices, regular, trivial
from surgeon.types import Convolution, Site

LARGEST_ORDER = 32
ANGLE = 0.1
"""Radians; a rotation whose logarithm gives the generator of a representation of SO(2)."""

IMAGE = (-3,)
FRAME = ((0, -1), (1, 0))
"""escnn turns images counter-clockwise: rows run against y, columns along x."""

TOLERANCE = 1e-6


class EscnnAdapter:
    """Annotations of escnn's field types."""

    name = "escnn"
    groups = ("SO2", *(f"C{order}" for order in range(2, LARGEST_ORDER + 1)))

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        """Read the representations off the field types; None if it is not one of escnn's layers."""
        if "escnn.nn" not in sys.modules:
            return None
        enn = sys.modules["escnn.nn"]
        if isinstance(module, enn.Linear):
            return self._proposal(module, group, "linear", (-1,), None)
        if isinstance(module, enn.R2Conv):
            convolution = _settings(module)
            kind = "linear" if convolution is None else "convolution"
            return self._proposal(module, group, kind, IMAGE, convolution)
        return None

    def _proposal(
        self, module: Any, group: Group, kind: str, axis: tuple[int, ...], convolution: Convolution | None
    ) -> Proposal | Refusal:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return Refusal("its weights are frozen", "frozen")
        order = module.in_type.fibergroup.order()
        if order != (len(group.all_elements()) if group.finite else -1):
            return Refusal(f"its fields are of {module.in_type.fibergroup.name}, not of {group.name}", "unexplained")
        rho_in, rho_out = (fields(group, each.representations) for each in (module.in_type, module.out_type))
        return Proposal(
            "input",
            kind,
            rho_in,
            rho_out,
            path_in=("tensor",),
            path_out=("tensor",),
            axes_in=axis,
            axes_out=axis,
            convolution=convolution,
        )

    def fold_data(self, module: nn.Module, calls: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, str]:
        """Nothing folds: the weights are coefficients in a basis of steerable kernels."""
        return None, "not foldable: its weights are coefficients of a kernel basis"

    def fold_map(self, module: nn.Module, site: Site, group: Group) -> FoldMap:
        """Never called, since no site has fold data."""
        raise NotImplementedError

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Return None: the keys of an escnn state dict do not tell its field types."""
        return None


def fields(group: Group, representations: Sequence[Any]) -> Representation:
    """Return the direct sum of a field type's representations; neighbours of one kind become copies.

    Args:
        group: SO2 or a cyclic group.
        representations: escnn's representations of the same group.
    """
    return reduce(add, (_field(group, each, count) for each, count in _counted(representations)))


def _counted(representations: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    for _, same in groupby(representations, key=lambda each: each.name):
        members = list(same)
        yield members[0], len(members)


def _field(group: Group, representation: Any, copies: int) -> Representation:
    if group.finite:
        generator = representation.group.element(1)
        image = torch.tensor(representation(generator), dtype=torch.float64)
        image = torch.where((image - image.round()).abs() < TOLERANCE, image.round(), image)
        if image.shape == (1, 1) and float(image) == 1.0:
            return trivial(group, copies)
        shift = regular(group, 1).action(group.elements).dense()[0]
        if image.shape == shift.shape and torch.equal(image, shift):
            return regular(group, copies)
        return matrices(group, {"algebra": [], "elements": [image.tolist()]}, copies)
    rotation = torch.tensor(representation(representation.group.element(ANGLE)), dtype=torch.float64)
    derivative = torch.from_numpy(importlib.import_module("scipy.linalg").logm(rotation.numpy())).real / ANGLE
    derivative = torch.where((derivative - derivative.round()).abs() < TOLERANCE, derivative.round(), derivative)
    if not bool(derivative.any()):
        return trivial(group, copies * len(derivative))
    if torch.equal(derivative, group.feature_algebra[0]):
        return axes(group, "c v", {"c": copies})
    return matrices(group, {"algebra": [derivative.tolist()], "elements": []}, copies)


def _settings(module: Any) -> Convolution | None:
    """Return how an R2Conv moves its kernel; None for a kernel of one point."""
    if module.kernel_size == 1:
        return None

    def both(value: Any) -> tuple[int, int]:
        return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))

    return Convolution(
        both(module.kernel_size),
        both(module.stride),
        both(module.padding),
        both(module.dilation),
        str(module.padding_mode),
        FRAME,
    )


adapter = EscnnAdapter()
