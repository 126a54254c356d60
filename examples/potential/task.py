"""Fine-tuning task: energies and forces of ethanol, for a potential that was trained on other molecules and labels.

``ethanol.npz`` holds frames of revised MD17 (PBE/def2-SVP). Energies are differences from the training frames' mean:
what an atom by itself contributes is another matter for every kind of label, so ``shift`` is set before training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from potential import Potential
from torch import Tensor

from surgeon.editing.adjust import Adjustments, changes_of
from surgeon.errors import UsageError
from surgeon.plan import Split

Batch = Mapping[str, Tensor]
Outputs = Mapping[str, Tensor]

FRAMES = Path(__file__).with_name("ethanol.npz")
EVALUATION_BATCH = 50
MILLI = 1e3


@dataclass(frozen=True)
class EthanolTask:
    """Frames of one molecule.

    Attributes:
        frames: file with ``kinds`` and, for every split, ``SPLIT_positions``, ``SPLIT_energies``, ``SPLIT_forces``.
        train_samples: how many of the training frames are used.
        batch_size: frames per training batch.
    """

    frames: Path = FRAMES
    train_samples: int = 100
    batch_size: int = 5
    _cache: dict[Split, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    primary_metric: ClassVar[str] = "force_mae"
    primary_direction: ClassVar[str] = "min"
    input_names: ClassVar[tuple[str, ...]] = ("kinds", "positions")
    output_names: ClassVar[tuple[str, ...]] = ("energy", "forces")
    dynamic_axes: ClassVar[Mapping[str, tuple[int, ...]]] = dict.fromkeys(
        ("kinds", "positions", "energy", "forces"), (0,)
    )
    units: ClassVar[Mapping[str, str]] = {"energy_mae": "meV/atom", "force_mae": "meV/A"}

    def model(self) -> Potential:
        """Return a network of the shipped checkpoint's architecture with fresh weights."""
        return Potential()

    def batches(self, split: Split, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield ``kinds`` (f, a), ``positions`` (f, a, 3) in A, ``energy`` (f,) in eV, ``forces`` (f, a, 3) in eV/A."""
        data = self._data(split)
        count = len(data["energy"])
        order = torch.arange(count)
        if split == "train":
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        for rows in order.split(self.batch_size if split == "train" else EVALUATION_BATCH):
            yield {name: values[rows] for name, values in data.items()}

    def forward(self, model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return energies in eV and forces in eV/A."""
        energy, forces = model(batch["kinds"], batch["positions"])
        return {"energy": energy, "forces": forces}

    def errors(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return output minus label: energies per atom, forces."""
        atoms = batch["kinds"].shape[1]
        return (outputs["energy"] - batch["energy"]) / atoms, outputs["forces"] - batch["forces"]

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        """Return the sum of the mean squared errors of energies per atom and of forces."""
        energy, forces = self.errors(outputs, batch)
        return energy.square().mean() + forces.square().mean()

    def metrics(self, outputs: Outputs, batch: Batch) -> dict[str, tuple[float, float]]:
        """Return mean absolute errors of energies per atom in meV, and of forces in meV/A, as sums and counts."""
        names = ("energy_mae", "force_mae")
        errors = (error.detach().double() for error in self.errors(outputs, batch))
        return {
            name: (MILLI * float(error.abs().sum()), float(error.numel()))
            for name, error in zip(names, errors, strict=True)
        }

    def pairs(self, outputs: Outputs, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return energies per atom and forces, as computed and as labelled, for a report."""
        atoms = batch["kinds"].shape[1]
        energies = (outputs["energy"] / atoms, batch["energy"] / atoms)
        return {"energy (eV/atom)": energies, "force (eV/A)": (outputs["forces"], batch["forces"])}

    def adjustable(self, model: torch.nn.Module) -> tuple[str, ...]:
        """Name what :meth:`adjustments` may change."""
        return ("shift",)

    def adjustments(self, model: torch.nn.Module) -> Adjustments:
        """Set the potential's energy per atom by itself to what the training frames say on average."""
        found = [self.errors(self.forward(model, batch), batch)[0].detach() for batch in self.batches("train", seed=0)]
        error = float(torch.cat(found).double().mean())
        value = float(model.get_buffer("shift")) - error
        why = f"the potential's energies differ from the training frames' by {error:.4g} eV per atom on average"
        return Adjustments("energies per atom", why, changes_of(model, "shift", {(): value}, {(): "all elements"}))

    def act(self, g: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Turn positions and forces, and move positions if g is 4 x 4."""
        turn = g[:3, :3].to(batch["positions"])
        acted = {name: batch[name] @ turn.T for name in ("positions", "forces") if name in batch}
        if len(g) == 4:
            acted["positions"] = acted["positions"] + g[:3, 3].to(acted["positions"])
        return {**batch, **acted}

    def act_output(self, g: Tensor, outputs: Outputs) -> dict[str, Tensor]:
        """Turn forces; energies are invariant."""
        return {**outputs, "forces": outputs["forces"] @ g[:3, :3].to(outputs["forces"]).T}

    def _data(self, split: Split) -> dict[str, Tensor]:
        if split not in self._cache:
            with np.load(self.frames) as file:
                arrays = {name: file[f"{split}_{name}"] for name in ("positions", "energies", "forces")}
                kinds = torch.tensor(file["kinds"].astype(np.int64))
            taken = slice(self.train_samples if split == "train" else None)
            values = {name: torch.tensor(array[taken], dtype=torch.float32) for name, array in arrays.items()}
            energy = values.pop("energies")
            self._cache[split] = {"kinds": kinds.repeat(len(energy), 1), "energy": energy, **values}
        return self._cache[split]


def make_task(train_samples: int = 100, batch_size: int = 5) -> EthanolTask:
    """Return the task; the arguments are attributes of :class:`EthanolTask`.

    Raises:
        UsageError: if a number is not positive.
    """
    if min(train_samples, batch_size) < 1:
        smallest = min(train_samples, batch_size)
        raise UsageError(f"expected train_samples and batch_size of at least 1, got {smallest}: give larger ones")
    return EthanolTask(FRAMES, train_samples, batch_size)
