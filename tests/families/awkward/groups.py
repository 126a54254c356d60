"""Groups of practitioners, by their names: permutations, translations of a ring, SU(2), the icosahedron's rotations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from tests.families.awkward.case import CHANNELS, Case
from tests.families.awkward.pseudotensors import Channels, random
from tests.families.awkward.sampled import NO_SYMMETRY, icosahedron


class Edges(nn.Module):
    """Features of pairs of points (b, n, n, c) to features of points; perhaps some points are told from others."""

    def __init__(self, told: bool) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.told = told

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).tanh()
        h = self.second(torch.einsum("bijc,bjkc->bikc", h, h) + h.transpose(1, 2)).tanh()
        h = h + torch.arange(h.shape[1])[:, None, None] if self.told else h
        return self.head(h.sum(2))


class Ring(nn.Module):
    """Convolutions (b, c, n) that go around, or end."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 4, 3, padding=1, padding_mode=mode)
        self.second = nn.Conv1d(4, 3, 3, padding=1, padding_mode=mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Spin(nn.Module):
    """Doublets as real pairs (n, c, 4) to triplets and back; perhaps only some components of these."""

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.doublet, self.triplet = Channels(), Channels()
        self.kept = kept
        self.register_buffer("algebra", parse_group("SU2").algebra.to(torch.get_default_dtype()))
        self.register_buffer("unit", torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.doublet(x)
        triplet = torch.einsum("ncs,pst,nct->ncp", h, self.unit @ self.algebra, h.roll(1, 1) + h)[..., : self.kept]
        return torch.einsum("ncp,pst,nct->ncs", self.triplet(triplet), self.algebra[: self.kept], h)


class Corners(nn.Module):
    """A function of the values at an icosahedron's corners, which its rotations permute; they are mixed there, too.

    The steeper it is, the farther it is from a function of the directions that other rotations keep.
    """

    def __init__(self, steepness: float) -> None:
        super().__init__()
        self.steepness = steepness
        self.vector, self.corner = Channels(), Channels()
        self.register_buffer("corners", icosahedron())

    def forward(self, x: Tensor) -> Tensor:
        corners = self.corners.to(x)
        return self.corner((self.steepness * self.vector(x) @ corners.T).exp()).square() @ corners


def _case(
    name: str, trap: str, group: str, build: type[nn.Module], argument: object, shape: tuple[int, ...], **more: object
) -> Case:
    return Case(
        name,
        trap,
        lambda: build(argument),
        group=group,
        inputs=lambda: (random(*shape),),
        **{"act_output": lambda g, y: y @ g.T, **more},  # type: ignore[arg-type]
    )


def _edges(name: str, trap: str, told: bool, **more: object) -> Case:
    return _case(
        name,
        trap,
        "S5",
        Edges,
        told,
        (6, 5, 5, 2),
        act=lambda g, x: torch.einsum("ij,kl,bjlc->bikc", g, g, x),
        act_output=lambda g, y: torch.einsum("ij,bjc->bic", g, y),
        **more,
    )


CASES = (
    _edges("pairs of points", "permutations", False, sites={"first.input", "second.input", "head.input"}),
    _edges("numbered points", "no permutations", True, error="S5 to be a symmetry"),
    _case("ring", "translations", "Z8", Ring, "circular", (6, 2, 8), sites={"first.input", "second.input"}),
    _case("ring that ends", "no translations", "Z8", Ring, "zeros", (6, 2, 8), error="Z8 to be a symmetry"),
    _case("doublets", "real pairs", "SU2", Spin, 3, (24, CHANNELS, 4), sites={"doublet.x", "triplet.x"}),
    _case("one axis of spin", "a smaller group", "SU2", Spin, 1, (24, CHANNELS, 4), error=NO_SYMMETRY),
    _case("corners", "permuted by turns", "ICOSA", Corners, 0.25, (24, CHANNELS, 3), sites={"vector.x", "corner.x"}),
    _case("corners of another", "no cube's", "OCTA", Corners, 2.0, (24, CHANNELS, 3), error="OCTA to be a symmetry"),
)
