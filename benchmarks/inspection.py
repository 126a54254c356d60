"""CPU time and peak memory of finding sites by measurement, against the number of layers, and for a MACE potential.

Each size runs in a process of its own, on one thread. The model is a chain of layers that mix the channels of vectors;
nothing is annotated. What is reported comes on top of building the model and running it forward and backward once::

    python benchmarks/inspection.py
    .venv-mace/bin/python benchmarks/inspection.py --mace
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from insertion import peak_mebibytes
from torch import Tensor, nn

import surgeon
from surgeon.support.versions import machine, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "inspection.json"
CHANNELS, POINTS = 8, 16
SIZES = (10, 100, 250, 500, 1000, 2000)


class Layer(nn.Module):
    """Mix channels, gate by norms, add."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(CHANNELS, CHANNELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(x)
        return x + 0.1 * h * torch.tanh(h.square().sum(1, keepdim=True))


class Chain(nn.Module):
    """Layers one after the other on (points, 3, channels), and an invariant at the end."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().sum(1)


def find(model: nn.Module, x: Tensor) -> Any:
    """Plan by measurement alone."""
    return surgeon.find(
        model,
        "SO3",
        x,
        adapters={},
        act=lambda g, x: torch.einsum("ij,njc->nic", g.to(x), x),
        act_output=lambda g, y: y,
    )


def measure(layers: int) -> dict[str, Any]:
    """Find in this process; seconds of CPU time, which other work on the machine changes less, and mebibytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = Chain(layers), torch.randn(POINTS, 3, CHANNELS)
    model(x).sum().backward()
    find(Chain(2), x)  # pays for the imports
    memory, start = peak_mebibytes(), time.process_time()
    plan = find(model, x)
    seconds = time.process_time() - start
    return {
        "layers": layers,
        "sites": len(plan.sites),
        "find_s": round(seconds, 3),
        "find_per_layer_ms": round(1000 * seconds / layers, 2),
        "peak_memory_opened_mib": round(memory, 1),
        "peak_memory_added_mib": round(peak_mebibytes() - memory, 1),
    }


def measure_mace() -> dict[str, Any]:
    """Find the sites of a small MACE with forces, by annotation and measurement."""
    sys.path.insert(0, str(ROOT))
    from tests.families.mace_models import potential

    torch.set_num_threads(1)
    case = potential(scripted=True, hidden="32x0e+32x1o", max_ell=3)
    start = time.process_time()
    plan = case.find()
    return {
        "model": "ScaleShiftMACE, 2 interactions, 32x0e+32x1o, max_ell 3, 7 atoms in 2 molecules, forces",
        "parameters": sum(parameter.numel() for parameter in case.module.parameters()),
        "sites": len(plan.sites),
        "find_s": round(time.process_time() - start, 2),
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
    parser.add_argument(
        "--mace", action="store_true", help="measure a MACE potential instead, and add it to the record"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs per size; the fastest counts")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    described = {"machine": {**machine(), "threads": 1}, "versions": versions()}
    if options.mace:
        record["mace"] = {
            "command": ".venv-mace/bin/python benchmarks/inspection.py --mace",
            **described,
            **measure_mace(),
        }
    else:
        runs = [
            min((measure_apart(layers) for _ in range(options.repeats)), key=lambda run: run["find_s"])
            for layers in SIZES
        ]
        command = f"python benchmarks/inspection.py --repeats {options.repeats}"
        model = {"channels": CHANNELS, "points": POINTS, "group": "SO3", "seed": 0}
        record["chain"] = {"command": command, **described, "model": model, "runs": runs}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
