"""What the tasks of all potentials have in common: frames of labelled atoms, their splits, and how a group acts."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.plan import Split
from surgeon_adapters.atoms.potential import Frames, Isolated, Potential, frames_of

MILLI = 1000.0


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


@dataclass(frozen=True)
class AtomisticTask(ABC):
    """Energies, forces and stresses of the frames in extended-XYZ files.

    Attributes:
        data: the training frames.
        validation: another file; without one, ``fraction`` of the training frames.
        test: the same for the test split.
        fraction: of the frames of ``data``, per split without a file of its own.
        seed: chooses these frames.
        batch_size: frames per batch.
        energy_weight, forces_weight, stress_weight: of the library's own loss.
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
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    frames: Mapping[Split, Frames] = field(default_factory=dict, repr=False)
    potential: Potential | None = field(default=None, repr=False)

    library: ClassVar[str]
    positions: ClassVar[str]
    """Name of the positions in a batch."""
    vectors: ClassVar[tuple[str, ...]]
    """What else turns with them and is not moved."""
    energy_label: ClassVar[str] = "energy"
    """Name of the energies in a batch."""

    primary_direction = "min"
    output_names = ("energy", "forces", "stress")

    @abstractmethod
    def potential_of(self, model: nn.Module) -> Potential:
        """Read off a model what it says about its data.

        Raises:
            TaskError: if it is none of the library's potentials.
        """

    def for_model(self, model: nn.Module) -> Self:
        """Read the files for a model: its elements, cutoff and isolated atoms.

        Raises:
            TaskError: if it is none of the library's potentials, or a file does not fit it.
        """
        potential = self.potential_of(model)
        frames = self.split(lambda path, isolated: frames_of(path, potential, self.keys, isolated))
        return replace(self, frames=frames, potential=potential)

    def split(self, read: Callable[[Path, Isolated | None], Frames]) -> dict[Split, Frames]:
        """Read the files and share out the frames.

        Args:
            read: reads one file, given the isolated atoms of the training file.

        Raises:
            TaskError: if the settings are unusable, a file is, or there are too few frames.
        """
        if not 0 < self.fraction < 0.5 or self.batch_size < 1:
            raise TaskError(
                f"expected 0 < fraction < 0.5 and a batch_size of at least 1, got {self.fraction} and "
                f"{self.batch_size}: correct --task-args"
            )
        whole = read(self.data, None)
        order = list(range(len(whole)))
        random.Random(self.seed).shuffle(order)
        result: dict[Split, Frames] = {}
        others: tuple[tuple[Split, str | None], ...] = (("validation", self.validation), ("test", self.test))
        for split, path in others:
            if path is not None:
                result[split] = read(Path(path).absolute(), whole.isolated)
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
    def keys(self) -> dict[str, str | None]:
        """Names of the labels in the files; None for the usual ones."""
        return {"energy": self.energy_key, "forces": self.forces_key, "stress": self.stress_key}

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
            raise TaskError(f"the task of {self.library} has not seen its model yet: call for_model(model) first")
        return self.frames[split]

    def batches(self, split: Split, seed: int) -> Batches:
        """Return the batches of a split as dicts; training frames in another order for each seed."""
        frames = self._bound(split)
        order = list(range(len(frames)))
        if split == "train":
            random.Random(seed).shuffle(order)
        return Batches(frames, order, self.batch_size)

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the mean squared errors of energy per atom, forces and stress."""
        errors = self.errors(outputs, batch)
        loss: Any = sum(self.weights[label] * error.square().mean() for label, error in errors.items())
        scalar: Tensor = loss.to(batch[self.positions].dtype)
        return scalar

    def metrics(
        self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, tuple[Tensor | float, float]]:
        """Return mean absolute errors: energy per atom in meV, forces in meV/A, stress in meV/A^3."""
        names = {"energy": "energy_mae", "forces": "force_mae", "stress": "stress_mae"}
        errors = self.errors(outputs, batch)
        return {names[label]: (MILLI * error.abs().sum(), float(error.numel())) for label, error in errors.items()}

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the labels in the loss."""
        return {"energy": self.energy_weight, "forces": self.forces_weight, "stress": self.stress_weight}

    def errors(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return output minus label by label, that of energy per atom; where all frames have the label."""
        errors = {key: outputs[key] - batch[key] for key in ("forces", "stress") if key in batch}
        if self.energy_label in batch:
            energy = outputs["energy"]
            errors["energy"] = (energy - batch[self.energy_label]) / batch["num_atoms"].reshape(energy.shape)
        return errors

    def act(self, g: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rotate or reflect positions, cells and labels; a 4 x 4 element also shifts the positions."""
        return act_on_atoms(g, batch, self.positions, self.vectors)

    def act_output(self, g: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Energies are invariant, forces are vectors, stresses are symmetric tensors."""
        return act_on_labels(g, outputs)


def act_on_atoms(
    g: Tensor, batch: Mapping[str, Tensor], positions: str, vectors: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Act on a batch of atoms and its labels.

    Args:
        g: shape (3, 3), or (4, 4) with a shift, which only the positions take.
        batch: what turns has the axis of vectors last; everything else stays.
        positions: name of the positions.
        vectors: names of what else turns, where it is there, apart from forces and stresses.
    """
    matrix = g.to(batch[positions])
    turned = {key: batch[key] @ matrix[:3, :3].T for key in (positions, *vectors) if key in batch}
    if len(matrix) == 4:
        turned[positions] = turned[positions] + matrix[:3, 3]
    return {**act_on_labels(g, batch), **turned}


def act_on_labels(g: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn forces (n, 3) and stresses (b, 3, 3), where they are there; everything else is invariant."""
    turned = dict(labels)
    if "forces" in labels:
        turned["forces"] = labels["forces"] @ g[:3, :3].to(labels["forces"]).T
    if "stress" in labels:
        rotation = g[:3, :3].to(labels["stress"])
        turned["stress"] = rotation @ labels["stress"] @ rotation.T
    return turned
