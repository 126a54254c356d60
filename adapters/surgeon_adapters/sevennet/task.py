"""A task for SevenNet potentials on extended-XYZ files: energies, forces and stresses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon_adapters.atoms.task import MILLI, AtomisticTask, Isolated
from surgeon_adapters.sevennet.data import INPUTS, frames_of, potential_of

_VOIGT = torch.tensor([[0, 3, 5], [3, 1, 4], [5, 4, 2]])
"""Where sevenn keeps the entries of a stress: xx, yy, zz, xy, yz, zx."""


@dataclass(frozen=True)
class SevenNetTask(AtomisticTask):
    """The frames of extended-XYZ files for a SevenNet potential.

    Energies are those of interaction: labels lose the energies of their isolated atoms (of the file's own, if it has
    frames of type IsolatedAtom, else the shifts of the model), and outputs the shifts that the model had when it was
    opened.

    Attributes:
        modal: which kind of labels of a model with several to train; its name.
        shifts: energies per atom by atomic number, read off the model.
    """

    modal: str | None = None
    shifts: Isolated = field(default_factory=dict)

    library = "sevennet"
    positions = "pos"
    vectors = ("edge_vec",)

    def for_model(self, model: nn.Module) -> SevenNetTask:
        """Read the files for a model: its elements, cutoff and shifts.

        Raises:
            TaskError: if it is no SevenNet potential, or a file does not fit it.
        """
        potential = potential_of(model, self.modal)
        frames = self.split(lambda path, isolated: frames_of(path, potential, self.keys, isolated))
        return replace(self, frames=frames, shifts=potential.shifts)

    def forward(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return energies of interaction, forces and, if they are labelled, stresses.

        sevenn differentiates twice only in training mode.
        """
        given = _Graph({key: batch[key].detach().clone() for key in INPUTS})
        if self.modal is not None:
            given["data_modality"] = [self.modal] * len(batch["num_atoms"])
        wanted, last = torch.is_grad_enabled(), model.force_output
        before = last.training
        last.train(wanted)
        try:
            with torch.enable_grad():
                result = model(given)
        finally:
            last.train(before)
        energy = result["inferred_total_energy"].reshape(-1)
        outputs = {"energy": energy - self._shifts(batch), "forces": result["inferred_force"]}
        if "stress" in batch:
            outputs["stress"] = -result["inferred_stress"][:, _VOIGT.to(energy.device)]
        return outputs if wanted else {key: value.detach() for key, value in outputs.items()}

    def _shifts(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the shifts of all atoms of each frame, shape (frames,), float64."""
        numbers = batch["atomic_numbers"].tolist()
        each = torch.tensor(
            [self.shifts[number] for number in numbers], dtype=torch.float64, device=batch["pos"].device
        )
        return each.new_zeros(len(batch["num_atoms"])).index_add(0, batch["batch"], each)

    def loss(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the mean squared errors of energy per atom, forces and stress."""
        weights = {"energy": self.energy_weight, "forces": self.forces_weight, "stress": self.stress_weight}
        loss: Any = sum(weights[label] * error.square().mean() for label, error in _errors(outputs, batch).items())
        scalar: Tensor = loss.to(batch["pos"].dtype)
        return scalar

    def metrics(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, float]]:
        """Return mean absolute errors: energy per atom in meV, forces in meV/A, stress in meV/A^3."""
        names = {"energy": "energy_mae", "forces": "force_mae", "stress": "stress_mae"}
        errors = _errors(outputs, batch)
        return {names[label]: (MILLI * error.abs().sum(), float(error.numel())) for label, error in errors.items()}


class _Graph(dict[str, Any]):
    """A batch as sevenn reads it: by key and by attribute."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def _errors(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return output minus label by label; that of energy per atom."""
    errors = {key: outputs[key] - batch[key] for key in ("forces", "stress") if key in batch}
    if "energy" in batch:
        errors["energy"] = (outputs["energy"] - batch["energy"]) / batch["num_atoms"]
    return errors
