"""Whether a function of rows is equivariant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surgeon.algebra.equivariance import Symmetry, equivariance_error
from surgeon.algebra.representations.core import Representation
from surgeon.errors import CheckFailedError

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
    """Check ``f(rho_in(g) x) = rho_out(g) f(x)`` on random rows, under the test elements of the group.

    Args:
        function: from features of shape (n, d_in) to features of shape (n, d_out).
        rho_in: representation of dimension d_in.
        rho_out: representation of dimension d_out, of the same group.
        rows: number of random rows n.
        elements: random elements per component; all generators of a finite group are taken besides.
        dtype: float64 (tolerance 1e-9) or float32 (tolerance 1e-4).
        seed: seed of rows and elements.

    Raises:
        CheckFailedError: if the relative deviation exceeds the tolerance; the worst element is named.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> from surgeon.algebra.representations import irreps
        >>> rho = irreps(parse_group("O3"), "2x1o")
        >>> assert_equivariant(lambda x: 3 * x, rho, rho)
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, rho_in.dimension, generator=generator, dtype=torch.float64).to(dtype)

    def action(rho: Representation) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda g, y: rho.action(g).to(x).apply(y)[0]

    symmetry = Symmetry(rho_in.group, action(rho_in), action(rho_out))
    errors = equivariance_error(function, [(x,)], symmetry, count=elements, seed=seed)
    worst = max(errors.values(), key=lambda error: error.maximum)
    if not worst.maximum <= TOLERANCE[dtype]:
        raise CheckFailedError(
            f"expected a map that is equivariant under {rho_in.group.name} ({rho_in} -> {rho_out}), but under its "
            f"element {worst.worst!r} it deviates by {worst.maximum:.1e} relative to its output, allowed "
            f"{TOLERANCE[dtype]:.0e}"
        )
