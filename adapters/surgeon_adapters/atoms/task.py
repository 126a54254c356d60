"""What the tasks of all potentials have in common: frames of labelled atoms, their splits, and how a group acts."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from surgeon.editing.adjust import Adjustments
from surgeon.errors import TaskError
from surgeon.opening.evaluation import fitted
from surgeon.plan import Split
from surgeon.support.modes import in_evaluation_mode
from surgeon_adapters.atoms.acting import act_on_atoms, act_on_labels
from surgeon_adapters.atoms.frame_checks import split_remarks
from surgeon_adapters.atoms.potential import Frames, Potential, graphs_of
from surgeon_adapters.atoms.reference import ESTIMATE, KEEP, WHAT, new_energies, sampled
from surgeon_adapters.atoms.scales import COMPARED, scale_remarks
from surgeon_adapters.atoms.xyz_frames import LabelledFrames, read_labelled

MILLI = 1000.0

ATOMS = 24
"""In the few frames on which ops are looked for, at least."""


@dataclass(frozen=True)
class FrameBatches:
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
    """Energies, forces and stresses of the frames in extended-XYZ files, or others that ASE reads.

    Energies are those of interaction: labels and outputs lose the energies per atom that the model adds, as differences
    taken in float64, or before float32 rounds them.

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
        reference: "keep" leaves the energies per atom that the model adds alone, "estimate" fits them to the labels, a
            JSON file gives them; by default they are changed if the labels are far off.
        label_offsets: further energies that the labels lose per atom, by kind of atom, in eV.
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
    reference: str | None = None
    label_offsets: Mapping[str, float] = field(default_factory=dict)
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

    @property
    def preferred(self) -> Mapping[str, Any]:
        """What a training without branches begins with, see docs/accuracy.md."""
        return {}

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
        elements = potential.energies.kind
        frames = self.split(elements, lambda read, path: graphs_of(read, path, potential, self.label_offsets))
        return replace(self, frames=frames, potential=potential)

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return energies of interaction, forces and, if they are labelled, stresses, also while gradients are off."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            outputs = self.outputs(model, batch, wanted)
        return outputs if wanted else {key: value.detach() for key, value in outputs.items()}

    @abstractmethod
    def outputs(self, model: Any, batch: Mapping[str, Tensor], twice: bool) -> dict[str, Tensor]:
        """Return the same with gradients enabled; ``twice``: forces and stresses have to be differentiable, too."""

    def adjustable(self, model: nn.Module) -> tuple[str, ...]:
        """Return the name of the tensor that holds the energies which a model adds, if it has one."""
        tensor = self.potential_of(model).energies.tensor
        return () if tensor is None else (tensor,)

    def adjustments(self, model: nn.Module) -> Adjustments | None:
        """Compare labels and model on the training frames, and return what gives it the labels' energies per atom.

        Raises:
            TaskError: if there are no energies to fit to, one is not finite, or the file of energies is unusable.
        """
        frames, energies = self._bound("train"), self.potential_of(model).energies
        if self.reference == KEEP or ("energy" not in frames.labels and self.reference is None):
            return None
        if "energy" not in frames.labels and self.reference == ESTIMATE:
            raise TaskError(f"expected energies in {str(self.data)!r} to fit {WHAT} to, got none: leave that out")
        counts = energies.counts(frames.numbers)
        chosen = sampled(counts)
        errors, labelled = self._energy_errors(model, frames.chosen(chosen))
        counts = counts[chosen][labelled]
        new, why = new_energies(energies, errors[labelled], counts, frames.isolated, self.reference)
        return Adjustments(WHAT, why) if new is None else energies.adjustments(model, new, self.label_offsets, why)

    def remarks(self, model: nn.Module) -> tuple[str, ...]:
        """Return what the user should know of the data: labels left out, frames in two splits, other units."""
        told = dict.fromkeys(each for frames in self.frames.values() for each in frames.remarks)
        shared = split_remarks({split: frames.keys for split, frames in self.frames.items()})
        frames = self._bound("train")
        chosen = range(len(frames))[:COMPARED]
        with in_evaluation_mode(model), torch.no_grad():
            given = [fitted(batch, model) for batch in FrameBatches(frames, chosen, self.batch_size)]
            pairs = [self.pairs(self.forward(model, batch), batch) for batch in given]
        if len({tuple(sorted(frames.numbers[index])) for index in chosen}) > 1:
            pairs = [{name: pair for name, pair in each.items() if not name.startswith("energy")} for each in pairs]
        return (*told, *shared, *scale_remarks(pairs))

    def _energy_errors(self, model: nn.Module, frames: Frames) -> tuple[Tensor, Tensor]:
        """Return label minus model in eV, float64, and which frames have a label."""
        errors, labelled = [], []
        with in_evaluation_mode(model), torch.no_grad():
            for batch in FrameBatches(frames, range(len(frames)), self.batch_size):
                given = fitted(batch, model)
                found = self.forward(model, given)["energy"].reshape(-1).double()
                label = given.get(self.energy_label)
                errors.append(found.new_zeros(len(found)) if label is None else label.reshape(-1).double() - found)
                weights = given.get("energy_weight", torch.ones_like(found)).reshape(-1)
                labelled.append((weights > 0) & (label is not None))
        joined, known = torch.cat(errors).cpu(), torch.cat(labelled).cpu()
        wrong = (~torch.isfinite(joined) & known).nonzero().flatten()
        if len(wrong):
            raise TaskError(
                f"expected finite energies of labels and model, but in {str(self.data)!r} {len(wrong)} of {len(known)} "
                "training frames have others: leave such frames out"
            )
        return joined, known

    def read(self, path: Path, elements: Iterable[int]) -> LabelledFrames:
        """Read a file, whose elements have to be the model's."""
        return read_labelled(path, self.keys, elements)

    def split(self, elements: Iterable[int], build: Callable[[LabelledFrames, Path], Frames]) -> dict[Split, Frames]:
        """Read all files, and only then make graphs and share them out.

        Args:
            elements: that the model knows.
            build: makes graphs of what a file holds.

        Raises:
            TaskError: if the settings are unusable, a file is, or there are too few frames.
        """
        if not 0 < self.fraction < 0.5 or self.batch_size < 1:
            raise TaskError(
                f"expected 0 < fraction < 0.5 and a batch_size of at least 1, got {self.fraction} and "
                f"{self.batch_size}: correct --task-args"
            )
        known, others = [*elements], {"validation": self.validation, "test": self.test}
        paths = {split: Path(path).absolute() for split, path in others.items() if path is not None}
        read = {path: self.read(path, known) for path in dict.fromkeys((self.data, *paths.values()))}
        whole = build(read[self.data], self.data)
        order = list(range(len(whole)))
        random.Random(self.seed).shuffle(order)
        result: dict[Split, Frames] = {}
        held_out: tuple[Split, ...] = ("validation", "test")
        for split in held_out:
            if split in paths:
                result[split] = build(read[paths[split]], paths[split])
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

    def batches(self, split: Split, seed: int) -> FrameBatches:
        """Return the batches of a split as dicts; training frames in another order for each seed."""
        frames = self._bound(split)
        order = list(range(len(frames)))
        if split == "train":
            random.Random(seed).shuffle(order)
        return FrameBatches(frames, order, self.batch_size)

    def sample(self) -> dict[str, Tensor]:
        """Return a few validation frames of usual size, with every element that any has: enough to find ops on."""
        frames = self._bound("validation")
        return frames.batch(few(frames.numbers, self.batch_size))

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
        found = {names[label]: error.abs() for label, error in self.errors(outputs, batch).items() if error.numel()}
        return {name: (MILLI * error.sum(), float(error.numel())) for name, error in found.items()}

    def kinds(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the kind of every atom of a batch, as the energies per atom number them; shape (atoms,)."""
        assert self.potential is not None
        return torch.tensor([self.potential.energies.kind[number] for number in batch["atomic_numbers"].tolist()])

    def shifts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return what the model adds to the atoms of each frame, shape (frames,), float64, in eV."""
        assert self.potential is not None
        kinds = self.kinds(batch)
        energies = torch.tensor(self.potential.energies.values, dtype=torch.float64, device=kinds.device)
        each = energies[kinds].to(batch["batch"].device)
        return each.new_zeros(len(self.sizes(batch))).index_add(0, batch["batch"], each)

    def sizes(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the number of atoms of every frame of a batch, shape (frames,)."""
        return batch["num_atoms"].flatten()

    def pairs(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return energies per atom, forces by element and stresses, computed and labelled; where there are labels."""
        assert self.potential is not None
        found: dict[str, tuple[Tensor, Tensor]] = {}
        atoms = self.sizes(batch)
        if self.energy_label in batch:
            there = _labelled(batch, "energy", atoms)
            both = (outputs["energy"].flatten() / atoms, batch[self.energy_label].flatten() / atoms)
            found["energy (eV/atom)"] = (both[0][there], both[1][there])
        if "forces" in batch:
            there = _labelled(batch, "forces", atoms).repeat_interleave(atoms)
            kinds = self.kinds(batch).to(there.device)
            for kind in sorted(set(kinds.tolist())):
                chosen = there & (kinds == kind)
                name = f"force on {self.potential.energies.names[kind]} (eV/A)"
                found[name] = (outputs["forces"][chosen], batch["forces"][chosen])
        if "stress" in batch:
            there = _labelled(batch, "stress", atoms)
            found["stress (eV/A^3)"] = (outputs["stress"][there], batch["stress"][there])
        return found

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the labels in the loss."""
        return {"energy": self.energy_weight, "forces": self.forces_weight, "stress": self.stress_weight}

    def errors(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return output minus label by label, that of energy per atom; of the frames that have the label."""
        atoms, errors = self.sizes(batch), {}
        if "forces" in batch:
            there = _labelled(batch, "forces", atoms).repeat_interleave(atoms)
            errors["forces"] = (outputs["forces"] - batch["forces"])[there]
        if "stress" in batch:
            errors["stress"] = (outputs["stress"] - batch["stress"])[_labelled(batch, "stress", atoms)]
        if self.energy_label in batch:
            error = (outputs["energy"] - batch[self.energy_label]).flatten() / atoms
            errors["energy"] = error[_labelled(batch, "energy", atoms)]
        return errors

    def perturbed(self, batch: Mapping[str, Tensor], noise: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Move the positions by noise in A, and nothing else; the neighbours stay who they are."""
        return {**batch, self.positions: batch[self.positions] + noise(batch[self.positions])}

    def relabelled(self, batch: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take outputs for labels, every one with the weight 1."""
        labels = {self.energy_label if name == "energy" else name: value for name, value in outputs.items()}
        weights = {name: torch.ones_like(batch[name]) for name in batch if name == "weight" or name.endswith("_weight")}
        return {**batch, **weights, **labels}

    def act(self, g: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rotate or reflect positions, cells and labels; a 4 x 4 element also shifts the positions."""
        return act_on_atoms(g, batch, self.positions, self.vectors)

    def act_output(self, g: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Energies are invariant, forces are vectors, stresses are symmetric tensors."""
        return act_on_labels(g, outputs)


def _labelled(batch: Mapping[str, Tensor], label: str, atoms: Tensor) -> Tensor:
    """Tell of every frame whether it has a label; libraries give one that is missing the weight 0."""
    weight = batch.get(f"{label}_weight")
    return torch.ones_like(atoms, dtype=torch.bool) if weight is None else weight.flatten() != 0


class ByAttribute(dict[str, Any]):
    """A batch as some libraries read it: by key and by attribute."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def few(numbers: Sequence[Sequence[int]], most: int) -> list[int]:
    """Choose frames that show what a model does: of usual size, with all elements that occur.

    Args:
        numbers: atomic numbers of each frame.
        most: frames to choose, if all elements occur in so many.

    Returns:
        Two frames or more, with :data:`ATOMS` atoms together; in the order of the frames.
    """
    sizes = [len(each) for each in numbers]
    usual = sorted(sizes)[len(sizes) // 2]
    order = sorted(range(len(sizes)), key=lambda index: (abs(sizes[index] - usual), index))
    chosen, seen = list[int](), set[int]()
    for index in order:
        wanted = len(chosen) < min(2, most) or (len(chosen) < most and sum(sizes[i] for i in chosen) < ATOMS)
        if wanted or not seen.issuperset(numbers[index]):
            chosen.append(index)
            seen.update(numbers[index])
    return sorted(chosen)
