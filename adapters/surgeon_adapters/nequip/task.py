"""A task for NequIP potentials on extended-XYZ files: energies, forces and stresses, with NequIP's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon_adapters.atoms.task import MILLI, AtomisticTask
from surgeon_adapters.nequip.data import INPUTS, frames_of, potential_of

EXACT = ("pos", "cell", "edge_cell_shift")
"""Inputs that NequIP takes in float64, whatever the dtype of the weights."""


@dataclass(frozen=True)
class NequipTask(AtomisticTask):
    """The frames of extended-XYZ files for a NequIP potential, whose loss divides the weights by their sum.

    Energies are those of interaction: labels lose the energies of their isolated atoms (of the file's own, if it has
    frames of type IsolatedAtom, else the shifts of the model), and outputs the shifts that the model had when it was
    opened. Both are differences taken in float64.

    Attributes:
        species: chemical symbol to name of the model's atom type, if these are not called like their elements.
        shifts: energies per atom of each type, read off the model.
    """

    species: Mapping[str, str] | None = None
    shifts: tuple[float, ...] = ()

    library = "nequip"
    positions = "pos"
    vectors = ("cell",)

    def for_model(self, model: nn.Module) -> NequipTask:
        """Read the files for a model: its atom types, cutoff and shifts.

        Raises:
            TaskError: if it is no NequIP potential, or a file does not fit it.
        """
        potential = potential_of(model, self.species)
        frames = self.split(lambda path, isolated: frames_of(path, potential, self.keys, isolated))
        return replace(self, frames=frames, shifts=potential.shifts)

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return energies of interaction, forces and, if they are labelled, stresses."""
        given = {key: batch[key].detach().clone() for key in (*INPUTS, "batch", "num_atoms")}
        given |= {key: given[key].double() for key in EXACT}
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            result = model(given)
        outputs = {"energy": result["total_energy"] - self._shifts(batch), "forces": result["forces"]}
        if "stress" in batch:
            outputs["stress"] = result["stress"]
        return outputs if wanted else {key: value.detach() for key, value in outputs.items()}

    def _shifts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the shifts of all atoms of each frame, shape (frames, 1), float64."""
        shifts = torch.tensor(self.shifts, dtype=torch.float64, device=batch["pos"].device)[batch["atom_types"]]
        return shifts.new_zeros(len(batch["num_atoms"])).index_add(0, batch["batch"], shifts)[:, None]

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return NequIP's weighted loss: squared errors of energy per atom, of forces, and of stress."""
        weights = {"energy": self.energy_weight, "forces": self.forces_weight, "stress": self.stress_weight}
        errors = _errors(outputs, batch)
        total = sum(weights[label] for label in errors)
        loss: Any = sum(weights[label] / total * error.square().mean() for label, error in errors.items())
        scalar: Tensor = loss.to(batch["pos"].dtype)
        return scalar

    def metrics(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, float]]:
        """Return mean absolute errors: energy per atom in meV, forces in meV/A, stress in meV/A^3."""
        names = {"energy": "energy_mae", "forces": "force_mae", "stress": "stress_mae"}
        errors = _errors(outputs, batch)
        return {names[label]: (MILLI * error.abs().sum(), float(error.numel())) for label, error in errors.items()}


def _errors(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return output minus label by label; that of energy per atom."""
    errors = {key: outputs[key] - batch[key] for key in ("forces", "stress") if key in batch}
    if "total_energy" in batch:
        errors["energy"] = (outputs["energy"] - batch["total_energy"]) / batch["num_atoms"][:, None]
    return errors
