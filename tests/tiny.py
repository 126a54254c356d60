"""A tiny O(3)-equivariant network and its task: tests import this file, and copy it as the task file of a user."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

SEEDS = {"train": 1, "validation": 2, "test": 3}


class Net(nn.Module):
    """Two scalars and two vectors in, one vector out: linear, gate, linear."""

    def __init__(self, hidden: int = 2, broken: bool = False) -> None:
        super().__init__()
        self.hidden, self.broken = hidden, broken
        self.first = o3.Linear("2x0e+2x1o", f"{hidden}x0e+{hidden}x1o")
        self.second = o3.Linear(f"{hidden}x1o", "1x1o")

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        mixed = self.first(torch.cat([scalars, vectors.flatten(1)], 1))
        gates, features = mixed[:, : self.hidden], mixed[:, self.hidden :]
        gated = features.unflatten(1, (self.hidden, 3)) * torch.tanh(1 + gates).unsqueeze(2)
        result: Tensor = self.second(gated.flatten(1))
        return result + result.new_tensor([1.0, 0.0, 0.0]) if self.broken else result


class Plain(nn.Module):
    """A network without any equivariant op."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        result: Tensor = self.layer(vectors.flatten(1))
        return result


class TinyTask:
    """A target that a linear map cannot reach; ``trouble`` chooses what goes wrong, at training batch ``at``."""

    primary_metric = "mse"

    def __init__(self, batches: int = 3, trouble: str = "", at: int = 0, hidden: int = 2, empty: str = "") -> None:
        self.count, self.trouble, self.at, self.hidden, self.empty = batches, trouble, at, hidden, empty
        self.seen: list[tuple[str, int]] = []
        self.trained = 0

    def model(self) -> nn.Module:
        if self.trouble == "no sites":
            return Plain()
        return Net(self.hidden, broken=self.trouble == "not symmetric")

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        self.seen.append((split, seed))
        generator = torch.Generator().manual_seed(1000 * SEEDS[split] + (seed if split == "train" else 0))
        for _ in range(0 if split == self.empty else self.count):
            scalars, vectors = torch.randn(8, 2, generator=generator), torch.randn(8, 2, 3, generator=generator)
            target = vectors[:, 0] * scalars[:, :1] + 0.3 * vectors[:, 1]
            yield {"scalars": scalars, "vectors": vectors, "target": target}

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        if self.trouble == "other inputs":
            return model(batch["scalars"])
        if model.training and torch.is_grad_enabled():
            self._misbehave()
        return model(batch["scalars"], batch["vectors"])

    def _misbehave(self) -> None:
        self.trained += 1
        if self.trouble == "stop once" and self.trained == self.at and not Path("stopped").exists():
            Path("stopped").touch()
            raise KeyboardInterrupt
        if self.trouble in ("INT", "KILL") and self.trained == self.at and not Path("stopped").exists():
            Path("stopped").touch()
            os.kill(os.getpid(), getattr(signal, f"SIG{self.trouble}"))
        if self.trouble == "raise" and self.trained == self.at:
            raise ZeroDivisionError("the data went away\nwith a second line")

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        loss = (outputs - batch["target"]).square().mean()
        return loss * float("nan") if self.trouble == "nan" and self.trained >= self.at else loss

    def metrics(self, outputs: Tensor, batch: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
        return {"mse": (float((outputs - batch["target"]).square().sum()), outputs.numel())}

    def act(self, g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        matrix = g.to(batch["vectors"])
        return {**batch, "vectors": batch["vectors"] @ matrix.T, "target": batch["target"] @ matrix.T}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return outputs @ g.to(outputs).T


def make_task(batches: int = 3, trouble: str = "", at: int = 0, hidden: int = 2, empty: str = "") -> TinyTask:
    return TinyTask(batches, trouble, at, hidden, empty)


def make_net(hidden: int = 2) -> nn.Module:
    return Net(hidden)
