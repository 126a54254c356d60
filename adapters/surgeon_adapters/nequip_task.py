"""A task for NequIP potentials on extended-XYZ files: energies, forces and stresses, with NequIP's own loss."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.types import Split
from surgeon_adapters.nequip_data import INPUTS, Frames, Potential, frames_of, potential_of

MILLI = 1000.0
EXACT = ("pos", "cell", "edge_cell_shift")
"""Inputs that NequIP takes in float64, whatever the dtype of the weights."""

_INPUTS = (*INPUTS, "batch", "num_atoms")


@dataclass(frozen=True)
class NequipTask:
    """Energies, forces and stresses of the frames in extended-XYZ files.

    Energies are those of interaction: labels lose the energies of their isolated atoms (of the file's own, if it has
    frames of type IsolatedAtom, else the shifts of the model), and outputs the shifts that the model had when it was
    opened. Both are differences taken in float64.

    Attributes:
        data: the training frames.
        validation: another file; without one, ``fraction`` of the training frames.
        test: the same for the test split.
        fraction: of the frames of ``data``, per split without a file of its own.
        seed: chooses these frames.
        batch_size: frames per batch.
        energy_weight, forces_weight, stress_weight: coefficients of NequIP's loss, which divides them by their sum.
        species: chemical symbol to name of the model's atom type, if these are not called like their elements.
        energy_key, forces_key, stress_key: names of the labels in the files; by default REF_energy, ..., or what ASE
            reads as results.
    """

    data: Path
    validation: str | None = None
    test: str | None = None
    fraction: float = 0.1
    seed: int = 0
    batch_size: int = 8
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 1.0
    species: Mapping[str, str] | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    frames: Mapping[Split, Frames] = field(default_factory=dict, repr=False)
    shifts: tuple[float, ...] = ()

    primary_direction = "min"
    output_names = ("energy", "forces", "stress")

    def for_model(self, model: nn.Module) -> NequipTask:
        """Read the files for a model: its atom types, cutoff and shifts.

        Raises:
            TaskError: if it is no NequIP potential, or a file does not fit it.
        """
        if not 0 < self.fraction < 0.5 or self.batch_size < 1:
            raise TaskError(
                f"expected 0 < fraction < 0.5 and a batch_size of at least 1, got {self.fraction} and "
                f"{self.batch_size}: correct --task-args"
            )
        potential = potential_of(model, self.species)
        return replace(self, frames=self._split(potential), shifts=potential.shifts)

    def _split(self, potential: Potential) -> dict[Split, Frames]:
        keys = {"energy": self.energy_key, "forces": self.forces_key, "stress": self.stress_key}
        whole = frames_of(self.data, potential, keys)
        order = list(range(len(whole)))
        random.Random(self.seed).shuffle(order)
        result: dict[Split, Frames] = {}
        others: tuple[tuple[Split, str | None], ...] = (("validation", self.validation), ("test", self.test))
        for split, path in others:
            if path is not None:
                result[split] = frames_of(Path(path).absolute(), potential, keys, whole.isolated)
                continue
            count = max(1, round(self.fraction * len(whole)))
            taken, order = order[:count], order[count:]
            result[split] = whole.chosen(taken)
        if not order:
            raise TaskError(
                f"expected enough frames for training, validation and test in {str(self.data)!r}, got {len(whole)}: "
                'give validation and test files of their own as --task-args \'{"validation": "FILE", "test": "FILE"}\''
            )
        return {"train": whole.chosen(sorted(order)), **result}

    @property
    def labels(self) -> tuple[str, ...]:
        """Which of energy, forces and stress the training frames have."""
        return self._bound("train").labels

    @property
    def primary_metric(self) -> str:
        """Forces decide where they are labelled."""
        return "force_mae" if "forces" in self.labels else "energy_mae"

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the metrics."""
        return {"energy_mae": "meV/atom", "force_mae": "meV/A", "stress_mae": "meV/A^3"}

    def _bound(self, split: Split) -> Frames:
        if split not in self.frames:
            raise TaskError("the task of nequip has not seen its model yet: call for_model(model) first")
        return self.frames[split]

    def batches(self, split: Split, seed: int) -> Iterable[dict[str, Tensor]]:
        """Return the batches of a split as dicts; training frames in another order for each seed."""
        frames = self._bound(split)
        order = list(range(len(frames)))
        if split == "train":
            random.Random(seed).shuffle(order)
        return Batches(frames, order, self.batch_size)

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return energies of interaction, forces and, if they are labelled, stresses."""
        given = {key: batch[key].detach().clone() for key in _INPUTS}
        given |= {key: given[key].double() for key in EXACT}
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            result = model(given)
        outputs = {"energy": result["total_energy"] - self._shifts(batch), "forces": result["forces"]}
        if "stress" in batch:
            outputs["stress"] = result["stress"]
        return outputs if wanted else {key: value.detach() for key, value in outputs.items()}

    def _shifts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the shifts of all atoms of each frame, shape (frames, 1), float64."""
        shifts = torch.tensor(self.shifts, dtype=torch.float64, device=batch["pos"].device)[batch["atom_types"]]
        return shifts.new_zeros(len(batch["num_atoms"])).index_add(0, batch["batch"], shifts)[:, None]

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return NequIP's weighted loss: squared errors of energy per atom, of forces, and of stress."""
        weights = {"energy": self.energy_weight, "forces": self.forces_weight, "stress": self.stress_weight}
        errors = _errors(outputs, batch)
        total = sum(weights[label] for label in errors)
        loss: Any = sum(weights[label] / total * error.square().mean() for label, error in errors.items())
        scalar: Tensor = loss.to(batch["pos"].dtype)
        return scalar

    def metrics(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, float]]:
        """Return mean absolute errors: energy per atom in meV, forces in meV/A, stress in meV/A^3."""
        names = {"energy": "energy_mae", "forces": "force_mae", "stress": "stress_mae"}
        errors = _errors(outputs, batch)
        return {names[label]: (MILLI * error.abs().sum(), float(error.numel())) for label, error in errors.items()}

    def act(self, g: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rotate or reflect positions, cells and labels; a 4 x 4 element also shifts the positions."""
        matrix = g.to(batch["pos"])
        rotation = matrix[:3, :3]
        moved = {key: batch[key] @ rotation.T for key in ("pos", "cell", "forces") if key in batch}
        if len(matrix) == 4:
            moved["pos"] = moved["pos"] + matrix[:3, 3]
        if "stress" in batch:
            moved["stress"] = rotation @ batch["stress"] @ rotation.T
        return {**batch, **moved}

    def act_output(self, g: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Energies are invariant, forces are vectors, stresses are symmetric tensors."""
        rotation = g[:3, :3].to(outputs["forces"])
        moved = {"forces": outputs["forces"] @ rotation.T}
        if "stress" in outputs:
            moved["stress"] = rotation @ outputs["stress"] @ rotation.T
        return {**outputs, **moved}


def _errors(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return output minus label by label; that of energy per atom."""
    errors = {key: outputs[key] - batch[key] for key in ("forces", "stress") if key in batch}
    if "total_energy" in batch:
        errors["energy"] = (outputs["energy"] - batch["total_energy"]) / batch["num_atoms"][:, None]
    return errors


@dataclass(frozen=True)
class Batches:
    """Batches made while they are drawn."""

    frames: Frames
    order: Sequence[int]
    size: int

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for first in range(0, len(self.order), self.size):
            yield self.frames.batch(self.order[first : first + self.size])
