"""Small MACE potentials (mace-torch) on random molecules, with forces."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.support.e3nn_compat import import_e3nn
from tests.families.cases import FamilyCase, all_pairs, double

COUNTS = [4, 3]
UNCHANGED = ("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCHINDUCTOR_CACHE_DIR")


def import_mace() -> Any:
    """Import ``mace.modules`` without the changes that it makes to the environment of the process."""
    import_e3nn()
    before = {name: os.environ.get(name) for name in UNCHANGED}
    import mace.modules

    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return mace.modules


def molecules(seed: int = 0, counts: list[int] = COUNTS) -> dict[str, Tensor]:
    """Molecules of so many atoms as MACE takes them; float64."""
    generator = torch.Generator().manual_seed(seed)
    atoms = sum(counts)
    edges = all_pairs(counts)
    species = torch.randint(3, (atoms,), generator=generator)
    species[:3] = torch.arange(3)
    return {
        "positions": 1.2 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64),
        "node_attrs": torch.nn.functional.one_hot(species, 3).double(),
        "edge_index": edges,
        "shifts": torch.zeros(edges.shape[1], 3, dtype=torch.float64),
        "unit_shifts": torch.zeros(edges.shape[1], 3, dtype=torch.float64),
        "cell": torch.zeros(3 * len(counts), 3, dtype=torch.float64),
        "batch": torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
        "ptr": torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()]),
        "head": torch.zeros(len(counts), dtype=torch.long),
    }


def forward(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Energy and forces; MACE writes into the dict that it is given."""
    copies = {key: value.detach().clone() for key, value in batch.items()}
    result = model(copies, training=model.training, compute_force=True)
    return {"energy": result["energy"], "forces": result["forces"]}


def act(g: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rotate or reflect the positions."""
    return {**batch, "positions": batch["positions"] @ g.T.to(batch["positions"])}


def act_output(g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Energies are invariant, forces are vectors."""
    return {**outputs, "forces": outputs["forces"] @ g.T.to(outputs["forces"])}


def potential(scripted: bool, hidden: str = "8x0e+8x1o", max_ell: int = 2, interactions: int = 2) -> FamilyCase:
    """A ScaleShiftMACE with random weights; ``scripted`` keeps e3nn's default TorchScript layers."""
    modules = import_mace()
    o3 = import_e3nn()
    import e3nn

    before = e3nn.get_optimization_defaults()
    e3nn.set_optimization_defaults(**{**before, "jit_script_fx": scripted})
    try:
        torch.manual_seed(0)
        with double():
            module = modules.ScaleShiftMACE(
                r_max=5.0,
                num_bessel=4,
                num_polynomial_cutoff=5,
                max_ell=max_ell,
                interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
                interaction_cls_first=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
                num_interactions=interactions,
                num_elements=3,
                hidden_irreps=o3.Irreps(hidden),
                MLP_irreps=o3.Irreps("8x0e"),
                atomic_energies=torch.randn(3).numpy(),
                avg_num_neighbors=3.0,
                atomic_numbers=[1, 6, 8],
                correlation=2,
                gate=torch.nn.functional.silu,
                atomic_inter_scale=1.3,
                atomic_inter_shift=0.1,
            )
    finally:
        e3nn.set_optimization_defaults(**before)
    name = f"mace {'scripted' if scripted else 'eager'} {hidden}"
    return FamilyCase(name, module.double().eval(), molecules(), forward, act, act_output, "O3")
