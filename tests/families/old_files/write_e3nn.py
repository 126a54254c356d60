"""Write the state dict of a small network with many versions of e3nn, and what these versions predict with it.

The archive and the predictions beside this script were made by it, all with one version of torch, which stands in
``e3nn.json``; 0.4.0 builds no layer with it:

    for version in 0.4.1 0.4.2 0.4.4 0.5.0 0.5.1 0.5.9 0.6.0; do
        pip install --no-deps --target /tmp/e3nn-$version e3nn==$version
        PYTHONPATH=/tmp/e3nn-$version python write_e3nn.py /tmp/written $version
    done
    python write_e3nn.py /tmp/written

It runs alone, without this package, but for the network, which the tests build with the installed e3nn. Up to 0.4.1 a
tensor product keeps two copies of its coupling coefficients, under other names than later.
"""

from __future__ import annotations

import json
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
HIDDEN, ATTRIBUTES = "4x0e+2x0o+3x1o+2x1e+1x2e", "1x0e+1x1o"


def network(o3: Any, nn: Any) -> torch.nn.Module:
    """Linear with biases, normalisation, tensor product with attributes, gate, linear."""
    silu, tanh, sigmoid = torch.nn.functional.silu, torch.tanh, torch.sigmoid

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Gate("4x0e+2x0o", [silu, tanh], "6x0e", [sigmoid], "3x1o+2x1e+1x2e")
            self.first = o3.Linear("2x0e+2x1o", HIDDEN, biases=True)
            self.norm = nn.BatchNorm(HIDDEN)
            self.product = o3.FullyConnectedTensorProduct(HIDDEN, ATTRIBUTES, self.gate.irreps_in)
            self.last = o3.Linear(self.gate.irreps_out, "1x0e+1x1o")

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.last(self.gate(self.product(self.norm(self.first(x)), y)))
            return result

    return Network()


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Five rows of features and of attributes."""
    x, y = torch.arange(40, dtype=torch.float64).sin(), torch.arange(20, dtype=torch.float64).cos()
    return x.reshape(5, 8).to(dtype), y.reshape(5, 4).to(dtype)


def write(folder: Path, version: str) -> None:
    """Write one version's file and predictions; every other version writes float32."""
    warnings.simplefilter("ignore")
    if hasattr(torch.serialization, "add_safe_globals"):
        torch.serialization.add_safe_globals([slice])  # e3nn before 0.5 reads its constants with them
    import e3nn
    from e3nn import nn, o3

    if e3nn.__version__ != version:
        sys.exit(f"expected e3nn {version}, got {e3nn.__version__} from {e3nn.__file__}: set PYTHONPATH")
    torch.set_default_dtype(torch.float32 if int(version.rpartition(".")[2]) % 2 == 0 else torch.float64)
    torch.manual_seed(0)
    model = network(o3, nn)
    x, y = inputs(torch.get_default_dtype())
    model(x, y)  # so that the running statistics are not those of the start
    torch.save(model.eval().state_dict(), folder / f"e3nn-{version}.pt")
    record = {"torch": torch.__version__, "predicted": model(x, y).tolist()}
    (folder / f"e3nn-{version}.json").write_text(json.dumps(record))


def pack(folder: Path) -> None:
    """Put all files into one archive, since they are nearly the same, and all predictions into one file."""
    files = sorted(folder.glob("e3nn-*.pt"))
    with tarfile.open(FOLDER / "e3nn.tar.xz", "w:xz", preset=9) as archive:
        for file in files:
            archive.add(file, file.name)
    found = {file.stem: json.loads(file.with_suffix(".json").read_text()) for file in files}
    (FOLDER / "e3nn.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        write(Path(sys.argv[1]), sys.argv[2])
    else:
        pack(Path(sys.argv[1]))
