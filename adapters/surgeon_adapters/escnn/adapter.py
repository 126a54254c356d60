"""Adapter for steerable networks built from escnn: ``Linear``, ``R2Conv`` and ``R3Conv``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.matrix_blocks import MatrixBlock
from surgeon.plan import Convolution
from surgeon.registry import CUSTOM, Adapter, Proposal, Refusal
from surgeon_adapters.escnn.fields import fields

LARGEST_ORDER = 32

FRAMES = {2: ((0, -1), (1, 0)), 3: ((0, 0, -1), (0, -1, 0), (1, 0, 0))}
"""escnn's grids: columns run along x, rows against y, and planes against z."""


class EscnnAdapter(Adapter):
    """Annotations of escnn's field types.

    A group need not be that of the fields: a network of SO(2) or C_8 can be relaxed under C_4, whose elements map the
    pixels to pixels.
    """

    name = "escnn"
    groups = (
        *("SO2", "O2", "SO3", "O3", "OCTA", "OCTAH", CUSTOM),
        *(f"{family}{order}" for family in "CD" for order in range(2, LARGEST_ORDER + 1)),
    )

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        """Read the representations off the field types; None if it is not one of escnn's layers."""
        if "escnn.nn" not in sys.modules:
            return None
        enn = sys.modules["escnn.nn"]
        if isinstance(module, enn.Linear):
            return self._proposal(module, group, (-1,), None)
        for kind, dimension in ((enn.R2Conv, 2), (enn.R3Conv, 3)):
            if isinstance(module, kind):
                return self._proposal(module, group, (-1 - dimension,), _settings(module, dimension))
        return None

    def blocks(self, module: Any) -> Mapping[str, Sequence[MatrixBlock] | str] | None:
        """Read the coefficients of every pair of fields off a layer: fields out x (fields in, basis)."""
        if "escnn.nn" not in sys.modules:
            return None
        expansion = getattr(module, "basisexpansion", None)
        ranges: Mapping[tuple[str, str], tuple[int, int]] | None = getattr(expansion, "_weights_ranges", None)
        if ranges is None:
            return None
        if getattr(module, "groups", 1) != 1:
            return {"weights": "its channels are convolved in groups"}
        out = [field.name for field in module.out_type.representations]
        return {
            "weights": [
                MatrixBlock.run(start, out.count(into), (end - start) // out.count(into), f"{of} -> {into}")
                for (of, into), (start, end) in ranges.items()
                if end > start
            ]
        }

    def _proposal(
        self, module: Any, group: Group, axis: tuple[int, ...], convolution: Convolution | None
    ) -> Proposal | Refusal:
        if not any(parameter.requires_grad for parameter in module.parameters()):
            return Refusal("its weights are frozen", "frozen")
        if getattr(module, "groups", 1) != 1:
            return Refusal("its channels are convolved in groups, which a branch would mix", "unexplained")
        rho_in, rho_out = (fields(group, kind) for kind in (module.in_type, module.out_type))
        if rho_in is None or rho_out is None:
            space = module.in_type.gspace
            return Refusal(
                f"its fields are of {space.fibergroup.name}, which does not act as {group.name} does", "unexplained"
            )
        return Proposal(
            "input",
            "linear" if convolution is None else "convolution",
            rho_in,
            rho_out,
            path_in=("tensor",),
            path_out=("tensor",),
            axes_in=axis,
            axes_out=axis,
            convolution=convolution,
            wrap=module.in_type,
        )


def _settings(module: Any, dimension: int) -> Convolution | None:
    """Return how a kernel moves; None for a kernel of one point."""
    if module.kernel_size == 1:
        return None

    def each(value: Any) -> tuple[int, ...]:
        return (int(value),) * dimension if isinstance(value, int) else tuple(int(part) for part in value)

    return Convolution(
        each(module.kernel_size),
        each(module.stride),
        each(module.padding),
        each(module.dilation),
        str(module.padding_mode),
        FRAMES[dimension],
    )


adapter = EscnnAdapter()
