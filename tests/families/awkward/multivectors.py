"""Features that are no copies of the vector, under a group whose irreps have no labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.families.awkward.case import CHANNELS, Case
from tests.families.awkward.pseudotensors import Channels, levi_civita, random
from tests.families.awkward.structures import move

METRIC = torch.tensor([1.0, -1.0, -1.0, -1.0], dtype=torch.float64)
PAIRS = torch.combinations(torch.arange(4)).T


def multivectors(a: Tensor) -> Tensor:
    """Scalar, vector, bivector, dual vector, pseudo-scalar of neighbouring vectors: (n, c, 1 + 4 + 6 + 4 + 1)."""
    b, c, d = (a.roll(shift, 1) for shift in (1, 2, 3))
    wedge = a[..., :, None] * b[..., None, :] - b[..., :, None] * a[..., None, :]
    dual = torch.einsum("mnrs,zcn,zcr,zcs->zcm", levi_civita(4), METRIC * a, METRIC * b, METRIC * c)
    scalar = (METRIC * a * b).sum(-1, keepdim=True)
    pseudoscalar = (METRIC * dual * (d + a)).sum(-1, keepdim=True) * (1 + scalar**2)
    return torch.cat([scalar, a, wedge[..., PAIRS[0], PAIRS[1]], dual, pseudoscalar], dim=-1)


class Multivectors(nn.Module):
    """Mix the channels of multivectors; read a vector off their bivectors."""

    def __init__(self) -> None:
        super().__init__()
        self.vector, self.mix = Channels(), Channels()

    def forward(self, x: Tensor) -> Tensor:
        a = self.vector(x)
        h = self.between(multivectors(a))
        wedge = torch.zeros(*h.shape[:-1], 4, 4, dtype=h.dtype)
        wedge[..., PAIRS[0], PAIRS[1]] = h[..., 5:11]
        skew = wedge - wedge.mT
        return torch.einsum("zcmn,zcn->zcm", skew, METRIC * a) + h[..., :1] * h[..., 1:5] + h[..., 15:] * h[..., 11:15]

    def between(self, x: Tensor) -> Tensor:
        return self.mix(x)


class LearntBasis(Multivectors):
    """The same in a basis that is trained: its features transform, but otherwise after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.eye(16) + 0.1 * torch.randn(16, 16))

    def between(self, x: Tensor) -> Tensor:
        return self.mix(x @ self.basis) @ torch.linalg.inv(self.basis)


class Grades(nn.Module):
    """Mix the channels of multivectors of space (n, c, 1 + 3 + 3 + 1), each grade by weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 4) / 2)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.repeat_interleave(torch.tensor([1, 3, 3, 1]), dim=-1)
        return torch.einsum("nci,oci->noi", x, weight)


class Graded(nn.Module):
    """Vectors among multivectors of which all else is 0 before the product; perhaps a grade is spoilt after it."""

    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.wrong = Grades(), Grades(), wrong

    def forward(self, x: Tensor) -> Tensor:
        given = torch.cat([torch.zeros_like(x[..., :1]), x, torch.zeros_like(x), torch.zeros_like(x[..., :1])], -1)
        h = self.first(given)
        a, b = h[..., 1:4], h[..., 1:4].roll(1, 1)
        scalar, dual = (a * b).sum(-1, keepdim=True) + h[..., :1], torch.linalg.cross(a, b, dim=-1) + h[..., 4:7]
        triple = (dual * a.roll(2, 1)).sum(-1, keepdim=True) + h[..., 7:]
        h = self.second(torch.cat([scalar, a, dual.relu() if self.wrong else dual, triple], -1))
        return h[..., :1] * h[..., 1:4] + h[..., 7:] * h[..., 4:7]


class Homogeneous(nn.Module):
    """Points with a last coordinate of 1, as projective algebras have them; translations act on these linearly, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Channels(), Channels()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(torch.cat([x, torch.ones_like(x[..., :1])], -1))
        return self.between(self.second(h * self.between(h).square().sum(-1, keepdim=True).tanh())).square().sum(-1)

    def between(self, h: Tensor) -> Tensor:
        other = h.roll(1, 1)
        return h[..., 3:] * other[..., :3] - other[..., 3:] * h[..., :3]


def vectors() -> tuple[Tensor]:
    """Enough rows for an axis of sixteen."""
    return (random(12, CHANNELS, 4),)


def _case(name: str, trap: str, build: type[nn.Module], sites: set[str], **more: object) -> Case:
    return Case(
        name,
        trap,
        build,
        sites,
        group="O13",
        inputs=vectors,
        act_output=lambda g, y: y @ g.T,
        **more,  # type: ignore[arg-type]
    )


CASES = (
    _case("multivectors", "1 + 4 + 6 + 4 + 1 components", Multivectors, {"vector.x", "mix.x"}),
    _case(
        "multivectors in a basis that is trained",
        "features transform, but by nothing that outlasts a step",
        LearntBasis,
        {"vector.x"},
        reason=dict.fromkeys(("mix.weight", "basis"), "does not hold with other weights"),
    ),
    Case(
        "homogeneous points",
        "linear under translations, which no representation is",
        Homogeneous,
        group="E3",
        inputs=lambda: (random(12, CHANNELS, 3),),
        act=move,
        error="translations change its features.* find sites under O3",
    ),
    Case(
        "homogeneous points about the origin",
        "the same network under rotations",
        Homogeneous,
        {"first.x", "second.x"},
        group="O3",
        inputs=lambda: (random(12, CHANNELS, 3),),
    ),
    Case(
        "vectors among multivectors",
        "weights go by grades, of which all but one are 0 at first",
        Graded,
        {"first.x", "second.x"},
        group="O3",
        inputs=lambda: (random(20, CHANNELS, 3),),
        act_output=lambda g, y: y @ g.T,
    ),
    Case(
        "vectors among what is none",
        "the same with a component-wise non-linearity on one grade",
        lambda: Graded(wrong=True),
        group="O3",
        inputs=lambda: (random(20, CHANNELS, 3),),
        act_output=lambda g, y: y @ g.T,
        error="to be a symmetry",
        twin=True,
    ),
)
