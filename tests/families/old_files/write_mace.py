"""Write small potentials with many versions of mace-torch, and what these versions predict with them.

The archive and the predictions beside this script were made by it, with torch 2.13.0 and e3nn 0.4.4 for all versions:

    for version in 0.3.3 0.3.4 ... 0.3.16; do
        pip install --no-deps --target /tmp/mace-$version mace-torch==$version
        PYTHONPATH=/tmp/mace-$version python write_mace.py /tmp/written $version
    done
    python write_mace.py /tmp/written

The package index has no release before 0.3.3: the three before are read from the library's repository, at its tags::

    git archive v0.3.2 mace | tar x -C /tmp/mace-0.3.2

It runs alone, without this package. Files are saved as mace's training saves its last model: frozen, on the CPU.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NUMBERS = [1, 6, 8]
FRAMES = {
    "water": ([8, 1, 1], [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.2, 0.93, 0.1]]),
    "carbon dioxide": ([6, 8, 8], [[0.0, 0.1, 0.0], [1.1, 0.0, 0.3], [-1.0, 0.2, -0.2]]),
}
CUTOFF = 3.0
NAMES = {"0.3.0": "0.2.0", "0.3.1": "0.3.0"}
"""What the library called itself at the tags of these versions."""


def potential(modules: Any, single: bool) -> Any:
    """A scaled potential with random weights; every other version writes float32."""
    import numpy as np
    import torch
    from e3nn import o3

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if single else torch.float64)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    settings = {
        "r_max": CUTOFF,
        "num_bessel": 3,
        "num_polynomial_cutoff": 5,
        "max_ell": 1,
        "interaction_cls": block,
        "interaction_cls_first": block,
        "num_interactions": 2,
        "num_elements": len(NUMBERS),
        "hidden_irreps": o3.Irreps("2x0e+2x1o"),
        "MLP_irreps": o3.Irreps("2x0e"),
        "atomic_energies": np.array([-1.0, -2.0, -3.0]),
        "avg_num_neighbors": 2.0,
        "atomic_numbers": NUMBERS,
        "correlation": 2,
        "gate": torch.nn.functional.silu,
        "atomic_inter_scale": 1.5,
        "atomic_inter_shift": 0.1,
        "radial_MLP": [4],
    }
    known = {*inspect.signature(modules.MACE).parameters, *inspect.signature(modules.ScaleShiftMACE).parameters}
    model = modules.ScaleShiftMACE(**{key: value for key, value in settings.items() if key in known})
    for parameter in model.parameters():
        parameter.requires_grad = False
    return model.eval()


def predicted(model: Any, numbers: list[int], positions: list[list[float]]) -> dict[str, Any]:
    """Energy in eV and forces in eV/A of one molecule, all of whose atoms see each other."""
    import torch

    dtype = torch.get_default_dtype()
    count = len(numbers)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    species = torch.tensor([NUMBERS.index(number) for number in numbers])
    batch = {
        "positions": torch.tensor(positions, dtype=dtype),
        "node_attrs": torch.nn.functional.one_hot(species, len(NUMBERS)).to(dtype),
        "edge_index": torch.tensor(pairs).T.contiguous(),
        "shifts": torch.zeros(len(pairs), 3, dtype=dtype),
        "unit_shifts": torch.zeros(len(pairs), 3, dtype=dtype),
        "cell": torch.zeros(3, 3, dtype=dtype),
        "batch": torch.zeros(count, dtype=torch.long),
        "ptr": torch.tensor([0, count]),
        "head": torch.tensor([0]),
    }
    outputs = model(batch, training=False, compute_force=True)
    return {"energy": outputs["energy"].item(), "forces": outputs["forces"].tolist()}


def write(folder: Path, version: str) -> None:
    """Write one version's file and predictions."""
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    warnings.simplefilter("ignore")
    import mace
    import mace.modules
    import torch

    if mace.__version__ != NAMES.get(version, version):
        sys.exit(f"expected mace-torch {version}, got {mace.__version__} from {mace.__file__}: set PYTHONPATH")
    model = potential(mace.modules, single=int(version.rpartition(".")[2]) % 2 == 0)
    torch.save(model, folder / f"mace-{version}.model")
    results = {name: predicted(model, *frame) for name, frame in FRAMES.items()}
    (folder / f"mace-{version}.json").write_text(json.dumps(results))


def pack(folder: Path) -> None:
    """Put all files into one archive, since they are nearly the same, and all predictions into one file."""
    files = sorted(folder.glob("mace-*.model"), key=lambda file: int(file.stem.rpartition(".")[2]))
    with tarfile.open(FOLDER / "mace.tar.xz", "w:xz", preset=9) as archive:
        for file in files:
            archive.add(file, file.name)
    found = {file.stem: json.loads(file.with_suffix(".json").read_text()) for file in files}
    (FOLDER / "mace.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        write(Path(sys.argv[1]), sys.argv[2])
    else:
        pack(Path(sys.argv[1]))
