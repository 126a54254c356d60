"""A network of e3nn layers (linear, tensor product, gate, batch normalisation) and its task: copied as a task file."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from e3nn import nn as enn
from e3nn import o3
from torch import Tensor, nn

HIDDEN = "2x0e+2x1o"


class WithOne(nn.Module):
    """A vector and the scalar 1."""

    def forward(self, v: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(v[:, :1]), v], dim=1)


class Gated(nn.Module):
    """Features (n, 8) and one vector (n, 3) to a scalar and a vector (n, 4)."""

    def __init__(self, harmonics: bool = True) -> None:
        super().__init__()
        self.first = o3.Linear(HIDDEN, HIDDEN, biases=True)
        self.gate = enn.Gate("2x0e", [torch.nn.functional.silu], "2x0e", [torch.sigmoid], "2x1o")
        self.product = o3.FullyConnectedTensorProduct(HIDDEN, "1x0e+1x1o", self.gate.irreps_in)
        self.directions = o3.SphericalHarmonics([0, 1], True) if harmonics else WithOne()
        self.norm = enn.BatchNorm(HIDDEN)
        self.last = o3.Linear(HIDDEN, "1x0e+1x1o")

    def forward(self, x: Tensor, v: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(self.gate(self.product(self.first(x), self.directions(v)))))
        return result


class GatedTask:
    """Random targets; the last batch is smaller."""

    input_names = ("x", "v")

    def model(self) -> nn.Module:
        return Gated()

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(len(split))
        for size in (12, 7, 5, 3):
            yield {"x": torch.randn(size, 8, generator=generator), "v": torch.randn(size, 3, generator=generator)}

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        result: Tensor = model(batch["x"], batch["v"])
        return result

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (outputs[:, 1:] - batch["v"]).square().mean()

    def act(self, g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        scalars, vectors = batch["x"][:, :2], batch["x"][:, 2:].unflatten(1, (2, 3))
        x = torch.cat([scalars, (vectors @ self._matrix(g, vectors).T).flatten(1)], dim=1)
        return {"x": x, "v": batch["v"] @ self._matrix(g, batch["v"]).T}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return torch.cat([outputs[:, :1], outputs[:, 1:] @ self._matrix(g, outputs).T], dim=1)

    @staticmethod
    def _matrix(g: Tensor, like: Tensor) -> Tensor:
        """e3nn's vectors have the order of coordinates (x, y, z), as everybody's."""
        return g.to(like)


task = GatedTask()
