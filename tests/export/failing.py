"""A network whose second block does what cannot be exported; each kind on a line of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LIBRARY = torch.library.Library("surgeon_tests", "DEF")
LIBRARY.define("opaque(Tensor x) -> Tensor")
LIBRARY.impl("opaque", lambda x: x + 1, "CPU")


class Block(nn.Module):
    """Does one thing."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        match self.kind:
            case "decision":
                return x * (2.0 if x.sum() > 0 else 1.0)
            case "count":
                return x * sum(range(int(x.abs().max().item())))
            case "operator":
                return torch.linalg.svd(x)[1]
            case "custom operator":
                return torch.ops.surgeon_tests.opaque(x)  # type: ignore[no-any-return]
            case "one size":
                return x.view(7, 3) if len(x) == 7 else x + 1
            case "mistake":
                return x * torch.ones(4) if torch.compiler.is_exporting() else x
        return x


class Failing(nn.Module):
    """A block that works and one that does not."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 3), Block(kind)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class RowsTask:
    """Rows of three numbers."""

    input_names = ("rows",)

    def batches(self, split: str, seed: int) -> list[Tensor]:
        return [torch.randn(size, 3) for size in (7, 9, 12, 15)]

    def loss(self, outputs: Tensor, batch: Tensor) -> Tensor:
        return outputs.mean()
