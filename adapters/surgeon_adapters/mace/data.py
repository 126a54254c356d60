"""Frames of atoms as MACE reads them, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.support.modes import default_dtype
from surgeon_adapters.atoms.potential import Frames, Potential
from surgeon_adapters.atoms.reference import Energies
from surgeon_adapters.atoms.xyz_frames import DEFAULT_KEYS, LabelledFrames
from surgeon_adapters.mace.checks import further_inputs
from surgeon_adapters.mace.models import KINDS, import_mace

INPUTS = ("positions", "node_attrs", "edge_index", "shifts", "unit_shifts", "cell", "batch", "ptr", "head")
LABELS = ("energy", "forces", "stress", "weight", "energy_weight", "forces_weight", "stress_weight")


class MaceFrames(Frames):
    """Frames as MACE's own data objects, in float64."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a fresh batch as a dict; without stress if no frame has one."""
        batch = import_mace("tools.torch_geometric").Batch.from_data_list([self.graphs[index] for index in indices])
        skipped = () if "stress" in self.labels else ("stress", "stress_weight")
        chosen = {key: batch[key].clone() for key in (*INPUTS, *LABELS) if key not in skipped}
        return {key: value.to(self.dtype) if value.is_floating_point() else value for key, value in chosen.items()}


@dataclass(frozen=True)
class Head(Potential):
    """What a model says about its data; the isolated atoms are those of the head in use.

    Attributes:
        cutoff: radius of the neighbour list, in angstrom.
        names: of all heads.
        name: of the head in use.
        weights: of the whole model, all that are trained.
    """

    cutoff: float
    names: tuple[str, ...]
    name: str
    weights: int

    kind = MaceFrames
    lacking_labels = True

    def graph(self, read: LabelledFrames, index: int) -> Any:
        """Return a frame with its neighbour list as MACE's data object; its energy is that of interaction."""
        data, tools = import_mace("data"), import_mace("tools")
        copied = read.frames[index].copy()
        for label, value in {**read.values[index], "energy": read.interaction_energy(index)}.items():
            if value is not None:
                place = copied.arrays if label == "forces" else copied.info
                place[DEFAULT_KEYS[label]] = value
        specification = data.KeySpecification(
            info_keys={label: DEFAULT_KEYS[label] for label in ("energy", "stress")},
            arrays_keys={"forces": DEFAULT_KEYS["forces"]},
        )
        configuration = data.config_from_atoms(copied, key_specification=specification, head_name=self.name)
        with default_dtype(torch.float64):
            return data.AtomicData.from_config(
                configuration,
                z_table=tools.AtomicNumberTable(list(self.isolated)),
                cutoff=self.cutoff,
                heads=list(self.names),
            )


def head_of(model: nn.Module, name: str | None) -> Head:
    """Read a model.

    Args:
        name: of the head; None if it has only one.

    Raises:
        TaskError: if it is no MACE potential, or has several heads or none of this name.
    """
    potential: Any = model
    _require_potential(model)
    missing = [part for part in ("atomic_numbers", "r_max", "atomic_energies_fn") if not hasattr(model, part)]
    if missing:
        raise TaskError(
            f"expected a MACE potential for the task of mace, got {type(model).__name__} without {missing[0]}: "
            "give a task file of your own"
        )
    names = tuple(getattr(model, "heads", None) or ("Default",))
    if name is None and len(names) > 1:
        raise TaskError(
            f"the model has {len(names)} heads ({', '.join(names)}): choose the one to train with "
            f'--task-args \'{{"head": "{names[0]}"}}\''
        )
    chosen = names[0] if name is None else name
    if chosen not in names:
        raise TaskError(f"expected a head among {', '.join(names)}, got {chosen!r}: correct `head` in --task-args")
    numbers = tuple(int(number) for number in potential.atomic_numbers)
    energies = _energies(potential, numbers, len(names), names.index(chosen))
    weights = sum(weight.numel() for weight in model.parameters())
    return Head(energies, next(model.parameters()).dtype, float(potential.r_max), names, chosen, weights)


def _energies(potential: Any, numbers: tuple[int, ...], heads: int, head: int) -> Energies:
    """Read the energies of isolated atoms in one head."""
    from ase.data import chemical_symbols

    stored = potential.atomic_energies_fn.atomic_energies.detach()
    return Energies(
        tuple(stored.double().reshape(heads, len(numbers))[head].tolist()),
        tuple(chemical_symbols[number] for number in numbers),
        {number: kind for kind, number in enumerate(numbers)},
        "atomic_energies_fn.atomic_energies",
        (head,) if stored.dim() > 1 else (),
    )


def _require_potential(model: nn.Module) -> None:
    """Refuse what has no ready task: other classes of the library, and inputs besides atoms."""
    own = next((base for base in type(model).__mro__ if base.__module__.startswith("mace.")), None)
    if own is not None and own.__name__ not in KINDS:
        raise TaskError(
            f"expected a MACE potential of energies and forces ({' or '.join(KINDS)}) for the task of mace, got "
            f"{own.__name__}: give a task file of your own, which knows its other outputs"
        )
    inputs = further_inputs(model)
    if inputs:
        raise TaskError(
            f"expected a MACE potential that takes only atoms for the task of mace, got one that takes "
            f"{', '.join(inputs)} as well: give a task file of your own"
        )
