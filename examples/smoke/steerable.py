"""Task file with an exactly equivariant steerable network of escnn: the next velocity field of smoke, under C4."""

from __future__ import annotations

from typing import Any

from task import SmokeTask
from task import make_task as smoke_task
from torch import Tensor, nn


class SteerableNet(nn.Module):
    """Steerable convolutions from the vector fields of a few frames, over regular fields of C4, to a vector field.

    Their sum with the last frame is the prediction.

    Args:
        inputs: frames.
        hidden: regular fields between the layers.
        layers: convolutions, at least 2.
    """

    def __init__(self, inputs: int = 2, hidden: int = 6, layers: int = 3) -> None:
        from escnn import gspaces
        from escnn import nn as enn

        super().__init__()
        space = gspaces.rot2dOnR2(4)
        vectors, between = (lambda n: enn.FieldType(space, n * [space.irrep(1)])), hidden * [space.regular_repr]
        kinds = [vectors(inputs), *(enn.FieldType(space, between) for _ in range(layers - 1)), vectors(1)]
        parts: list[Any] = [enn.R2Conv(kinds[0], kinds[1], kernel_size=3, padding=1)]
        for before, after in zip(kinds[1:], kinds[2:], strict=False):
            parts += [enn.ReLU(before), enn.R2Conv(before, after, kernel_size=3, padding=1)]
        self.body, self.geometric = enn.SequentialModule(*parts), enn.GeometricTensor

    def forward(self, frames: Tensor) -> Tensor:
        """Return the next field (b, 2, h, w) for frames (b, 2 inputs, h, w), whose rows run along y."""
        # the rows of escnn's grids run against y
        h = self.body(self.geometric(frames.flip(-2), self.body.in_type))
        change: Tensor = h.tensor.flip(-2)
        return frames[:, -2:] + change


class SteerableTask(SmokeTask):
    """The task of the smoke data, with the network whose checkpoint is ``steerable.safetensors``."""

    def model(self) -> nn.Module:
        """Return a network in training mode: in eval mode escnn adds the expanded filters to the state dict."""
        return SteerableNet(self.inputs).train()


def make_task(experiments: str = "2_", batch_size: int = 8) -> SteerableTask:
    """Return the task: experiments whose names begin so, of the shipped file of rotations."""
    shared = smoke_task("rotation", experiments=experiments, batch_size=batch_size)
    return SteerableTask(shared.path, shared.experiments, batch_size=shared.batch_size)
