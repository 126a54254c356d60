"""More groups and representations: the plane, reflections, degree two, quarter turns of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.families.awkward.case import CHANNELS, Case, Mix, gated
from tests.families.awkward.layouts import turn_image


def clouds(*shape: int) -> Tensor:
    """Random numbers, float64, the same in each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class TwoIntertwiners(nn.Module):
    """SO(2): the equivariant maps of vectors are a + b J, with a matrix for each."""

    def __init__(self) -> None:
        super().__init__()
        self.real, self.imaginary = (nn.Parameter(torch.randn(CHANNELS, CHANNELS) / 2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        turned = torch.stack([-x[..., 1], x[..., 0]], dim=-1)
        return self.real @ x + self.imaginary @ turned


class PlanarNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TwoIntertwiners(), TwoIntertwiners()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(gated(self.first(x)))


class Pseudovectors(nn.Module):
    """Cross products do not change sign under the inversion: the second layer has another parity than the first."""

    def __init__(self) -> None:
        super().__init__()
        self.polar, self.axial = Mix(), Mix()

    def forward(self, x: Tensor) -> Tensor:
        h = self.polar(x)
        return self.axial(gated(torch.linalg.cross(h, h.roll(1, dims=1))))


class Tensor2(nn.Module):
    """Components of degree 2 as symmetric traceless matrices under a fixed basis of five, (n, c, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = Mix()

    def forward(self, x: Tensor) -> Tensor:
        outer = x[..., :, None] * x[..., None, :]
        h = self.mix(outer.flatten(-2) @ BASIS.flatten(1).T)
        return (h @ BASIS.flatten(1)).unflatten(-1, (3, 3))


class Lift(nn.Module):
    """One kernel in four orientations: from images to stacks of four."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 1, 3, 3) / 3)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.stack([torch.rot90(self.weight, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
        return functional.conv2d(x, kernel, padding=1)


class GroupConvolution(nn.Module):
    """Between stacks of four; the stride is 2, which keeps the centre of a grid of odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 4, 3, 3) / 6)

    def forward(self, x: Tensor) -> Tensor:
        turned = [torch.rot90(self.weight.roll(k, 2), k, (3, 4)) for k in range(4)]
        return functional.conv2d(x, torch.stack(turned, 1).flatten(0, 1).flatten(1, 2), padding=1, stride=2)


class GroupNetwork(nn.Module):
    def __init__(self, lift: nn.Module | None = None) -> None:
        super().__init__()
        self.lift, self.conv = lift or Lift(), GroupConvolution()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.lift(x).relu()).unflatten(1, (2, 4)).tanh().mean((2, 3, 4))


def turn_or_mirror(g: Tensor, x: Tensor) -> Tensor:
    """Mirror images (b, c, h, w) if g does, and turn them by quarters."""
    return turn_image(g, x.flip(2) if torch.linalg.det(g) < 0 else x)


class Picked(nn.Module):
    """One kernel in the orientations of a square, mirrored ones too, by lists of positions.

    Of images with one channel its results never fill the representation: the kernel's orbit has rank 7 of 8.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 1, 3, 3) / 3), nn.Parameter(torch.randn(3, 1, 1))
        square = torch.arange(9).view(3, 3)
        turned = [torch.rot90(side, k, (0, 1)) for side in (square, square.flip(0)) for k in range(4)]
        self.places = [square.flatten().tolist() for square in turned]

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(2)
        kernel = torch.stack([flat[:, :, place] for place in self.places], 1).view(-1, *self.weight.shape[1:])
        return functional.conv2d(x, kernel, padding=1).unflatten(1, (3, 8)) + self.bias[:, None]


class PickedNetwork(nn.Module):
    def __init__(self, wrong: bool = False) -> None:
        super().__init__()
        self.lift, self.head = Picked(), nn.Linear(3, 2)
        if wrong:
            self.lift.places[0] = self.lift.places[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lift(x).tanh().mean((2, 3, 4)))


def _basis() -> Tensor:
    """Orthonormal symmetric traceless matrices, shape (5, 3, 3), in no particular order or sign."""
    basis = torch.zeros(5, 3, 3, dtype=torch.float64)
    for matrix, (i, j) in zip(basis, ((0, 1), (2, 1), (0, 2)), strict=False):
        matrix[i, j] = matrix[j, i] = 0.5**0.5
    basis[3] = torch.diag(basis.new_tensor([1.0, -1.0, 0.0])) / 2**0.5
    basis[4] = torch.diag(basis.new_tensor([1.0, 1.0, -2.0])) / 6**0.5
    return basis


BASIS = _basis()


CASES = (
    Case(
        "two intertwiners",
        "one op, two parameters, complex type",
        PlanarNetwork,
        {"first.x", "second.x"},
        group="SO2",
        inputs=lambda: (clouds(6, CHANNELS, 2),),
        act_output=lambda g, y: y @ g.T,
    ),
    Case(
        "pseudovectors",
        "two layers of vectors with different parities",
        Pseudovectors,
        {"polar.x", "axial.x"},
        group="O3",
        act_output=lambda g, y: torch.linalg.det(g) * (y @ g.T),
    ),
    Case(
        "own basis of degree two",
        "five components in a basis that no library uses",
        Tensor2,
        {"mix.x"},
        act_output=lambda g, y: g @ y @ g.T,
    ),
    Case(
        "strided group convolution",
        "kernels in four orientations, stride 2 on a grid of odd size",
        GroupNetwork,
        {"lift.x", "conv.x"},
        group="C4",
        inputs=lambda: (clouds(2, 1, 7, 7),),
        act=turn_image,
    ),
    Case(
        "kernels picked by positions",
        "the weight is indexed by lists; one channel cannot fill all irreps of its results",
        PickedNetwork,
        {"lift.weight"},
        group="D4",
        inputs=lambda: (clouds(2, 1, 7, 7),),
        act=turn_or_mirror,
    ),
    Case(
        "kernels picked by wrong positions",
        "one orientation stands there twice",
        lambda: PickedNetwork(wrong=True),
        group="D4",
        inputs=lambda: (clouds(2, 1, 7, 7),),
        act=turn_or_mirror,
        error="to be a symmetry",
        twin=True,
    ),
)
