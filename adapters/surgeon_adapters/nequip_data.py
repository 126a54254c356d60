"""Frames of extended-XYZ files as NequIP reads them, for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.modes import default_dtype
from surgeon_adapters.nequip_models import import_nequip
from surgeon_adapters.xyz_frames import DEFAULT_KEYS, label_of, no_labels, read_frames, require_known, without_isolated

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


@dataclass(frozen=True)
class Frames:
    """Frames of one file as graphs in float64, which become batches of the model's dtype.

    Attributes:
        graphs: dicts of tensors, as nequip's transforms make them.
        labels: which of energy, forces and stress the frames have.
        isolated: the energies that were taken off the labels, by atomic number.
        dtype: of the batches.
    """

    graphs: Sequence[dict[str, Tensor]] = field(repr=False)
    labels: tuple[str, ...]
    isolated: Mapping[int, float]
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.graphs)

    def chosen(self, indices: Sequence[int]) -> Frames:
        """Return some of the frames."""
        return replace(self, graphs=[self.graphs[index] for index in indices])

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a fresh batch."""
        batch = import_nequip("data.AtomicDataDict").batched_from_list([self.graphs[index] for index in indices])
        return {
            key: value.to(self.dtype) if value.is_floating_point() else value.clone() for key, value in batch.items()
        }


def frames_of(
    path: Path,
    potential: Potential,
    keys: Mapping[str, str | None],
    isolated: Mapping[int, float] | None = None,
) -> Frames:
    """Read an extended-XYZ file.

    Args:
        path: the file.
        potential: what the model says.
        keys: label to its name in the file, or None for the usual ones.
        isolated: energies of isolated atoms by atomic number, if the file has no frames of type IsolatedAtom.

    Raises:
        TaskError: if it cannot be read, has no labels or not all of them, or has elements that the model does not know.
    """
    frames, energies = without_isolated(read_frames(path), keys)
    energies = energies or dict(isolated or potential.isolated)
    require_known(path, frames, potential.isolated, "the model")
    require_known(path, frames, energies, "the set of isolated atoms")
    values = [{label: label_of(frame, label, keys) for label in DEFAULT_KEYS} for frame in frames]
    labels = _labels(path, frames, values)
    transforms = _transforms(potential)
    pairs = zip(frames, values, strict=True)
    graphs = [_graph(frame, {key: value[key] for key in labels}, transforms, energies) for frame, value in pairs]
    return Frames(graphs, labels, energies, potential.dtype)


def _labels(path: Path, frames: Sequence[Any], values: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the labels that all frames have; nequip knows no frames without one that others have."""
    counts = {label: sum(value[label] is not None for value in values) for label in DEFAULT_KEYS}
    labels = tuple(label for label, count in counts.items() if count)
    if "energy" not in labels and "forces" not in labels:
        raise no_labels(path, frames)
    for label in labels:
        if counts[label] < len(frames):
            raise TaskError(
                f"expected {label} of all {len(frames)} frames of {str(path)!r}, "
                f"{len(frames) - counts[label]} lack it: leave these frames out"
            )
    return labels


def _transforms(potential: Potential) -> Sequence[Any]:
    """Return what nequip's own calculator does to atoms: types, and neighbours within the cutoff."""
    metadata = potential.metadata
    made: Sequence[Any] = import_nequip("integrations.utils").basic_transforms(
        dict(metadata), float(metadata["r_max"]), list(potential.types), dict(potential.species)
    )
    return made


def _graph(
    frame: Any, values: Mapping[str, Any], transforms: Sequence[Any], energies: Mapping[int, float]
) -> dict[str, Tensor]:
    """Return a frame with its neighbour list as a dict of tensors; its energy is that of interaction."""
    from ase.stress import voigt_6_to_full_3x3_stress

    copied = type(frame)(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    with default_dtype(torch.float64):
        data: dict[str, Tensor] = import_nequip("data").from_ase(copied)
        for transform in transforms:
            data = transform(data)
    kept = {name: data[name] for name in INPUTS}
    if "energy" in values:
        interaction = float(values["energy"]) - sum(energies[int(number)] for number in frame.numbers)
        kept["total_energy"] = torch.tensor([[interaction]], dtype=torch.float64)
    if "forces" in values:
        kept["forces"] = torch.as_tensor(values["forces"], dtype=torch.float64)
    if "stress" in values:
        stress = torch.as_tensor(values["stress"], dtype=torch.float64)
        full = torch.as_tensor(voigt_6_to_full_3x3_stress(stress.numpy())) if stress.numel() == 6 else stress
        kept["stress"] = full.reshape(1, 3, 3)
    return kept
