"""A task for Equiformer on MD17 and rMD17 files: energies and forces, with the published loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.plan import Split
from surgeon_adapters.atoms.acting import act_on_atoms, act_on_labels
from surgeon_adapters.atoms.md17 import Sizes, Trajectory, read_md17, split_frames
from surgeon_adapters.atoms.md17_splits import published_splits


@dataclass(frozen=True)
class EquiformerTask:
    """Energies and forces of the frames of one molecule.

    The network predicts energies and forces in units of the standard deviation of the training energies, relative to
    their mean. Outputs here are in kcal/mol and kcal/mol/Angstrom; energies stay relative to the mean, which is
    subtracted from labels in float64, because float32 would round a total energy to 0.01 kcal/mol.

    Attributes:
        data: the ``.npz`` file.
        train, validation, test: numbers of frames, see :class:`surgeon_adapters.atoms.md17.Sizes`.
        seed: of the choice of frames.
        split: number of a split published with rMD17, from files beside the data; instead of a choice by ``seed``.
        batch_size: frames per batch.
        energy_weight, forces_weight: of the loss, the published ones for ``l_max`` = 2.
        mean, std: of the energies that the checkpoint was trained on, in kcal/mol; default: of the training frames.
    """

    data: Path
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    seed: int = 1
    split: int | None = None
    batch_size: int = 8
    energy_weight: float = 1.0
    forces_weight: float = 80.0
    mean: float | None = None
    std: float | None = None
    frames: Trajectory | None = field(default=None, repr=False)
    splits: Mapping[Split, Tensor] = field(default_factory=dict, repr=False)
    dtype: torch.dtype = field(default=torch.float32, repr=False)

    primary_metric = "force_mae"
    primary_direction = "min"
    input_names = ("z", "pos", "batch")
    output_names = ("energy", "forces")

    def for_model(self, model: nn.Module) -> EquiformerTask:
        """Read the file for a model.

        Raises:
            TaskError: if the model is no Equiformer, or the file does not fit it.
        """
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise TaskError(f"expected a batch_size of at least 1, got {self.batch_size}: correct --task-args")
        known = getattr(getattr(model, "atom_embed", None), "max_atom_type", None)
        if known is None:
            raise TaskError(
                f"expected an Equiformer for the task of equiformer, got {type(model).__name__}: give another task"
            )
        frames = read_md17(self.data)
        if int(frames.numbers.max()) >= known or int(frames.numbers.min()) < 0:
            raise TaskError(
                f"expected atomic numbers from 0 to {known - 1}, which the network tells apart, but {str(self.data)!r} "
                f"has {sorted(set(frames.numbers.tolist()))}: is the checkpoint one of another data set (QM9)?"
            )
        splits = self._chosen(len(frames))
        energies = frames.energies[splits["train"]]
        mean = float(energies.mean()) if self.mean is None else self.mean
        std = self._std(energies)
        dtype = next(model.parameters()).dtype
        return replace(self, frames=frames, splits=splits, mean=mean, std=std, dtype=dtype)

    def _chosen(self, count: int) -> dict[Split, Tensor]:
        sizes = Sizes(self.train, self.validation, self.test, self.seed)
        if self.split is None:
            return split_frames(count, sizes)
        return published_splits(self.data, self.split, count, sizes)

    def _std(self, energies: Tensor) -> float:
        std = self.std
        if std is None:
            std = float(energies.std()) if len(energies) > 1 else 0.0
        if not std > 0:
            raise TaskError(
                f"expected training energies that differ, got a standard deviation of {std}: give std in --task-args"
            )
        return std

    @property
    def units(self) -> Mapping[str, str]:
        """Units of metrics, inputs and outputs."""
        return {
            "energy_mae": "kcal/mol",
            "force_mae": "kcal/mol/A",
            "pos": "A",
            "energy": "kcal/mol",
            "forces": "kcal/mol/A",
        }

    def _bound(self) -> tuple[Trajectory, float, float]:
        if self.frames is None or self.mean is None or self.std is None:
            raise TaskError("the task of equiformer has not seen its model yet: call for_model(model) first")
        return self.frames, self.mean, self.std

    def batches(self, split: Split, seed: int) -> Iterable[dict[str, Tensor]]:
        """Return the batches of a split as dicts; training frames in another order for each seed."""
        frames, mean, _ = self._bound()
        order = self.splits[split]
        if split == "train":
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))]
        return _Batches(frames, order, self.batch_size, mean, self.dtype)

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return energies (b,) relative to the mean and forces (n, 3)."""
        *_, std = self._bound()
        energy, forces = model(node_atom=batch["z"], pos=batch["pos"], batch=batch["batch"])
        return {"energy": std * energy.squeeze(-1), "forces": std * forces}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return the published loss: mean absolute energies and mean lengths of force differences, over std."""
        *_, std = self._bound()
        energies = (outputs["energy"] - batch["energy"]).abs().mean()
        forces = torch.linalg.vector_norm(outputs["forces"] - batch["forces"], dim=-1).mean()
        loss: Tensor = (self.energy_weight * energies + self.forces_weight * forces) / std
        return loss

    def metrics(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, float]]:
        """Return mean absolute errors, of energies and of components of forces."""
        errors = {name: (outputs[name] - batch[name]).abs() for name in ("energy", "forces")}
        return {
            "energy_mae": (errors["energy"].sum(), float(errors["energy"].numel())),
            "force_mae": (errors["forces"].sum(), float(errors["forces"].numel())),
        }

    def act(self, g: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rotate or reflect positions and labels; a 4 x 4 element also shifts the positions."""
        return act_on_atoms(g, batch, "pos")

    def act_output(self, g: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Energies are invariant, forces are vectors."""
        return act_on_labels(g, outputs)


@dataclass(frozen=True)
class _Batches:
    """Batches made while they are drawn."""

    frames: Trajectory
    order: Tensor
    size: int
    mean: float
    dtype: torch.dtype

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        atoms = len(self.frames.numbers)
        for chosen in torch.split(self.order, self.size):
            yield {
                "z": self.frames.numbers.repeat(len(chosen)),
                "pos": self.frames.positions[chosen].reshape(-1, 3).to(self.dtype),
                "batch": torch.arange(len(chosen)).repeat_interleave(atoms),
                "energy": (self.frames.energies[chosen] - self.mean).to(self.dtype),
                "forces": self.frames.forces[chosen].reshape(-1, 3).to(self.dtype),
            }
