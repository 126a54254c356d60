"""Images for a steerable network of C4, with its model: copied as the task file of a user."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Images(nn.Module):
    """Two steerable convolutions with regular fields, and an invariant."""

    def __init__(self) -> None:
        from escnn import gspaces
        from escnn import nn as enn

        super().__init__()
        self.geometric = enn.GeometricTensor
        space = gspaces.rot2dOnR2(4)
        self.type_in = enn.FieldType(space, 2 * [space.trivial_repr])
        hidden = enn.FieldType(space, 2 * [space.regular_repr])
        self.first = enn.R2Conv(self.type_in, hidden, kernel_size=3, padding=1)
        self.activation = enn.ReLU(hidden, inplace=False)
        self.second = enn.R2Conv(hidden, enn.FieldType(space, 3 * [space.trivial_repr]), kernel_size=3, padding=1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.activation(self.first(self.geometric(x, self.type_in)))
        result: Tensor = self.head(torch.tanh(self.second(hidden).tensor).mean(dim=(2, 3)))
        return result


class ImageTask:
    """Random images under quarter turns."""

    input_names = ("image",)
    output_names = ("scores",)

    def model(self) -> nn.Module:
        return Images().train()  # a new layer of escnn has the buffers of eval mode, too

    def batches(self, split: str, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(len(split))
        yield torch.randn(12, 2, 9, 9, generator=generator)

    def loss(self, outputs: Tensor, batch: Tensor) -> Tensor:
        return outputs.square().mean()

    def act(self, g: Tensor, batch: Tensor) -> Tensor:
        turns = round(float(torch.atan2(g[1, 0], g[0, 0])) / (math.pi / 2)) % 4
        return torch.rot90(batch, turns, (-2, -1))

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return outputs


task = ImageTask()
