"""A small NequIP potential (nequip) on random molecules, with forces."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from surgeon.support.e3nn_compat import import_e3nn
from tests.families.cases import FamilyCase, all_pairs, double

COUNTS = [4, 3]


def molecules(seed: int = 0) -> dict[str, Tensor]:
    """Two molecules as NequIP takes them; float64, no cell."""
    generator = torch.Generator().manual_seed(seed)
    atoms = sum(COUNTS)
    types = torch.randint(3, (atoms,), generator=generator)
    types[:3] = torch.arange(3)
    return {
        "pos": 1.2 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64),
        "atom_types": types,
        "edge_index": all_pairs(COUNTS),
        "batch": torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS)),
        "num_atoms": torch.tensor(COUNTS),
    }


def forward(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Energy and forces, from fresh copies of the inputs."""
    result = model({key: value.detach().clone() for key, value in batch.items()})
    return {"energy": result["total_energy"], "forces": result["forces"]}


def act(g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rotate or reflect the positions."""
    return {**batch, "pos": batch["pos"] @ g.T.to(batch["pos"])}


def act_output(g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Energies are invariant, forces are vectors."""
    return {**outputs, "forces": outputs["forces"] @ g.T.to(outputs["forces"])}


def potential(l_max: int = 2, parity: bool = True, layers: int = 2) -> FamilyCase:
    """A NequIP network with random weights."""
    import_e3nn()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nequip.model import NequIPGNNModel
        from nequip.utils.global_state import set_global_state

        with double():
            set_global_state()  # also sets the default dtype
            module = NequIPGNNModel(
                seed=0,
                model_dtype="float64",
                r_max=6.0,
                type_names=["H", "C", "O"],
                num_layers=layers,
                l_max=l_max,
                parity=parity,
                num_features=4,
                radial_mlp_depth=1,
                radial_mlp_width=8,
                avg_num_neighbors=3.0,
                per_type_energy_scales={"H": 1.0, "C": 1.1, "O": 0.9},
                per_type_energy_shifts={"H": 0.1, "C": -0.2, "O": 0.3},
                compile_mode="eager",
            )
    return FamilyCase(f"nequip l_max={l_max}", module.eval(), molecules(), forward, act, act_output, "O3")
