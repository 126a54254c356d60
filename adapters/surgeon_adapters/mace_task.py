"""A task for MACE potentials on extended-XYZ files: energies, forces and stresses, with MACE's own loss."""

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
from surgeon_adapters.mace_data import Frames, Head, frames_of, head_of
from surgeon_adapters.mace_models import import_mace

MILLI = 1000.0

_INPUTS = ("positions", "node_attrs", "edge_index", "shifts", "unit_shifts", "cell", "batch", "ptr", "head")
_LABELS = ("energy", "forces", "stress", "weight", "energy_weight", "forces_weight", "stress_weight")


@dataclass(frozen=True)
class MaceTask:
    """Energies, forces and stresses of the frames in extended-XYZ files.

    Energies are those of interaction: labels lose the energies of their isolated atoms (of the file's own, if it has
    frames of type IsolatedAtom, else of the model's), and outputs those of the model's. Both are differences taken in
    float64, or before float32 rounds them.

    Attributes:
        data: the training frames.
        validation: another file; without one, ``fraction`` of the training frames.
        test: the same for the test split.
        fraction: of the frames of ``data``, per split without a file of its own.
        seed: chooses these frames.
        batch_size: frames per batch.
        energy_weight, forces_weight, stress_weight: of MACE's loss.
        head: which head of a model with several to train; its name.
        energy_key, forces_key, stress_key: names of the labels in the files; by default MACE's own (REF_energy, ...),
            or what ASE reads as results.
    """

    data: Path
    validation: str | None = None
    test: str | None = None
    fraction: float = 0.1
    seed: int = 0
    batch_size: int = 8
    energy_weight: float = 1.0
    forces_weight: float = 100.0
    stress_weight: float = 1.0
    head: str | None = None
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    frames: Mapping[Split, Frames] = field(default_factory=dict, repr=False)

    primary_direction = "min"
    output_names = ("energy", "forces", "stress")

    def for_model(self, model: nn.Module) -> MaceTask:
        """Read the files for a model: its elements, cutoff, head and isolated atoms.

        Raises:
            TaskError: if it is no MACE potential, or a file does not fit it.
        """
        if not 0 < self.fraction < 0.5 or self.batch_size < 1:
            raise TaskError(
                f"expected 0 < fraction < 0.5 and a batch_size of at least 1, got {self.fraction} and "
                f"{self.batch_size}: correct --task-args"
            )
        head = head_of(model, self.head)
        return replace(self, frames=self._split(head))

    def _split(self, head: Head) -> dict[Split, Frames]:
        keys = {"energy": self.energy_key, "forces": self.forces_key, "stress": self.stress_key}
        whole = frames_of(self.data, head, keys)
        order = list(range(len(whole)))
        random.Random(self.seed).shuffle(order)
        result: dict[Split, Frames] = {}
        others: tuple[tuple[Split, str | None], ...] = (("validation", self.validation), ("test", self.test))
        for split, path in others:
            if path is not None:
                result[split] = frames_of(Path(path).absolute(), head, keys, whole.isolated)
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
            raise TaskError("the task of mace has not seen its model yet: call for_model(model) first")
        return self.frames[split]

    def batches(self, split: Split, seed: int) -> Iterable[dict[str, Tensor]]:
        """Return the batches of a split as dicts; training frames in another order for each seed."""
        frames = self._bound(split)
        order = list(range(len(frames)))
        if split == "train":
            random.Random(seed).shuffle(order)
        return Batches(frames, order, self.batch_size)

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return energies of interaction, forces and stresses; MACE writes into the dict that it is given."""
        given = {key: batch[key].detach().clone() for key in _INPUTS}
        wanted, stress = torch.is_grad_enabled(), "stress" in batch
        with torch.enable_grad():
            result = model(given, training=wanted, compute_force=True, compute_stress=stress)
        outputs = {"energy": _interaction(result), "forces": result["forces"]}
        if stress:
            outputs["stress"] = result["stress"]
        return outputs if wanted else {key: value.detach() for key, value in outputs.items()}

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return MACE's weighted loss: squared errors of energy per atom, forces and stress."""
        losses = import_mace("modules.loss")
        if "stress" in batch:
            function = losses.WeightedEnergyForcesStressLoss(self.energy_weight, self.forces_weight, self.stress_weight)
        else:
            function = losses.WeightedEnergyForcesLoss(self.energy_weight, self.forces_weight)
        loss: Tensor = function.to(outputs["forces"])(pred=outputs, ref=_Reference(batch))
        return loss

    def metrics(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor | float, float]]:
        """Return mean absolute errors: energy per atom in meV, forces in meV/A, stress in meV/A^3."""
        atoms = batch["ptr"].diff().to(outputs["energy"])
        energies = (batch["energy"] - outputs["energy"]).abs() / atoms
        found: dict[str, tuple[Tensor | float, float]] = {}
        labelled = batch["energy_weight"] > 0
        if bool(labelled.any()):
            found["energy_mae"] = (MILLI * energies[labelled].sum(), float(labelled.sum()))
        moving = (batch["forces_weight"] > 0)[batch["batch"]]
        if bool(moving.any()):
            errors = (batch["forces"] - outputs["forces"])[moving].abs()
            found["force_mae"] = (MILLI * errors.sum(), float(errors.numel()))
        if "stress" in batch and bool((batch["stress_weight"] > 0).any()):
            errors = (batch["stress"] - outputs["stress"])[batch["stress_weight"] > 0].abs()
            found["stress_mae"] = (MILLI * errors.sum(), float(errors.numel()))
        return found

    def act(self, g: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rotate or reflect positions, cells and labels; a 4 x 4 element also shifts the positions."""
        matrix = g.to(batch["positions"])
        rotation = matrix[:3, :3]
        moved = {key: batch[key] @ rotation.T for key in ("positions", "shifts", "cell", "forces")}
        if len(matrix) == 4:
            moved["positions"] = moved["positions"] + matrix[:3, 3]
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


def _interaction(result: Mapping[str, Tensor]) -> Tensor:
    """Return the energies without those of isolated atoms, which would round the rest away in float32."""
    if result.get("interaction_energy") is not None:
        return result["interaction_energy"]
    return result["contributions"][:, 1:].sum(dim=-1)


class _Reference(dict[str, Tensor]):
    """A batch as MACE's losses read it: by key and by attribute."""

    def __getattr__(self, name: str) -> Tensor:
        return self[name]


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
            yield self.frames.batch(self.order[first : first + self.size], (*_INPUTS, *_LABELS))
