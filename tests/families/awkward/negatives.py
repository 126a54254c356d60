"""Models in which nothing, or not everything, may be found; and runs that cannot tell anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.support.e3nn_compat import import_e3nn
from tests.families.awkward.case import CHANNELS, Case, Mix, Trunk, gated, vectors
from tests.families.awkward.layouts import turn_image


class PointNet(nn.Module):
    """Dense on coordinates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu().amax(1))


class PlainCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).mean((2, 3))


class OrthogonalInside(nn.Module):
    """A dense layer that happens to be a rotation, between layers of e3nn; only norms are read."""

    def __init__(self) -> None:
        super().__init__()
        o3 = import_e3nn()
        self.first = o3.Linear("4x1o", "4x1o")
        self.dense = nn.Linear(3, 3, bias=False)
        nn.init.orthogonal_(self.dense.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1)).unflatten(1, (4, 3))
        return self.dense(h).square().sum(-1)


class DenseHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix, self.head = Mix(), nn.Linear(3 * CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(gated(self.mix(x)).flatten(1))


class InvariantOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(CHANNELS, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.norm(dim=-1)).tanh())


class Biased(nn.Module):
    """A bias added to vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(1, 2)).square().sum(1)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x + 1e-3 * torch.randn_like(x)).square().sum(-1)


class Infinite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x).square().sum(-1)
        return y / torch.zeros_like(y)


class FixedDtype(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.float()).square().sum(-1)


class Nearly(nn.Module):
    """Equivariant up to 1e-3."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x + 1e-3 * x[..., :1] ** 2).square().sum(-1)


class Dead(nn.Module):
    """Units that are 0 on all samples cannot be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.after = Mix(), nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        invariants = self.mix(x).square().sum(-1)
        return self.after(torch.relu(invariants - torch.tensor([0.0, 0.0, 0.0, 1e9])))


class Faint(nn.Module):
    """Dense on coordinates, of which next to nothing reaches the output."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1) + 1e-5 * self.dense(x.relu()).sum(-1)


class Paired(nn.Module):
    """Vectors with a cross product added and taken off: inversion exchanges the two, as the output does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        cross = torch.linalg.cross(x, x.roll(1, 1), dim=-1)
        return sum(self.mix(each).square().sum(-1) for each in (x + cross, x - cross))


class Slopes(nn.Module):
    """Four-vectors in, derivatives by them out: these transform by the transposed of the inverse element."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()
        self.register_buffer("metric", torch.tensor([1.0, -1.0, -1.0, -1.0]))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = (self.mix(x).square() @ self.metric).tanh().sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]


def _slopes(name: str, trap: str, act_output: Callable[[Tensor, Tensor], Tensor], **more: Any) -> Case:
    seeded = torch.Generator().manual_seed(0)
    inputs = 0.3 * torch.randn(5, CHANNELS, 4, generator=seeded, dtype=torch.float64)
    return Case(name, trap, Slopes, group="SO13", inputs=lambda: (inputs,), act_output=act_output, **more)


CASES = (
    Case(
        "plain PointNet",
        "dense on coordinates",
        PointNet,
        error="to be a symmetry of the model, but under 'identity' .* its outputs deviate",
    ),
    Case(
        "plain CNN",
        "free kernels",
        PlainCNN,
        group="C4",
        inputs=lambda: (torch.randn(2, 1, 7, 7, dtype=torch.float64),),
        act=turn_image,
        error="to be a symmetry of the model",
    ),
    Case(
        "orthogonal layer",
        "a rotation that training would change",
        OrthogonalInside,
        {"first.features"},
        audit={"dense.weight": "not equivariant"},
    ),
    Case(
        "dense head", "an equivariant trunk under a head that is not", DenseHead, error="to be a symmetry of the model"
    ),
    Case("invariants only", "nothing transforms", InvariantOnly, error="nothing to relax.*2 x invariant to invariant"),
    Case("bias on vectors", "the layer itself breaks the symmetry", Biased, error="to be a symmetry of the model"),
    Case("noise in eval mode", "not deterministic", Noisy, error="deterministic model, but two runs .* differ by"),
    Case("infinite", "divides by 0", Infinite, error="but 28 of 28 numbers that the model returns .* are NaN or inf"),
    Case("fixed dtype", "asks for float32 by itself", lambda: FixedDtype().float(), {"mix.x"}, sound=False),
    Case(
        "nearly equivariant",
        "an error of 1e-3",
        Nearly,
        error="to be a symmetry of the model, but under 'identity'",
    ),
    Case(
        "equal samples",
        "a batch that shows nothing",
        lambda: Trunk(Mix()),
        inputs=lambda: (vectors()[:1].expand(7, -1, -1).clone(),),
        error="all rows of each of its tensors are equal",
    ),
    Case(
        "no action",
        "act that is no action",
        lambda: Trunk(Mix()),
        act=lambda g, x: x @ g,
        error="acting by hg, and would be one with",
    ),
    _slopes("derivatives", "outputs of the dual representation", lambda g, y: y @ torch.linalg.inv(g), sites={"mix.x"}),
    _slopes(
        "derivatives taken for vectors",
        "the transposed of the inverse is another representation",
        lambda g, y: y @ g.T,
        error="it would be a symmetry if act_output took the transposed of g\\^-1 in place of g",
        twin=True,
    ),
    Case(
        "act does nothing",
        "act that changes nothing",
        lambda: Trunk(Mix()),
        act=lambda g, x: x,
        error="move the sample batch",
    ),
    Case(
        "wrong group",
        "a larger group than the model has",
        lambda: CrossProduct(),
        group="O3",
        error="to be a symmetry of the model, but under 'inversion' its outputs deviate .*choose SO3",
    ),
    Case(
        "hardly broken",
        "an error of 1e-6, of an op that does not transform at all",
        Faint,
        error="its own output deviates by .*e-06, more than rounding explains",
    ),
    Case(
        "exchanged",
        "features that inversion exchanges, of which the output does not tell",
        Paired,
        group="O3",
        error="try SO3, under which more features may have a representation",
    ),
    Case("exchanged by no rotation", "the same network under rotations", Paired, {"mix.x"}),
    Case("right group", "the same network under rotations", lambda: CrossProduct(), {"mix.x"}),
    Case("dead units", "features that are always 0", Dead, {"mix.x"}, audit={"after.weight": "invariant"}),
)


class CrossProduct(nn.Module):
    """Rotations only: a triple product changes sign under inversion."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        h = gated(self.mix(x))
        return (torch.linalg.cross(h[:, 0], h[:, 1]) * h[:, 2]).sum(-1)
