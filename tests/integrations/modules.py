"""LightningModules around the small network, as users write them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.integrations.loops import RATE, Batch, network

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-integrations")


class Module(pl.LightningModule):
    """Knows nothing of branches; ``late`` says in which hook the network is built."""

    def __init__(self, late: str = "") -> None:
        super().__init__()
        self.late = late
        if not late:
            self.network = network()

    def setup(self, stage: str) -> None:
        if self.late == "setup":
            self.network = network()

    def configure_model(self) -> None:
        if self.late == "configure_model" and not hasattr(self, "network"):
            self.network = network()

    def loss(self, batch: Batch) -> Tensor:
        scalars, vectors, target = batch
        return functional.mse_loss(self.network(scalars, vectors), target)

    def training_step(self, batch: Batch) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("error", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=RATE)


class Manual(Module):
    """Takes its steps by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        loss, optimizer = self.loss(batch), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class TwoOptimizers(Manual):
    """Trains a second network by an optimiser and a loss of its own, as adversarial training does."""

    def __init__(self, judge_first: bool) -> None:
        super().__init__()
        self.judge, self.judge_first = nn.Linear(3, 1).double(), judge_first

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        losses = [lambda: self.loss(batch), lambda: self.judge(batch[2]).square().mean()]
        pairs = list(zip(losses, self.optimizers(), strict=True))
        for loss, optimizer in reversed(pairs) if self.judge_first else pairs:
            optimizer.zero_grad()
            self.manual_backward(loss())
            optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.AdamW(part.parameters(), lr=RATE) for part in (self.network, self.judge)]


class InDict(Module):
    """Returns its loss in a dict."""

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        return {"loss": self.loss(batch), "more": 1}


class Bystander(Module):
    """Calls its network in eval mode, where branches record nothing."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.network.eval()
        return self.loss(batch)


class ListMadeBefore(Module):
    """Its optimiser gets a list of parameters that was made before there were branches."""

    def __init__(self) -> None:
        super().__init__()
        self.made_before = list(self.parameters())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.made_before, lr=RATE)


class WithAverage(Module):
    """Keeps an average of the network's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.average = torch.optim.swa_utils.AveragedModel(self.network)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.network)


class TwoNetworks(Module):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(1, 1)


class FailsBefore(Module):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        raise KeyError("the data are not there")


class _Broken(nn.Linear):
    def forward(self, vectors: Tensor) -> Tensor:
        raise ValueError("not today")


class BreaksDown(Module):
    """Its network fails."""

    def __init__(self) -> None:
        super().__init__()
        del self.network
        self.network = _Broken(6, 3).double()

    def loss(self, batch: Batch) -> Tensor:
        return self.network(batch[1].flatten(1)).square().mean()


class NeverCalls(Module):
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return sum(parameter.square().sum() for parameter in self.network.parameters())


def loader(data: Sequence[Batch]) -> DataLoader:
    """In the given order; all batches have to have the size of the first."""
    together = [torch.cat(tensors) for tensors in zip(*data, strict=True)]
    return DataLoader(TensorDataset(*together), batch_size=len(data[0][0]))


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """One epoch on the CPU, in silence."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})
