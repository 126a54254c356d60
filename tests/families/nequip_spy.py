"""A Lightning callback that writes down what happened in a NequIP training; a configuration of the tests names it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.editing.branch import branches_of
from surgeon.editing.strip import strip
from surgeon.plan import CHILD

pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: make test-nequip")


class Spy(pl.Callback):
    """Saves to ``path``: number of branches and theta at every step, base weights before and after every step, and at
    the end the weights of a stripped copy and the energies of the clean and of a relaxed copy."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.branches: list[int] = []
        self.thetas: list[float] = []
        self.weights: list[dict[str, torch.Tensor]] = []

    def note_weights(self, pl_module: Any) -> None:
        parameters = pl_module.model.named_parameters()
        self.weights.append({name: value.detach().clone() for name, value in parameters if CHILD not in name})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note_weights(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        found = branches_of(pl_module)
        self.branches.append(len(found))
        self.thetas.extend(float(branch.theta[0]) for branch in list(found.values())[:1])
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.note_weights(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        noted: dict[str, Any] = {"branches": self.branches, "thetas": self.thetas, "weights": self.weights}
        relaxed = copy.deepcopy(pl_module.model["sole_model"]).eval()
        if branches_of(relaxed):
            for branch in branches_of(relaxed).values():
                branch.theta.fill_(1.0)
            noted["relaxed energy"] = relaxed(self.batch)["total_energy"].detach()
            strip(relaxed, "drop")
        noted["clean energy"] = relaxed(self.batch)["total_energy"].detach()
        noted["clean weights"] = relaxed.state_dict()
        torch.save(noted, self.path)
