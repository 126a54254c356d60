"""A task for MACE potentials on extended-XYZ files: energies, forces and stresses, with MACE's own loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon_adapters.atoms.task import AtomisticTask, ByAttribute
from surgeon_adapters.mace.data import INPUTS, Head, head_of
from surgeon_adapters.mace.models import import_mace

SMALL, RATE_OF_SMALL, RATE_OF_LARGE = 100_000, 9e-2, 3e-2
"""Weights of a potential that counts as small, and what SOAP begins with there and elsewhere."""
CLIP = 10.0
"""Largest norm of gradients, as in MACE's own training."""


@dataclass(frozen=True)
class MaceTask(AtomisticTask):
    """The frames of extended-XYZ files for a MACE potential.

    Attributes:
        head: which head of a model with several to train; its name.
    """

    forces_weight: float = 100.0
    head: str | None = None

    library = "mace"
    positions = "positions"
    vectors = ("shifts", "cell")

    @property
    def preferred(self) -> Mapping[str, Any]:
        """SOAP at the rate that sweeps chose: for small potentials on MACE, for large ones on 7net-0."""
        small = isinstance(self.potential, Head) and self.potential.weights <= SMALL
        return {"optimizer": "soap", "learning_rate": RATE_OF_SMALL if small else RATE_OF_LARGE, "clip": CLIP}

    def for_model(self, model: nn.Module) -> Self:
        """Read the files for a model.

        Raises:
            TaskError: also if there are stresses and its weights are of half precision, in which MACE computes none.
        """
        task, dtype = super().for_model(model), next(model.parameters()).dtype
        if dtype.itemsize < torch.float32.itemsize and "stress" in task.labels:
            raise TaskError(
                f"expected frames without stresses for a MACE potential in {str(dtype).removeprefix('torch.')}, but "
                f"{str(self.data)!r} has some, for which MACE needs a determinant that torch does not compute in that "
                "dtype: leave them out of the file, or save the potential in float32 and take that"
            )
        return task

    def potential_of(self, model: nn.Module) -> Head:
        """Read the head that is trained."""
        return head_of(model, self.head)

    def outputs(self, model: Any, batch: Mapping[str, Tensor], twice: bool) -> dict[str, Tensor]:
        """Return energies of interaction, forces and stresses; MACE writes into the dict that it is given."""
        given, stress = {key: batch[key].detach().clone() for key in INPUTS}, "stress" in batch
        result = model(given, training=twice, compute_force=True, compute_stress=stress)
        outputs = {"energy": _interaction(result), "forces": result["forces"]}
        return {**outputs, "stress": result["stress"]} if stress else outputs

    def kinds(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the elements, which MACE has as one-hot vectors."""
        return batch["node_attrs"].argmax(1)

    def sizes(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the number of atoms of every frame."""
        return batch["ptr"].diff()

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return MACE's weighted loss: squared errors of energy per atom, forces and stress."""
        losses = import_mace("modules.loss")
        if "stress" in batch:
            function = losses.WeightedEnergyForcesStressLoss(self.energy_weight, self.forces_weight, self.stress_weight)
        else:
            function = losses.WeightedEnergyForcesLoss(self.energy_weight, self.forces_weight)
        loss: Tensor = function.to(outputs["forces"])(pred=outputs, ref=ByAttribute(batch))
        return loss


def _interaction(result: Mapping[str, Tensor]) -> Tensor:
    """Return the energies without those of isolated atoms, which would round the rest away in float32."""
    if result.get("interaction_energy") is not None:
        return result["interaction_energy"]
    return result["contributions"][:, 1:].sum(dim=-1)
