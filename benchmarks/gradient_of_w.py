"""How much of the gradient of W is equivariant, at a pretrained point, over ever more samples?

On data with the symmetry its expectation is an intertwiner (docs/theory.md); what a batch shows besides is noise. The
gradient of the dense W of every branch is taken at W = 0, theta = 1, of the mean loss over n trajectories, and
|P(G)|^2 / |G|^2 summed over all branches is written, with what a random W would have. The twin breaks the symmetry of
the targets by a drift along x, which every network of the symmetry can only follow on average::

    python benchmarks/gradient_of_w.py
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import surgeon
from surgeon.algebra.intertwiners import average
from surgeon.editing.relaxation import Relaxation
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.support.versions import machine, versions

NBODY = Path(__file__).parents[1] / "examples" / "nbody"
RESULTS = Path(__file__).parent / "results" / "gradient_of_w.json"
COUNTS = (10, 40, 160, 640, 2560)
DRIFT = 0.3


def gradients(relaxation: Relaxation, task: Any, batches: list[Any], drift: float) -> dict[str, Tensor]:
    """Return the gradient of the mean loss with respect to every W, at W = 0 and theta = 1."""
    weights = {key: branch.weight for key, branch in relaxation.branches.items()}
    total = {key: torch.zeros_like(weight) for key, weight in weights.items()}
    count = sum(len(batch["targets"]) for batch in batches)
    for batch in batches:
        shifted = {**batch, "targets": batch["targets"] + drift * torch.eye(3, dtype=batch["targets"].dtype)[0]}
        loss = task.loss(task.forward(relaxation.model, shifted), shifted) * len(batch["targets"]) / count
        for key, found in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[key] += found
    return total


def share(relaxation: Relaxation, found: dict[str, Tensor]) -> float:
    """Return |P(G)|^2 / |G|^2, summed over the branches."""
    sites = {site.key: site for site in relaxation.plan.sites}
    parts = [(average(each, sites[key].rho_out, sites[key].rho_in), each) for key, each in found.items()]
    return float(sum(p.square().sum() for p, _ in parts) / sum(each.square().sum() for _, each in parts))


def drawn(task: Any, count: int, draw: int) -> Iterator[Any]:
    """Yield the ``draw``-th ``count`` trajectories of the training split, at most 160 at a time."""
    whole = next(iter(task.batches("train", 0)))
    for begin in range(draw * count, (draw + 1) * count, 160):
        yield {name: value[begin : min(begin + 160, (draw + 1) * count)] for name, value in whole.items()}


def main() -> None:
    """Measure, and write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=4, help="of different trajectories, for each number of them")
    draws = parser.parse_args().draws
    torch.set_num_threads(1)
    samples = draws * max(COUNTS)
    arguments = {"train_samples": samples, "batch_size": samples, "validation_samples": 20, "test_samples": 20}
    options = OpenOptions(task=str(NBODY / "task.py"), task_arguments=arguments)
    workspace = open_path(NBODY / "segnn_nbody.safetensors", options)
    task, model = workspace.require_task().task, workspace.model
    few = next(drawn(task, 10, 0))
    plan = surgeon.find(model, "O3", few, forward=lambda model, batch: task.forward(model, batch))
    relaxation = surgeon.relax(model, plan, dense=True)
    relaxation.set_theta(1.0)
    generator = torch.Generator().manual_seed(0)
    noise = {key: torch.randn(branch.weight.shape, generator=generator) for key, branch in relaxation.branches.items()}
    record: dict[str, Any] = {
        "command": "python benchmarks/gradient_of_w.py",
        "machine": machine(),
        "versions": versions(),
        "random_share": share(relaxation, noise),
        "drift": DRIFT,
        "shares": {},
    }
    for name, drift in (("symmetric", 0.0), ("broken", DRIFT)):
        for count in COUNTS:
            found = [
                share(relaxation, gradients(relaxation, task, list(drawn(task, count, draw)), drift))
                for draw in range(draws)
            ]
            record["shares"].setdefault(name, {})[str(count)] = found
            print(f"{name}, {count} trajectories: {statistics.fmean(found):.3f} of |G|^2 is equivariant", flush=True)
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
