"""Table E: approximately equivariant convolutions on smoke, under rotation and scale, from scratch (Table 2, by form).

    SIZE=small python benchmarks/accuracy/table_e.py
    SIZE=paper python benchmarks/accuracy/table_e.py --data rotation=Data/Rotation --data scale=Data/Scale

The test "future" is later times of the same experiments, "domain" all times of one that was held out. The shipped
fields are a form of the published ones, on 25 x 25 cells; ``--data`` takes folders of those. Other networks, each with
the same sweep of AdamW, stand beside them. Each run is written to ``results/table_e.SIZE.jsonl`` when it is finished;
the same command goes on. ``--confirm`` repeats what won once, with fresh seeds, after the lines were committed. How
arms are compared says ``runner.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from lines import RESULTS, Lines
from measures import FIELDS
from runner import Protocol, run_beside, run_protocol, shared_settings
from smoke_networks import BESIDE, RELAXED, approximate
from torch import nn

import surgeon
from surgeon.opening.task_calls import task_forward
from surgeon.training.comparison import Comparison
from surgeon.training.settings import FinetuneSettings

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "smoke"))
from task import make_task  # noqa: E402

GROUPS = {"rotation": "C4", "scale": "SCALE2"}


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        inputs: frames that the network sees.
        steps: frames that it predicts one after the other.
        hidden: fields between the layers.
        layers: of the network.
        batch: windows per step.
        epochs: passes over the training windows.
        evaluate_every: epochs between evaluations.
    """

    inputs: int
    steps: int
    hidden: int
    layers: int
    batch: int
    epochs: int
    evaluate_every: int


SIZES = {"small": Size(2, 1, 6, 3, 8, 60, 5), "paper": Size(10, 6, 16, 5, 16, 1000, 10)}
GRID = (3e-3, 1e-2, 3e-2)


def comparison_on(variant: str, size: Size, data: str, held_out: str) -> Comparison:
    """Return the comparison on a data set: the shipped one, or a folder."""
    task = make_task(variant, data, "", size.inputs, size.steps, (held_out,), batch_size=size.batch)

    def make_model() -> nn.Module:
        return approximate(variant, size.inputs, size.hidden, size.layers)  # random: of the run's seed

    batch = next(iter(task.batches("validation", 0)))
    acts = {"act": task.act, "act_output": task.act_output}
    plan = surgeon.find(
        make_model(), GROUPS[variant], batch, forward=lambda model, batch: task_forward(task, model, batch), **acts
    )
    settings = FinetuneSettings(epochs=size.epochs, warmup=10, evaluate_every=size.evaluate_every).settled()
    return Comparison(make_model, plan, task, settings, probes={"domain": dataclasses.replace(task, test="domain")})


def run_variant(variant: str, size: str, data: str, held_out: str, confirm: bool) -> None:
    """Run what is missing of one comparison, and of the networks beside it."""
    print(variant, flush=True)
    comparison, own = comparison_on(variant, SIZES[size], data, held_out), SIZES[size]
    context = {"variant": variant, "data": Path(data).name, "held_out": held_out, **asdict(own)}
    lines = Lines(RESULTS / f"table_e.{size}.jsonl", {**context, "settings": shared_settings(comparison)})
    protocol = Protocol(FIELDS, GRID, ("plain@soap",), ("drop",))
    run_protocol(comparison, lines, protocol, comparison if confirm else None)
    shape = (variant, own.inputs, own.hidden, own.layers)
    run_beside(comparison, lines, protocol, {name: partial(make, *shape) for name, make in BESIDE.items()})


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="VARIANT=FOLDER", help="published fields")
    parser.add_argument("--held-out", default="2_2", help="experiment of the test domain")
    parser.add_argument("--confirm", action="store_true", help="run fresh seeds, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folders, size = dict(given.split("=", 1) for given in options.data), os.environ.get("SIZE", "small")
    for variant in RELAXED:
        run_variant(variant, size, folders.get(variant, ""), options.held_out, options.confirm)


if __name__ == "__main__":
    main()
