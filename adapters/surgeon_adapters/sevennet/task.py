"""A task for SevenNet potentials on extended-XYZ files: energies, forces and stresses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon_adapters.atoms.task import AtomisticTask, ByAttribute
from surgeon_adapters.sevennet.data import INPUTS, SevenNetPotential, potential_of

_VOIGT = torch.tensor([[0, 3, 5], [3, 1, 4], [5, 4, 2]])
"""Where sevenn keeps the entries of a stress: xx, yy, zz, xy, yz, zx."""


RATE, BETA2 = 2.7e-2, 0.9
"""What SOAP begins with."""


@dataclass(frozen=True)
class SevenNetTask(AtomisticTask):
    """The frames of extended-XYZ files for a SevenNet potential.

    Labels and outputs lose the shifts that the model had when it was opened.

    Attributes:
        modal: which kind of labels of a model with several to train; its name.
    """

    modal: str | None = None

    library = "sevennet"
    positions = "pos"
    vectors = ("edge_vec",)

    @property
    def preferred(self) -> Mapping[str, Any]:
        """SOAP with the rate and beta2 that sweeps chose for 7net-0."""
        return {"optimizer": "soap", "learning_rate": RATE, "beta2": BETA2}

    def potential_of(self, model: nn.Module) -> SevenNetPotential:
        """Read a model."""
        return potential_of(model, self.modal)

    def outputs(self, model: Any, batch: Mapping[str, Tensor], twice: bool) -> dict[str, Tensor]:
        """Return energies of interaction, forces and, if they are labelled, stresses.

        sevenn differentiates twice only in training mode.
        """
        given = ByAttribute({key: batch[key].detach().clone() for key in INPUTS})
        if self.modal is not None:
            given["data_modality"] = [self.modal] * len(batch["num_atoms"])
        last = model.force_output
        before = last.training
        last.train(twice)
        try:
            result = model(given)
        finally:
            last.train(before)
        energy = result["inferred_total_energy"].reshape(-1)
        outputs = {"energy": energy - self.shifts(batch), "forces": result["inferred_force"]}
        if "stress" in batch:
            outputs["stress"] = -result["inferred_stress"][:, _VOIGT.to(energy.device)]
        return outputs

    def perturbed(self, batch: Mapping[str, Tensor], noise: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Move the atoms by noise in A, and with them the vectors between them, which are what the model reads."""
        moved, (source, target) = noise(batch["pos"]), batch["edge_index"]
        vectors = batch["edge_vec"] + (moved[target] - moved[source]).to(batch["edge_vec"])
        return {**batch, "pos": batch["pos"] + moved, "edge_vec": vectors}
