"""Table C: vector neurons on point clouds, from scratch (Figs. 2, 3, 5 and 6, Table 4 of the paper).

    SIZE=small python benchmarks/accuracy/table_c.py
    SIZE=paper python benchmarks/accuracy/table_c.py --files train_files.txt test_files.txt

Clouds are generated, with few enough points that plain training is right in 60 to 80 % of all cases; ``--files`` takes
ModelNet40 as it is commonly distributed, in HDF5. Branches lie on all layers that map vectors. Each run is written to
``results/table_c.SIZE.jsonl`` when it is finished; the same command goes on. ``--confirm`` repeats what won once, with
fresh seeds on fresh clouds (of files: the same ones), after the lines were committed. Beside generated clouds, turned
at random, stand networks that are made invariant from outside, each with the same sweep of AdamW. How arms are compared
says ``runner.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from cloud_networks import BESIDE
from lines import RESULTS, Lines
from measures import CLASSES
from runner import InLargeBatches, Protocol, run_beside, run_protocol, shared_settings
from torch import nn

import surgeon
from surgeon.opening.task_calls import task_forward
from surgeon.plan import Split
from surgeon.training.comparison import Comparison
from surgeon.training.settings import FinetuneSettings
from surgeon_adapters.zoo.vector_neurons.classes import Classes
from surgeon_adapters.zoo.vector_neurons.data import Clouds
from surgeon_adapters.zoo.vector_neurons.models import build
from surgeon_adapters.zoo.vector_neurons.task import PointCloudTask

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "pointcloud"))
from shapes import SHAPES, sample_clouds  # noqa: E402

EVALUATED = 100
"""Clouds in a batch of evaluation."""
NOISE = 0.02
MODELNET = 40


@dataclass(frozen=True)
class Cell:
    """One comparison.

    Attributes:
        network: "pointnet" or "dgcnn".
        base: its width; 64 is the published one.
        neighbours: nearest ones that it looks at.
        shapes: that are told apart; of files, all.
        points: of each cloud.
        count: training clouds; of files, all.
        validation: clouds of that split; of files, a tenth of those for training.
        test: of that one.
        batch: clouds per step.
        epochs: passes over them.
        evaluate_every: epochs between evaluations.
    """

    network: str
    base: int
    neighbours: int
    shapes: tuple[str, ...]
    points: int
    count: int
    validation: int
    test: int
    batch: int
    epochs: int
    evaluate_every: int


SIZES = {
    "small": (Cell("pointnet", 12, 6, ("sphere", "torus", "saddle", "helix"), 32, 400, 200, 600, 20, 10, 2),),
    "paper": tuple(
        Cell(network, 64, 20, tuple(SHAPES), 300, 9000, 1000, 2000, 32, 250, 5) for network in ("pointnet", "dgcnn")
    ),
}
GRID = (1e-2, 3e-2, 9e-2)
SWEEP_SEEDS = {"small": (0, 11, 12), "paper": (0,)}
"""Short trainings that differ by their first weights end too far apart for a choice by one seed."""
BRANCHES = {
    "small": ("drop", "overparam"),
    "paper": (
        *("drop", "drop+branch_factor=1", "overparam"),
        *(f"drop+penalty_weight={weight}" for weight in (0, 0.001, 0.1)),
    ),
}


def clouds(cell: Cell, split: Split, seed: int, rotate: bool) -> Clouds:
    """Generate the clouds of a split, as many of each shape."""
    names = list(SHAPES)
    counts: dict[Split, int] = {"train": cell.count, "validation": cell.validation, "test": cell.test}
    everything = counts[split] * len(names) // len(cell.shapes)
    made = sample_clouds(everything, cell.points, NOISE, rotate, (seed, list(counts).index(split)))
    wanted = torch.tensor([names.index(name) for name in cell.shapes])
    matches = made.labels[:, None] == wanted
    rows = matches.any(1)
    return Clouds(made.points[rows].float(), matches[rows].int().argmax(1))


def task_on(cell: Cell, seed: int, rotate: bool) -> Classes:
    """Return the task on clouds of a seed; turned at random, each in its way, if ``rotate``."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    return Classes({split: clouds(cell, split, seed, rotate) for split in splits}, cell.batch, "none", 0.0, None)


def comparison_on(cell: Cell, seed: int, files: Sequence[Path]) -> Comparison:
    """Return the comparison on clouds of a seed, or of the files."""
    outputs = MODELNET if files else len(cell.shapes)

    def make_model() -> nn.Module:
        return build(cell.network, outputs, cell.base, "mean", neighbours=cell.neighbours)  # random: of the run's seed

    if files:
        read = PointCloudTask(files[0], test=str(files[1].absolute()), points=cell.points, batch_size=cell.batch)
        task = read.for_model(make_model())
    else:
        task = task_on(cell, seed, False)
    batch = {name: values[:8] for name, values in next(iter(task.batches("train", 0))).items()}
    acts = {"act": task.act, "act_output": task.act_output}
    plan = surgeon.find(
        make_model(), "SO3", batch, forward=lambda model, batch: task_forward(task, model, batch), **acts
    )
    settled = FinetuneSettings(epochs=cell.epochs, warmup=10, evaluate_every=cell.evaluate_every).settled()
    return Comparison(make_model, plan, InLargeBatches(task, EVALUATED), settled)


def run_cells(size: str, files: Sequence[Path], confirm: bool) -> None:
    """Run what is missing of every comparison."""
    for cell in SIZES[size]:
        print(cell, flush=True)
        comparison = comparison_on(cell, 0, files)
        data = {"files": [path.name for path in files]} if files else {}
        context = {**asdict(cell), **data, "settings": shared_settings(comparison)}
        both = size == "paper"
        protocol = Protocol(CLASSES, GRID, ("plain@soap",), BRANCHES[size], by_both=both, sweep_seeds=SWEEP_SEEDS[size])
        lines = Lines(RESULTS / f"table_c.{size}.jsonl", context)
        run_protocol(comparison, lines, protocol, comparison_on(cell, 1, files) if confirm else None)
        if not files:
            turned = dataclasses.replace(comparison, task=InLargeBatches(task_on(cell, 0, True), EVALUATED))
            shape = (len(cell.shapes), cell.base)
            run_beside(turned, lines, protocol, {name: partial(make, *shape) for name, make in BESIDE.items()})


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs=2, type=Path, default=(), metavar=("TRAIN", "TEST"), help="of ModelNet40")
    parser.add_argument("--confirm", action="store_true", help="run fresh seeds on fresh data, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run_cells(os.environ.get("SIZE", "small"), tuple(options.files), options.confirm)


if __name__ == "__main__":
    main()
