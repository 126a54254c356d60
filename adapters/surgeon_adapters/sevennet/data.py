"""Frames of extended-XYZ files as SevenNet reads them, for one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon_adapters.atoms.task import Frames, Isolated
from surgeon_adapters.atoms.xyz_frames import LabelledFrames, read_labelled, require_labels_of_all
from surgeon_adapters.sevennet.models import import_sevenn

INPUTS = ("x", "atomic_numbers", "edge_index", "edge_vec", "cell_volume", "num_atoms", "batch")
RESCALE = "rescale_atomic_energy"


@dataclass(frozen=True)
class Potential:
    """What a model says about its data.

    Attributes:
        shifts: atomic number to the energy that it adds per atom, in eV.
        cutoff: radius of the neighbour list, in angstrom.
        dtype: of its weights.
    """

    shifts: Mapping[int, float]
    cutoff: float
    dtype: torch.dtype


def potential_of(model: nn.Module, modal: str | None) -> Potential:
    """Read a model.

    Args:
        model: a SevenNet potential.
        modal: which of the kinds of labels that it was trained on; None if it has only one.

    Raises:
        TaskError: if it is no SevenNet potential, or has several kinds of labels or none of this name.
    """
    potential: Any = model
    if not hasattr(model, "type_map") or not hasattr(model, RESCALE):
        raise TaskError(
            f"expected a SevenNet potential for the task of sevennet, got {type(model).__name__}: "
            "give a task file of your own"
        )
    names = list(potential.modal_map or ())
    if (modal is None) is bool(names) or (modal is not None and modal not in names):
        raise TaskError(
            f"expected one of the model's kinds of labels as modal, {', '.join(names) or 'of which it has none'}, got "
            f"{modal!r}: correct --task-args"
        )
    shift = getattr(model, RESCALE).shift.detach().double()
    row = shift if shift.dim() < 2 else shift[potential.modal_map[modal]]
    values = row.expand(len(potential.type_map)).tolist()
    shifts = {number: values[index] for number, index in potential.type_map.items()}
    return Potential(shifts, float(potential.cutoff), next(model.parameters()).dtype)


class SevenNetFrames(Frames):
    """Frames as dicts of float64 tensors, as sevenn makes them of atoms."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a fresh batch."""
        graphs = [self.graphs[index] for index in indices]
        counts = torch.tensor([len(graph["pos"]) for graph in graphs])
        first = counts.cumsum(0) - counts
        shifted = [graph["edge_index"] + start for graph, start in zip(graphs, first, strict=True)]
        joined = {key: torch.cat([graph[key] for graph in graphs]) for key in graphs[0] if key != "edge_index"}
        joined |= {"edge_index": torch.cat(shifted, dim=1), "num_atoms": counts}
        joined["batch"] = torch.repeat_interleave(torch.arange(len(graphs)), counts)
        return {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in joined.items()}


def frames_of(
    path: Path, potential: Potential, keys: Mapping[str, str | None], isolated: Isolated | None = None
) -> SevenNetFrames:
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
    read = read_labelled(path, keys, potential.shifts, isolated or potential.shifts)
    require_labels_of_all(path, read)
    graphs = [_graph(read, index, potential.cutoff) for index in range(len(read.frames))]
    return SevenNetFrames(graphs, read.labels, read.isolated, potential.dtype)


def _graph(read: LabelledFrames, index: int, cutoff: float) -> dict[str, Tensor]:
    """Return a frame with its neighbour list as a dict of tensors; its energy is that of interaction."""
    from ase.stress import voigt_6_to_full_3x3_stress

    frame, values = read.frames[index], read.values[index]
    made = import_sevenn("train.dataload").unlabeled_atoms_to_graph(frame, cutoff)
    data = {key: torch.as_tensor(made[key]) for key in ("atomic_numbers", "pos", "edge_index", "edge_vec")}
    data["atomic_numbers"] = data["atomic_numbers"].long()
    data["edge_index"] = data["edge_index"].long()
    data["x"] = data["atomic_numbers"].clone()
    data["cell_volume"] = torch.tensor([float(frame.cell.volume)], dtype=torch.float64)
    if "energy" in read.labels:
        data["energy"] = torch.tensor([read.interaction_energy(index)], dtype=torch.float64)
    if "forces" in read.labels:
        data["forces"] = torch.as_tensor(values["forces"], dtype=torch.float64)
    if "stress" in read.labels:
        stress = torch.as_tensor(values["stress"], dtype=torch.float64)
        full = torch.as_tensor(voigt_6_to_full_3x3_stress(stress.numpy())) if stress.numel() == 6 else stress
        data["stress"] = full.reshape(1, 3, 3)
    return data
