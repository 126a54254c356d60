"""Whether a function is equivariant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surgeon.errors import CheckFailedError
from surgeon.measure import relative_difference
from surgeon.representations import Representation

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Largest deviation relative to the scale of the output that counts as rounding."""


def assert_equivariant(
    function: Callable[[Tensor], Tensor],
    rho_in: Representation,
    rho_out: Representation,
    *,
    rows: int = 8,
    elements: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> None:
    """Check ``f(rho_in(g) x) = rho_out(g) f(x)`` on random rows, under elements of every component of the group.

    Args:
        function: from features of shape (n, d_in) to features of shape (n, d_out).
        rho_in: representation of dimension d_in.
        rho_out: representation of dimension d_out, of the same group.
        rows: number of random rows n.
        elements: group elements per component.
        dtype: float64 (tolerance 1e-9) or float32 (tolerance 1e-4).
        seed: seed of rows and elements.

    Raises:
        CheckFailedError: if the relative deviation exceeds the tolerance; the worst component is named.

    Example:
        >>> from surgeon.groups import parse_group
        >>> from surgeon.representations import irreps
        >>> rho = irreps(parse_group("O3"), "2x1o")
        >>> assert_equivariant(lambda x: 3 * x, rho, rho)
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, rho_in.dimension, generator=generator, dtype=torch.float64).to(dtype)
    group = rho_in.group
    errors = {}
    for component, name in enumerate(group.component_names):
        g = group.sample(elements, generator, component)
        moved, expected = rho_in.action(g).to(x).apply(x), rho_out.action(g).to(x).apply(function(x))
        errors[name] = max(relative_difference(function(a), b) for a, b in zip(moved, expected, strict=True))
    worst = max(errors, key=lambda name: errors[name])
    if not errors[worst] <= TOLERANCE[dtype]:
        raise CheckFailedError(
            f"expected a map that is equivariant under {group.name} ({rho_in} -> {rho_out}), but under its component "
            f"{worst!r} it deviates by {errors[worst]:.1e} relative to its output, allowed {TOLERANCE[dtype]:.0e}"
        )
