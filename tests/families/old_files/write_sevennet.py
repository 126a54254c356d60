"""Write small potentials with several versions of sevenn, and what these versions predict with them.

The files beside this script were made by it, with torch 2.13.0 and e3nn 0.6.0 for all versions:

    for version in 0.9.3.post1 0.10.4 0.11.2.post1 0.12.1 0.13.0; do
        pip install --no-deps --target /tmp/sevenn-$version sevenn==$version
        PYTHONPATH=/tmp/sevenn-$version python write_sevennet.py $version
    done

It runs alone, without this package. Weights before 0.11 are in another order within each convolution.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NUMBERS = {1: 0, 6: 1, 8: 2}
FRAMES = {
    "water": ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.2, 0.93, 0.1]]),
    "carbon dioxide": ([6, 8, 8], [[0.0, 0.1, 0.0], [1.1, 0.0, 0.3], [-1.0, 0.2, -0.2]]),
}
CELL = 12.0


def settings(version: str) -> dict[str, Any]:
    """The configuration of a small potential, as training keeps it."""
    import sevenn._const as consts

    layers = 3 if version.startswith(("0.9.", "0.10.")) else 2  # two have the same order in all versions

    return {
        **copy.deepcopy(consts.DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG),
        "version": version,
        "_model_type": "E3_equivariant_model",
        "channel": 4,
        "lmax": 2,
        "num_convolution_layer": layers,
        "weight_nn_hidden_neurons": [4],
        "cutoff": 4.0,
        "conv_denominator": [2.0] * layers,
        "self_connection_type": "linear",
        "is_parity": False,
        "chemical_species": ["H", "C", "O"],
        "_chemical_species_by_atomic_number": list(NUMBERS),
        "_number_of_species": len(NUMBERS),
        "_type_map": NUMBERS,
        "use_species_wise_shift_scale": True,
        "shift": [-1.0, -2.0, -3.0],
        "scale": [1.5, 1.5, 1.5],
        "dtype": "single",
    }


def predicted(path: Path, calculator: Any) -> dict[str, Any]:
    """Energy in eV and forces in eV/A of each molecule."""
    import ase

    found = {}
    for name, (numbers, positions) in FRAMES.items():
        atoms = ase.Atoms(numbers, positions, cell=[CELL] * 3, pbc=True)
        atoms.calc = calculator(str(path), device="cpu")
        found[name] = {"energy": float(atoms.get_potential_energy()), "forces": atoms.get_forces().tolist()}
    return found


def main(version: str) -> None:
    """Write one version's file and predictions."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    warnings.simplefilter("ignore")
    import sevenn
    import torch
    from sevenn.model_build import build_E3_equivariant_model

    where = Path(sevenn.__file__).parent
    torch.manual_seed(0)
    config = settings(version)
    model = build_E3_equivariant_model(copy.deepcopy(config))
    path = FOLDER / f"sevennet-{version}.pth"
    content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": {}, "scheduler_state_dict": {}}
    torch.save({**content, "config": config, "epoch": 1, "time": "", "hash": ""}, path)
    try:
        from sevenn.calculator import SevenNetCalculator
    except ImportError:
        from sevenn.sevennet_calculator import SevenNetCalculator
    print(f"wrote {path.name} with sevenn in {where}")
    path.with_suffix(".json").write_text(json.dumps(predicted(path, SevenNetCalculator), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
