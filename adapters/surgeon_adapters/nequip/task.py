"""A task for NequIP potentials on extended-XYZ files: energies, forces and stresses, with NequIP's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from surgeon_adapters.atoms.task import AtomisticTask
from surgeon_adapters.nequip.data import INPUTS, NequipPotential, potential_of

EXACT = ("pos", "cell", "edge_cell_shift")
"""Inputs that NequIP takes in float64, whatever the dtype of the weights."""


@dataclass(frozen=True)
class NequipTask(AtomisticTask):
    """The frames of extended-XYZ files for a NequIP potential, whose loss divides the weights by their sum.

    Labels and outputs lose the shifts that the model had when it was opened.

    Attributes:
        species: chemical symbol to name of the model's atom type, if these are not called like their elements.
    """

    species: Mapping[str, str] | None = None

    library = "nequip"
    positions = "pos"
    vectors = ("cell",)
    energy_label = "total_energy"

    def potential_of(self, model: nn.Module) -> NequipPotential:
        """Read a model."""
        return potential_of(model, self.species)

    def outputs(self, model: Any, batch: Mapping[str, Tensor], twice: bool) -> dict[str, Tensor]:
        """Return energies of interaction, forces and, if they are labelled, stresses."""
        given = {key: batch[key].detach().clone() for key in (*INPUTS, "batch", "num_atoms")}
        given |= {key: given[key].double() for key in EXACT}
        result = model(given)
        outputs = {"energy": result["total_energy"] - self.shifts(batch)[:, None], "forces": result["forces"]}
        return {**outputs, "stress": result["stress"]} if "stress" in batch else outputs

    def kinds(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the atom types."""
        return batch["atom_types"].flatten()

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return NequIP's weighted loss: squared errors of energy per atom, of forces, and of stress."""
        return super().loss(outputs, batch) / sum(self.weights[label] for label in self.errors(outputs, batch))
