"""Frames of atoms as SevenNet reads them, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon_adapters.atoms.potential import Frames, Potential, labels_of
from surgeon_adapters.atoms.reference import Energies
from surgeon_adapters.atoms.xyz_frames import LabelledFrames
from surgeon_adapters.sevennet.models import import_sevenn

INPUTS = ("x", "atomic_numbers", "edge_index", "edge_vec", "cell_volume", "num_atoms", "batch")
RESCALE = "rescale_atomic_energy"


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


@dataclass(frozen=True)
class SevenNetPotential(Potential):
    """What a model says about its data; what it adds per atom stands for the isolated atoms.

    Attributes:
        cutoff: radius of the neighbour list, in angstrom.
    """

    cutoff: float

    kind = SevenNetFrames

    def graph(self, read: LabelledFrames, index: int) -> dict[str, Tensor]:
        """Return a frame with its neighbour list as a dict of tensors; its energy is that of interaction."""
        frame = read.frames[index]
        made = import_sevenn("train.dataload").unlabeled_atoms_to_graph(frame, self.cutoff)
        data = {key: torch.as_tensor(made[key]) for key in ("atomic_numbers", "pos", "edge_index", "edge_vec")}
        data["atomic_numbers"] = data["atomic_numbers"].long()
        data["edge_index"] = data["edge_index"].long()
        data["x"] = data["atomic_numbers"].clone()
        data["cell_volume"] = torch.tensor([float(frame.cell.volume)], dtype=torch.float64)
        return data | labels_of(read, index)


def potential_of(model: nn.Module, modal: str | None) -> SevenNetPotential:
    """Read a model.

    Args:
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
    return SevenNetPotential(_energies(potential, modal), next(model.parameters()).dtype, float(potential.cutoff))


def _energies(potential: Any, modal: str | None) -> Energies:
    """Read the shifts off a model; where kinds of labels or all elements share them, there is no place for others."""
    from ase.data import chemical_symbols

    kinds, shift = dict(potential.type_map), getattr(potential, RESCALE).shift.detach().double()
    first = (potential.modal_map[modal],) if shift.dim() > 1 else ()
    own = (modal is None or bool(first)) and shift[first].numel() == len(kinds)
    return Energies(
        tuple(shift[first].expand(len(kinds)).tolist()),
        tuple(chemical_symbols[number] for number in sorted(kinds, key=lambda number: kinds[number])),
        kinds,
        f"{RESCALE}.shift" if own else None,
        first,
    )
