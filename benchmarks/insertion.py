"""Time and peak memory of finding and inserting branches, against the number of layers.

Each size runs in a process of its own. The model alternates ``o3.Linear`` and fully connected tensor products. What is
reported comes on top of opening the model and running it forward and backward once::

    python benchmarks/insertion.py
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.versions import machine, versions

RESULTS = Path(__file__).parent / "results" / "insertion.json"
HIDDEN = "16x0e+8x1o+4x2e"
ATTRIBUTES = "0e+1o"
ROWS = 64
SIZES = (25, 50, 100, 200, 400)


class Chain(nn.Module):
    """Layers one after the other, every second one a tensor product with the attributes."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        o3 = import_e3nn()
        self.layers = nn.ModuleList(
            o3.FullyConnectedTensorProduct(HIDDEN, ATTRIBUTES, HIDDEN) if index % 2 else o3.Linear(HIDDEN, HIDDEN)
            for index in range(layers)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x, y) if index % 2 else layer(x)
        return x


def peak_mebibytes() -> float:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(layers: int) -> dict[str, Any]:
    """Find and insert in this process; seconds and mebibytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    model = Chain(layers)
    opening = time.perf_counter() - start
    x, y = torch.randn(ROWS, 60), torch.cat([torch.ones(ROWS, 1), torch.randn(ROWS, 3)], dim=1)
    model(x, y).sum().backward()
    # The first operator that scipy and the recorder are needed for pays for their import, not for this model.
    surgeon.find(Chain(2), "O3", x, y)
    memory, start = peak_mebibytes(), time.perf_counter()
    plan = surgeon.find(model, "O3", x, y)
    found = time.perf_counter()
    surgeon.relax(model, plan, dense=True, mode="fold")
    inserted = time.perf_counter()
    return {
        "layers": layers,
        "sites": len(plan.sites),
        "opening_s": round(opening, 3),
        "find_s": round(found - start, 3),
        "relax_s": round(inserted - found, 3),
        "peak_memory_opened_mib": round(memory, 1),
        "peak_memory_added_mib": round(peak_mebibytes() - memory, 1),
    }


def measure_apart(layers: int) -> dict[str, Any]:
    """Run :func:`measure` in a fresh process, so that its peak is its own."""
    command = [sys.executable, __file__, "--one", str(layers)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", type=int, metavar="LAYERS", help="measure one size in this process and print it")
    parser.add_argument("--repeats", type=int, default=3, help="runs per size; the fastest counts")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    runs = []
    for layers in SIZES:
        repeats = [measure_apart(layers) for _ in range(options.repeats)]
        runs.append(min(repeats, key=lambda run: run["find_s"] + run["relax_s"]))
        print(runs[-1])
    record = {
        "command": f"python benchmarks/insertion.py --repeats {options.repeats}",
        "machine": {**machine(), "threads": 1},
        "versions": versions(),
        "model": {"hidden": HIDDEN, "attributes": ATTRIBUTES, "rows": ROWS, "group": "O3", "seed": 0},
        "runs": runs,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
