"""Small steerable networks (escnn): C4 images, SO(2) fields without a grid, and SO(2) images."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from tests.families.cases import FamilyCase


def quarter_turns(g: Tensor) -> int:
    """How many quarter turns a rotation matrix (2, 2) is."""
    return round(float(torch.atan2(g[1, 0], g[0, 0])) / (math.pi / 2)) % 4


def turn(g: Tensor, image: Tensor) -> Tensor:
    """Turn images (..., h, w) counter-clockwise, as escnn does."""
    return torch.rot90(image, quarter_turns(g), (-2, -1))


def same(g: Tensor, outputs: Tensor) -> Tensor:
    """The output is invariant."""
    return outputs


def _perturbed(module: nn.Module) -> nn.Module:
    """No weight is 0; in float64, though escnn computes its bases in float32."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    # a copy: escnn shares bases between the models of a process, and a cast would reach them all
    return copy.deepcopy(module).double().eval()


class Images(nn.Module):
    """Two steerable convolutions and a sum over the group and the image."""

    def __init__(self, space: Any, hidden: list[Any], activation: Any) -> None:
        from escnn import nn as enn

        super().__init__()
        self.type_in = enn.FieldType(space, 2 * [space.trivial_repr])
        first = activation(space, hidden)
        second = enn.FieldType(space, 3 * [space.trivial_repr])
        self.first = enn.R2Conv(self.type_in, first.in_type, kernel_size=3, padding=1)
        self.activation = first
        self.second = enn.R2Conv(first.out_type, first.in_type, kernel_size=3, padding=1)
        self.again = activation(space, hidden)
        self.last = enn.R2Conv(first.out_type, second, kernel_size=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        from escnn import nn as enn

        h = self.activation(self.first(enn.GeometricTensor(x, self.type_in)))
        h = self.again(self.second(h))
        return self.head(torch.tanh(self.last(h).tensor).mean(dim=(2, 3)))


def _relu(space: Any, hidden: list[Any]) -> Any:
    from escnn import nn as enn

    return enn.ReLU(enn.FieldType(space, hidden), inplace=False)


def c4_images() -> FamilyCase:
    """Regular fields of C4 on 9 x 9 images."""
    from escnn import gspaces

    torch.manual_seed(0)
    space = gspaces.rot2dOnR2(4)
    module = _perturbed(Images(space, 2 * [space.regular_repr], _relu))
    batch = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return FamilyCase("escnn C4", module, batch, lambda model, x: model(x), turn, same, "C4")


class Scalars(nn.Module):
    """Convolutions between scalar fields, with kernels of nine points and of one."""

    def __init__(self, space: Any) -> None:
        from escnn import nn as enn

        super().__init__()
        self.type_in, self.type = (enn.FieldType(space, count * [space.trivial_repr]) for count in (1, 3))
        self.wide = enn.R2Conv(self.type_in, self.type, kernel_size=3, padding=1)
        self.narrow = enn.R2Conv(self.type, self.type, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        from escnn import nn as enn

        h = self.wide(enn.GeometricTensor(x, self.type_in)).tensor.tanh()
        return self.narrow(enn.GeometricTensor(h, self.type)).tensor.square().mean((-2, -1))


class Vectors(nn.Module):
    """Linear layers between fields of frequencies 0, 1, 2, gated by norms."""

    def __init__(self) -> None:
        from escnn import group, gspaces
        from escnn import nn as enn

        super().__init__()
        space = gspaces.no_base_space(group.so2_group(2))
        irreps = [space.irrep(k) for k in range(3)]
        self.type_in = enn.FieldType(space, 2 * [irreps[0]] + 2 * [irreps[1]] + [irreps[2]])
        self.type = enn.FieldType(space, 3 * [irreps[0]] + 2 * [irreps[1]] + 2 * [irreps[2]])
        self.first = enn.Linear(self.type_in, self.type)
        self.second = enn.Linear(self.type, self.type)
        self.head = nn.Linear(7, 2)

    def _norms(self, x: Tensor) -> Tensor:
        pairs = x[:, 3:].unflatten(1, (4, 2)).norm(dim=-1)
        return torch.cat([x[:, :3], pairs], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        from escnn import nn as enn

        h = self.first(enn.GeometricTensor(x, self.type_in)).tensor
        gate = torch.tanh(self._norms(h)[:, 3:]).repeat_interleave(2, dim=1)
        h = torch.cat([torch.tanh(h[:, :3]), h[:, 3:] * gate], dim=1)
        h = self.second(enn.GeometricTensor(h, self.type)).tensor
        return self.head(self._norms(h))


def _turn_rows(g: Tensor, x: Tensor) -> Tensor:
    angle = torch.atan2(g[1, 0], g[0, 0]).to(x)
    blocks = [torch.ones(1, 1).to(x)] * 2
    for frequency in (1, 1, 2):
        c, s = torch.cos(frequency * angle), torch.sin(frequency * angle)
        blocks.append(torch.stack([torch.stack([c, -s]), torch.stack([s, c])]))
    return x @ torch.block_diag(*blocks).T


def so2_vectors() -> FamilyCase:
    """SO(2) fields without a grid."""
    torch.manual_seed(0)
    module = _perturbed(Vectors())
    batch = torch.randn(12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return FamilyCase("escnn SO2", module, batch, lambda model, x: model(x), _turn_rows, same, "SO2")


def _gate(space: Any, hidden: list[Any]) -> Any:
    from escnn import nn as enn

    return enn.NormNonLinearity(enn.FieldType(space, hidden), bias=False)


def so2_images() -> FamilyCase:
    """SO(2) fields on 17 x 17 images: rotations off the grid need interpolation, so only quarter turns are exact."""
    from escnn import gspaces

    torch.manual_seed(0)
    space = gspaces.rot2dOnR2(-1, maximum_frequency=2)
    module = _perturbed(Images(space, 2 * [space.irrep(1)] + 2 * [space.irrep(0)], _gate))
    batch = torch.randn(2, 2, 17, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return FamilyCase("escnn SO2 images", module, batch, lambda model, x: model(x), turn, same, "SO2")
