"""Frames of atoms as NequIP reads them, for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.support.modes import default_dtype
from surgeon_adapters.atoms.potential import Frames, Potential, labels_of
from surgeon_adapters.atoms.reference import Energies
from surgeon_adapters.atoms.xyz_frames import LabelledFrames
from surgeon_adapters.nequip.models import import_nequip

INPUTS = ("pos", "atom_types", "edge_index", "cell", "edge_cell_shift")
"""What a model is given of a frame; the cell of one that is not periodic is 0."""


class NequipFrames(Frames):
    """Frames as dicts of float64 tensors, as nequip's transforms make them."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a fresh batch."""
        batch = import_nequip("data.AtomicDataDict").batched_from_list([self.graphs[index] for index in indices])
        return {
            key: value.to(self.dtype) if value.is_floating_point() else value.clone() for key, value in batch.items()
        }


@dataclass(frozen=True)
class NequipPotential(Potential):
    """What a model says about its data; what it adds per atom stands for the isolated atoms.

    Attributes:
        types: names of its atom types, in order.
        species: chemical symbol to name of the type.
        metadata: what nequip's own calculator reads off it, the cutoff among it.
    """

    types: tuple[str, ...]
    species: Mapping[str, str]
    metadata: Mapping[str, str]

    kind = NequipFrames

    def graph(self, read: LabelledFrames, index: int) -> dict[str, Tensor]:
        """Return a frame with its neighbour list as a dict of tensors; its energy is that of interaction."""
        frame = read.frames[index]
        copied = type(frame)(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
        with default_dtype(torch.float64):
            data: dict[str, Tensor] = import_nequip("data").from_ase(copied)
            for transform in self._transforms:
                data = transform(data)
        labels = labels_of(read, index)
        if "energy" in labels:
            labels["total_energy"] = labels.pop("energy")[:, None]
        return {name: data[name] for name in INPUTS} | labels

    @cached_property
    def _transforms(self) -> Sequence[Any]:
        """What nequip's own calculator does to atoms: types, and neighbours within the cutoff."""
        made: Sequence[Any] = import_nequip("integrations.utils").basic_transforms(
            dict(self.metadata), float(self.metadata["r_max"]), list(self.types), dict(self.species)
        )
        return made


def potential_of(model: nn.Module, species: Mapping[str, str] | None) -> NequipPotential:
    """Read a model.

    Args:
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
    kinds = {atomic_numbers[symbol]: types.index(kind) for symbol, kind in chosen.items()}
    energies = _energies(model, types, kinds)
    return NequipPotential(energies, next(model.parameters()).dtype, types, chosen, graph.metadata)


def _energies(model: nn.Module, types: tuple[str, ...], kinds: Mapping[int, int]) -> Energies:
    """Read the shifts off a model; where all types share one there is no place for others."""
    for name, module in model.named_modules():
        if name.endswith("per_type_energy_scale_shift") and getattr(module, "has_shifts", False):
            shifts: Any = module.shifts
            values = tuple(shifts.detach().double().reshape(-1).expand(len(types)).tolist())
            own = shifts.numel() == len(types)
            return Energies(values, types, kinds, f"{name}.shifts" if own else None, (), (0,))
    return Energies((0.0,) * len(types), types, kinds)
