"""Frames of extended-XYZ files as NequIP reads them, for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.support.modes import default_dtype
from surgeon_adapters.atoms.task import Frames, Isolated
from surgeon_adapters.atoms.xyz_frames import LabelledFrames, read_labelled, require_labels_of_all
from surgeon_adapters.nequip.models import import_nequip

INPUTS = ("pos", "atom_types", "edge_index", "cell", "edge_cell_shift")
"""What a model is given of a frame; the cell of one that is not periodic is 0."""


@dataclass(frozen=True)
class Potential:
    """What a model says about its data.

    Attributes:
        types: names of its atom types, in order.
        species: chemical symbol to name of the type.
        metadata: what nequip's own calculator reads off it, the cutoff among it.
        shifts: energy that it adds per atom of each type, in eV.
        dtype: of its weights.
    """

    types: tuple[str, ...]
    species: Mapping[str, str]
    metadata: Mapping[str, str]
    shifts: tuple[float, ...]
    dtype: torch.dtype

    @property
    def isolated(self) -> dict[int, float]:
        """The shifts by atomic number."""
        from ase.data import atomic_numbers

        return {atomic_numbers[symbol]: self.shifts[self.types.index(kind)] for symbol, kind in self.species.items()}


def potential_of(model: nn.Module, species: Mapping[str, str] | None) -> Potential:
    """Read a model.

    Args:
        model: a NequIP potential.
        species: chemical symbol to name of the atom type; None if the types are called like their elements.

    Raises:
        TaskError: if it is no NequIP potential, has no forces, or its types are not told apart by elements.
    """
    from ase.data import atomic_numbers

    if not getattr(model, "is_graph_model", False):
        raise TaskError(
            f"expected a NequIP potential for the task of nequip, got {type(model).__name__}: "
            "give a task file of your own"
        )
    graph: Any = model
    types = tuple(graph.type_names)
    chosen = dict(species) if species is not None else {name: name for name in types}
    wrong = sorted({symbol for symbol in chosen if symbol not in atomic_numbers} | set(chosen.values()) - {*types})
    if wrong:
        raise TaskError(
            f"expected a chemical element for each atom type of the model ({', '.join(types)}), got "
            f"{', '.join(wrong)}: "
            'say which as --task-args \'{"species": {"H": "' + types[0] + "\"}}'"
        )
    if "forces" not in graph.irreps_out or not getattr(graph.model, "do_derivatives", True):
        raise TaskError("expected a NequIP potential with forces, got one without: give a task file of your own")
    return Potential(types, chosen, graph.metadata, _shifts(model, len(types)), next(model.parameters()).dtype)


def _shifts(model: nn.Module, types: int) -> tuple[float, ...]:
    for name, module in model.named_modules():
        if name.endswith("per_type_energy_scale_shift") and getattr(module, "has_shifts", False):
            shifts: Any = module.shifts
            return tuple(shifts.detach().double().reshape(-1).expand(types).tolist())
    return (0.0,) * types


class NequipFrames(Frames):
    """Frames as dicts of float64 tensors, as nequip's transforms make them."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a fresh batch."""
        batch = import_nequip("data.AtomicDataDict").batched_from_list([self.graphs[index] for index in indices])
        return {
            key: value.to(self.dtype) if value.is_floating_point() else value.clone() for key, value in batch.items()
        }


def frames_of(
    path: Path, potential: Potential, keys: Mapping[str, str | None], isolated: Isolated | None = None
) -> NequipFrames:
    """Read an extended-XYZ file.

    Args:
        path: the file.
        potential: what the model says.
        keys: label to its name in the file, or None for the usual ones.
        isolated: energies of isolated atoms, if the file has no frames of type IsolatedAtom; by default the model's.

    Raises:
        TaskError: as for :func:`surgeon_adapters.atoms.xyz_frames.read_labelled`, or if some frames lack a label of
            others.
    """
    read = read_labelled(path, keys, potential.isolated, isolated or potential.isolated)
    require_labels_of_all(path, read)
    transforms = _transforms(potential)
    graphs = [_graph(read, index, transforms) for index in range(len(read.frames))]
    return NequipFrames(graphs, read.labels, read.isolated, potential.dtype)


def _transforms(potential: Potential) -> Sequence[Any]:
    """Return what nequip's own calculator does to atoms: types, and neighbours within the cutoff."""
    metadata = potential.metadata
    made: Sequence[Any] = import_nequip("integrations.utils").basic_transforms(
        dict(metadata), float(metadata["r_max"]), list(potential.types), dict(potential.species)
    )
    return made


def _graph(read: LabelledFrames, index: int, transforms: Sequence[Any]) -> dict[str, Tensor]:
    """Return a frame with its neighbour list as a dict of tensors; its energy is that of interaction."""
    from ase.stress import voigt_6_to_full_3x3_stress

    frame, values = read.frames[index], read.values[index]
    copied = type(frame)(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    with default_dtype(torch.float64):
        data: dict[str, Tensor] = import_nequip("data").from_ase(copied)
        for transform in transforms:
            data = transform(data)
    kept = {name: data[name] for name in INPUTS}
    if "energy" in read.labels:
        kept["total_energy"] = torch.tensor([[read.interaction_energy(index)]], dtype=torch.float64)
    if "forces" in read.labels:
        kept["forces"] = torch.as_tensor(values["forces"], dtype=torch.float64)
    if "stress" in read.labels:
        stress = torch.as_tensor(values["stress"], dtype=torch.float64)
        full = torch.as_tensor(voigt_6_to_full_3x3_stress(stress.numpy())) if stress.numel() == 6 else stress
        kept["stress"] = full.reshape(1, 3, 3)
    return kept
