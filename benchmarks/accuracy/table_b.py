"""Table B: SEGNN on charged particles, from scratch and fine-tuned, for sizes of the model and of the data (Fig. 4).

    SIZE=small python benchmarks/accuracy/table_b.py

Trajectories are simulated, so that nothing has to be downloaded. From scratch the interaction has strength 1; the
shipped checkpoint, which was trained on that, is fine-tuned at strength 2. Branches lie where the paper puts them: on
the products that receive the aggregated messages. Each run is written to ``results/table_b.SIZE.jsonl`` when it is
finished; the same command goes on. ``--confirm`` repeats what won once, with fresh seeds on fresh trajectories, after
the lines were committed. How arms are compared says ``runner.py``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lines import RESULTS, Lines
from measures import POSITIONS
from runner import InLargeBatches, Protocol, run_protocol, shared_settings
from torch import nn

import surgeon
from surgeon.opening.task_calls import task_forward
from surgeon.plan import Split
from surgeon.training.comparison import Comparison
from surgeon.training.settings import FinetuneSettings
from surgeon_adapters.zoo.segnn.models import build, recognised
from surgeon_adapters.zoo.segnn.particles import Motions
from surgeon_adapters.zoo.segnn.task import NBodyTask

NBODY = Path(__file__).parents[2] / "examples" / "nbody"
sys.path.insert(0, str(NBODY))
from simulate import dataset  # noqa: E402

EVALUATED = 200
"""Trajectories in a batch of evaluation."""
HELD_OUT: dict[Split, int] = {"validation": 200, "test": 3000}


@dataclass(frozen=True)
class Cell:
    """One comparison.

    Attributes:
        start: "scratch", or "shipped" for the checkpoint, whose sizes are its own.
        layers: of a network from scratch.
        hidden: its irreps.
        samples: training trajectories.
        batch: of them per step.
        epochs: passes over them.
        evaluate_every: epochs between evaluations.
    """

    start: str
    layers: int
    hidden: str
    samples: int
    batch: int
    epochs: int
    evaluate_every: int

    @property
    def name(self) -> str:
        """How it is named on the command line."""
        return f"{self.start}-{self.layers}-{self.samples}"


SMALL, LARGE = "8x0e+4x1o", "32x0e+16x1o"
SIZES = {
    "small": (
        Cell("scratch", 2, SMALL, 100, 25, 25, 3),
        Cell("shipped", 3, LARGE, 100, 25, 15, 2),
        Cell("scratch", 2, SMALL, 400, 50, 12, 1),
        Cell("scratch", 4, SMALL, 100, 25, 25, 3),
    ),
    "paper": (
        *(Cell("scratch", layers, LARGE, 3000, 100, 1000, 10) for layers in (2, 3, 4)),
        *(Cell("scratch", 4, LARGE, samples, 100, 1000, 10) for samples in (300, 1000)),
        *(Cell("shipped", 3, LARGE, samples, 50, 100, 5) for samples in (200, 1000)),
    ),
}
GRID = {"scratch": (1e-2, 3e-2, 9e-2), "shipped": (1e-3, 3e-3, 9e-3)}
OTHERS = ("plain@soap", "plain@muon")
BRANCHES = ("drop", "fold", "lowrank")


def motions(cell: Cell, seed: int) -> dict[Split, Motions]:
    """Simulate the trajectories of all splits, each with initial conditions of its own."""
    counts: dict[Split, int] = {"train": cell.samples, **HELD_OUT}
    found: dict[Split, Motions] = {}
    for index, (split, count) in enumerate(counts.items()):
        pairs = dataset(count, (seed, index), 1.0 if cell.start == "scratch" else 2.0)
        arrays = (pairs.positions, pairs.velocities, pairs.charges, pairs.targets)
        found[split] = Motions(*(torch.tensor(array, dtype=torch.float32) for array in arrays))
    return found


def shipped() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return settings and weights of the checkpoint."""
    from safetensors.torch import load_file

    weights = load_file(NBODY / "segnn_nbody.safetensors")
    return recognised(weights) or {}, weights


def comparison_on(cell: Cell, seed: int) -> Comparison:
    """Return the comparison on data of a seed."""
    settings, weights = shipped()
    if cell.start == "scratch":
        settings |= {"layers": cell.layers, "hidden_irreps": cell.hidden}

    def make_model() -> nn.Module:
        model = build(**settings)  # random: of the seed of the run
        if cell.start == "shipped":
            model.load_state_dict(weights)
        return model

    task = NBodyTask(
        Path("loc_train.npy"), batch_size=cell.batch, normalization="component", motions=motions(cell, seed)
    )
    batch = next(iter(task.batches("validation", 0)))
    model, acts = make_model(), {"act": task.act, "act_output": task.act_output}
    plan = surgeon.find(model, "O3", batch, forward=lambda model, batch: task_forward(task, model, batch), **acts)
    plan = surgeon.select(plan, include=["layers.*.update_layer_1*"])
    settled = FinetuneSettings(epochs=cell.epochs, warmup=10, evaluate_every=cell.evaluate_every).settled()
    return Comparison(make_model, plan, InLargeBatches(task, EVALUATED), settled)


def run_cells(cells: Sequence[Cell], size: str, confirm: bool) -> None:
    """Run what is missing of every comparison."""
    for cell in cells:
        print(cell.name, flush=True)
        comparison = comparison_on(cell, 0)
        context = {**asdict(cell), "held_out": HELD_OUT, "settings": shared_settings(comparison)}
        protocol = Protocol(POSITIONS, GRID[cell.start], OTHERS, BRANCHES)
        lines = Lines(RESULTS / f"table_b.{size}.jsonl", context)
        run_protocol(comparison, lines, protocol, comparison_on(cell, 1) if confirm else None)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = os.environ.get("SIZE", "small")
    names = [cell.name for cell in SIZES[size]]
    parser.add_argument("cells", nargs="*", help=f"some of {', '.join(names)}: start, layers, samples; all by default")
    parser.add_argument("--confirm", action="store_true", help="run fresh seeds on fresh data, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run_cells([cell for cell in SIZES[size] if cell.name in (options.cells or names)], size, options.confirm)


if __name__ == "__main__":
    main()
