"""How long ``surgeon diagnose`` takes for its overall figure on a network of a million parameters.

The network is the SEGNN of the N-body example with wider layers and random weights, all sites relaxed, on one thread,
with the command's default settings::

    python benchmarks/diagnosis.py
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from overhead_networks import segnn
from torch import Tensor, nn

import surgeon
from surgeon.support.versions import machine, versions
from surgeon.training.diagnosis.result import DiagnosisSettings
from surgeon.training.diagnosis.work import diagnose_model

RESULTS = Path(__file__).parent / "results" / "diagnosis.json"


class Particles:
    """Random batches of 100 systems of five charged particles."""

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(len(split))
        for _ in range(32):
            vectors = {
                name: torch.randn(100, 5, 3, generator=generator) for name in ("positions", "velocities", "targets")
            }
            yield {**vectors, "charges": torch.randint(0, 2, (100, 5), generator=generator).float() * 2 - 1}

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(batch["positions"], batch["velocities"], batch["charges"])
        return found

    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return (outputs - batch["targets"]).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, default=168)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = segnn("cpu", options.channels, options.layers)
    plan = surgeon.find(case.model, case.group, case.batch, forward=lambda model, batch: case.loss(model, batch))
    started, processor = time.perf_counter(), time.process_time()
    found = diagnose_model(case.model, plan, Particles(), DiagnosisSettings(seconds=options.seconds))
    record: dict[str, Any] = {
        "command": "python benchmarks/diagnosis.py",
        "machine": {**machine(), "threads": 1},
        "versions": versions(),
        "parameters": sum(parameter.numel() for parameter in case.model.parameters()),
        "sites": len(plan.sites),
        "entries_of_w": found.parameters,
        "seconds_allowed": options.seconds,
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "products": found.curvature.products,
        "converged": found.curvature.converged,
        "train_batches": found.settings.train_batches,
        "held_out_batches": found.settings.held_out_batches,
        "verdict": found.verdict,
    }
    print(json.dumps(record))
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
