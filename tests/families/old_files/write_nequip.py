"""Write a small potential with versions of nequip before 0.7: state dict and deployed archive, and what it predicts.

The archive and the predictions beside this script were made by it, with e3nn 0.5.9 and torch 2.13.0:

    for version in 0.5.6 0.6.2; do
        pip install --no-deps --target /tmp/nequip-$version nequip==$version e3nn==0.5.9 torch-runstats torch-ema
        PYTHONPATH=/tmp/nequip-$version python write_nequip.py /tmp/written $version
    done
    python write_nequip.py /tmp/written

It runs alone, without this package. The state dict is what a training keeps as ``best_model.pth``, the deployed archive
what ``nequip-deploy build`` makes of it; from that only the debugging records are left out, which are most of its size.
"""

from __future__ import annotations

import json
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
ELEMENTS = ["H", "C", "O"]
SETTINGS: dict[str, Any] = {
    "default_dtype": "float64",
    "model_dtype": "float32",
    "allow_tf32": False,
    "model_builders": ["SimpleIrrepsConfig", "EnergyModel", "PerSpeciesRescale", "ForceOutput"],
    "r_max": 4.0,
    "num_layers": 2,
    "l_max": 1,
    "parity": True,
    "num_features": 4,
    "nonlinearity_type": "gate",
    "num_basis": 4,
    "BesselBasis_trainable": True,
    "PolynomialCutoff_p": 6,
    "invariant_layers": 1,
    "invariant_neurons": 4,
    "avg_num_neighbors": 3.0,
    "use_sc": True,
    "per_species_rescale_shifts": [-1.0, -2.0, -3.0],
    "per_species_rescale_scales": [1.0, 1.1, 0.9],
    "type_names": ELEMENTS,
    "chemical_symbols": ELEMENTS,
    "num_types": len(ELEMENTS),
    "_jit_bailout_depth": 2,
    "_jit_fusion_strategy": [("DYNAMIC", 3)],
    "_jit_fuser": "fuser1",
}


def molecule(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Carbon dioxide beside a hydrogen atom, all of which see each other."""
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    positions = [[0.0, 0.1, 0.0], [1.1, 0.0, 0.3], [-1.0, 0.2, -0.2], [0.2, 1.3, 0.9]]
    return {
        "pos": torch.tensor(positions, dtype=dtype),
        "atom_types": torch.tensor([[1], [2], [2], [0]]),
        "edge_index": torch.tensor(pairs).T.contiguous(),
    }


def predicted(model: Any) -> dict[str, Any]:
    """Energy in eV and forces in eV/A."""
    outputs = model(molecule(torch.float64))
    return {"energy": outputs["total_energy"].item(), "forces": outputs["forces"].tolist()}


def write(folder: Path, version: str) -> None:
    """Write one version's files and predictions."""
    warnings.simplefilter("ignore")
    import nequip
    from nequip.model import model_from_config
    from nequip.scripts.deploy import _compile_for_deploy
    from nequip.utils import Config
    from nequip.utils._global_options import _set_global_options

    if nequip.__version__ != version:
        sys.exit(f"expected nequip {version}, got {nequip.__version__} from {nequip.__file__}: set PYTHONPATH")
    config = Config.from_dict(dict(SETTINGS))
    _set_global_options(config)
    torch.manual_seed(0)
    model = model_from_config(config, initialize=True).eval()
    name = f"nequip-{version}"
    torch.save(model.state_dict(), folder / f"{name}.pth")
    record = {"torch": torch.__version__, "predicted": predicted(model)}
    (folder / f"{name}.json").write_text(json.dumps(record))
    whole = folder / "whole.zip"
    said = {"nequip_version": version, "r_max": "4.0", "n_species": "3", "type_names": " ".join(ELEMENTS)}
    torch.jit.save(_compile_for_deploy(model), whole, _extra_files=said)
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(folder / f"{name}-deployed.pth", "w") as new:
        for entry in old.namelist():
            if not entry.endswith(".debug_pkl"):
                new.writestr(entry, old.read(entry))
    whole.unlink()


def pack(folder: Path) -> None:
    """Put all files into one archive, since they are nearly the same, and all predictions into one file."""
    with tarfile.open(FOLDER / "nequip.tar.xz", "w:xz", preset=9) as archive:
        for file in sorted(folder.glob("nequip-*.pth")):
            archive.add(file, file.name)
    found = {file.stem: json.loads(file.read_text()) for file in sorted(folder.glob("nequip-*.json"))}
    (FOLDER / "nequip.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        write(Path(sys.argv[1]), sys.argv[2])
    else:
        pack(Path(sys.argv[1]))
