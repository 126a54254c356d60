"""What a potential says about its data, and the frames that its library makes of a file for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from surgeon_adapters.atoms.frame_checks import frame_key
from surgeon_adapters.atoms.reference import Energies
from surgeon_adapters.atoms.xyz_frames import LabelledFrames, require_labels_of_all


@dataclass(frozen=True)
class Frames(ABC):
    """Frames of one file as graphs in float64, which become batches of the model's dtype.

    Attributes:
        graphs: one per frame, as the library wants them.
        numbers: atomic numbers of each frame.
        labels: which of energy, forces and stress the frames have.
        isolated: energies of the file's own isolated atoms in eV, by atomic number.
        dtype: of the batches.
        keys: equal for frames that hold the same atoms at the same places.
        remarks: what the user should know of the file, in sentences.
    """

    graphs: Sequence[Any] = field(repr=False)
    numbers: Sequence[Sequence[int]] = field(repr=False)
    labels: tuple[str, ...]
    isolated: Mapping[int, float]
    dtype: torch.dtype
    keys: Sequence[bytes] = field(repr=False)
    remarks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.graphs)

    def chosen(self, indices: Sequence[int]) -> Self:
        """Return some of the frames."""
        graphs, numbers = ([each[index] for index in indices] for each in (self.graphs, self.numbers))
        return replace(self, graphs=graphs, numbers=numbers, keys=[self.keys[index] for index in indices])

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a fresh batch as a dict."""


@dataclass(frozen=True)
class Potential(ABC):
    """What a model says about its data.

    Attributes:
        energies: of isolated atoms, or whatever else the model adds per atom.
        dtype: of its weights.
    """

    energies: Energies
    dtype: torch.dtype

    kind: ClassVar[type[Frames]]
    lacking_labels: ClassVar[bool] = False
    """Whether the library's loss knows of frames without a label that others have."""

    @cached_property
    def isolated(self) -> dict[int, float]:
        """Atomic number to the energy that the model adds per atom, in eV."""
        return self.energies.of_elements()

    @abstractmethod
    def graph(self, read: LabelledFrames, index: int) -> Any:
        """Return a frame with its neighbour list as the library makes it; its energy is that of interaction."""


def graphs_of(
    read: LabelledFrames, path: Path, potential: Potential, offsets: Mapping[str, float] | None = None
) -> Frames:
    """Make graphs of what a file holds.

    Args:
        offsets: energies that the labels lose per atom besides those that the model adds, by kind of atom, in eV.

    Raises:
        TaskError: if some frames lack a label of others and the library's loss knows of no such frames.
    """
    if not potential.lacking_labels:
        require_labels_of_all(path, read)
    read = replace(read, reference=potential.energies.of_elements(offsets))
    graphs = [potential.graph(read, index) for index in range(len(read.frames))]
    keys = [frame_key(frame) for frame in read.frames]
    return potential.kind(graphs, read.numbers, read.labels, read.isolated, potential.dtype, keys, read.remarks)


def labels_of(read: LabelledFrames, index: int) -> dict[str, Tensor]:
    """Return the labels of a frame in float64: energy of interaction (1,), forces (n, 3) and stress (1, 3, 3)."""
    from ase.stress import voigt_6_to_full_3x3_stress

    found = {label: torch.as_tensor(read.values[index][label], dtype=torch.float64) for label in read.labels}
    if "energy" in found:
        found["energy"] = torch.tensor([read.interaction_energy(index)], dtype=torch.float64)
    if "stress" in found:
        stress = found["stress"]
        full = torch.as_tensor(voigt_6_to_full_3x3_stress(stress.numpy())) if stress.numel() == 6 else stress
        found["stress"] = full.reshape(1, 3, 3)
    return found
