"""Features in bases that no library of irreps uses: monomials, complex harmonics, a basis that is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.awkward.case import CHANNELS, Case, Mix, gated, vectors

ROWS, COLUMNS = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)
"""Of the monomials xx, xy, xz, yy, yz, zz."""


class Monomials(nn.Module):
    """Degrees 0 and 2 in one axis of six: products of the components of vectors."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.first, self.last, self.cut = Mix(), Mix(), cut

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x[..., ROWS] * x[..., COLUMNS])
        h = self.last(h.relu() if self.cut else h * h[..., [0, 3, 5]].sum(-1, keepdim=True).tanh())
        full = h.new_zeros(*h.shape[:-1], 3, 3)
        full[..., ROWS, COLUMNS] = full[..., COLUMNS, ROWS] = h
        return full.square().sum((-1, -2))


class Last(Mix):
    """Mix the channels of what has any axes more."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,nc...->no...", self.weight, x)


class Harmonics(nn.Module):
    """Vectors as complex numbers of orders -1, 0 and 1, whose real and imaginary parts have an axis of their own."""

    def __init__(self, conjugates: bool = False) -> None:
        super().__init__()
        half = 0.5**0.5
        basis = torch.tensor([[half, -1j * half, 0], [0, 0, 1], [-half, -1j * half, 0]])
        self.register_buffer("basis", torch.view_as_real(basis))
        self.real, self.imaginary, self.conjugates = Last(), Last(), conjugates

    def forward(self, x: Tensor) -> Tensor:
        h = torch.complex(gated(x), gated(x.roll(1, 1)))
        z = torch.view_as_real(torch.einsum("mi,nci->ncm", torch.view_as_complex(self.basis), h))
        real, imaginary = z.unbind(-1)
        turned = torch.stack([real, -imaginary] if self.conjugates else [-imaginary, real], dim=-1)
        return (self.real(z) + self.imaginary(turned)).square().sum((-1, -2))


class ComplexHarmonics(nn.Module):
    """Real vectors in that basis fill half of it: orders 1 and -1 are conjugates, until complex weights mix them."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        basis = Harmonics().basis.double()
        self.register_buffer("basis", torch.view_as_complex(basis))
        self.first, self.last = (
            nn.Parameter(torch.randn(CHANNELS, CHANNELS, dtype=basis.dtype) + 0j) for _ in range(2)
        )
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        z = torch.einsum("mi,nci->ncm", self.basis, x + 0j)
        z = torch.einsum("oc,ncm->nom", self.first, z)
        z = torch.complex(z.real.relu(), z.imag) if self.cut else z * z.abs().square().sum(-1, keepdim=True).tanh()
        return torch.einsum("oc,ncm->nom", self.last, z).abs().square().sum(-1)


class Parts(nn.Module):
    """One layer of scalars and of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.scalars, self.vectors = (nn.Parameter(torch.randn(CHANNELS, CHANNELS)) for _ in range(2))

    def forward(self, scalars: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        return scalars @ self.scalars, torch.einsum("oc,ncv->nov", self.vectors, vectors)


class TrainedBasis(nn.Module):
    """Scalars, and vectors in a basis that training turns, so that they have no type."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.skew, self.mix = Mix(), nn.Parameter(torch.randn(3, 3)), Parts()

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.matrix_exp(self.skew - self.skew.T)
        h = gated(self.first(x))
        scalars, turned = self.mix(h.norm(dim=-1), h @ basis)
        return scalars + turned.square().sum(-1)


CASES = (
    Case("monomials", "two degrees in one axis", Monomials, {"first.x", "last.x"}, group="O3"),
    Case(
        "monomials that are cut",
        "component by component",
        lambda: Monomials(True),
        group="O3",
        error="to be a symmetry",
    ),
    Case("complex harmonics", "components of two axes", Harmonics, {"real.x", "imaginary.x"}),
    Case(
        "complex harmonics and their conjugates",
        "orders are exchanged",
        lambda: Harmonics(True),
        error="to be a symmetry",
        twin=True,
    ),
    Case(
        "complex harmonics of real vectors",
        "features that fill a part of what they could be",
        ComplexHarmonics,
        {"first.re_im", "last.re_im"},
    ),
    Case(
        "complex harmonics that are cut",
        "real parts one by one",
        lambda: ComplexHarmonics(True),
        error="to be a symmetry",
        twin=True,
    ),
    Case(
        "vectors in a trained basis",
        "of a layer's two parts, one is invariant and the other has no type",
        TrainedBasis,
        {"first.x"},
        inputs=lambda: (vectors(24),),
        audit={"mix.scalars": "invariant"},
        reason=dict.fromkeys(("mix.vectors", "skew"), "does not hold with other weights"),
    ),
)
