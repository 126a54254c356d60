"""Small checkpoints as NequIP's own training writes them, without the training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from surgeon.support.modes import default_dtype
from surgeon_adapters.nequip.models import import_nequip, nequip_state
from tests.commands import ROOT

DATA = ROOT / "examples" / "molecules" / "ethanol_gfn2.xyz"
ELEMENTS = ["H", "C", "O"]
SETTINGS: Mapping[str, Any] = {
    "_target_": "nequip.model.NequIPGNNModel",
    "seed": 0,
    "model_dtype": "float32",
    "type_names": ELEMENTS,
    "r_max": 4.0,
    "num_layers": 2,
    "l_max": 1,
    "parity": True,
    "num_features": 4,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 8,
    "avg_num_neighbors": 7.0,
    "per_type_energy_scales": 1.0,
    "per_type_energy_shifts": {"H": -10.7, "C": -48.8, "O": -102.5},
}


def data_settings(path: Path = DATA) -> dict[str, Any]:
    """What ``nequip-package`` and ``nequip-compile`` take their example from."""
    return {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 1,
        "train_file_path": f"{path}@3:9",
        "val_file_path": f"{path}@9:11",
        "key_mapping": {"REF_energy": "total_energy", "REF_forces": "forces"},
        "transforms": [
            {"_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper", "model_type_names": ELEMENTS},
            # else there are no stresses, and `nequip-compile --target ase` finds that they are not what they were
            {"_target_": "nequip.data.transforms.NonPeriodicCellTransform", "override_cell": True},
            {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": SETTINGS["r_max"]},
        ],
    }


def write(path: Path, model: Mapping[str, Any] = SETTINGS, average: bool = False) -> Path:
    """Write a checkpoint with random weights; with averages, these are other weights than the raw ones."""
    with warnings.catch_warnings(), nequip_state(), default_dtype(torch.float64), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        import lightning

        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, **quiet)
        module = _module(dict(model), average)
        if average:
            torch.manual_seed(1)
            for parameter in module.model.parameters():
                parameter.data.mul_(1 + 0.2 * torch.rand_like(parameter))
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path)
    return path


def _module(model: dict[str, Any], average: bool) -> Any:
    train = import_nequip("train")
    kind = train.EMALightningModule if average else train.NequIPLightningModule
    settings = {
        "model": model,
        "loss": {"_target_": "nequip.train.EnergyForceLoss", "coeffs": {"total_energy": 1.0, "forces": 1.0}},
        "val_metrics": {"_target_": "nequip.train.EnergyForceMetrics", "coeffs": {"forces_mae": 1.0}},
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
    }
    info = {
        "versions": import_nequip("utils").get_current_code_versions(verbose=False),
        "data": data_settings(),
        "training_module": {"_target_": f"nequip.train.{kind.__name__}", **settings},
        "runs": ["train"],
    }
    counts = {"train": 1, "val": 1, "test": 0, "predict": 0}
    return kind(**copy.deepcopy(settings), num_datasets=counts, info_dict=info)


def edited(path: Path, target: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """Write a checkpoint again after a change to what it holds."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    edit(content)
    torch.save(content, target)
    return target
