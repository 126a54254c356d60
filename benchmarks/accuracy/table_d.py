"""Table D: Equiformer on frames of rMD17, from scratch (Table 1, by form).

    SIZE=small python benchmarks/accuracy/table_d.py RMD17 ethanol

``RMD17`` is the folder of table A: 100 training frames. Branches lie on the feed-forward parts, where the paper puts
them. Each run is written to ``results/table_d.SIZE.jsonl`` when it is finished; the same command goes on. ``--confirm``
repeats what won once, with fresh seeds, after the lines were committed. How arms are compared says ``runner.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from lines import RESULTS, Lines
from measures import MOLECULES
from rmd17 import write_frames
from runner import InLargeBatches, Protocol, run_protocol, shared_settings
from torch import nn

import surgeon
from surgeon.opening.task_calls import task_forward
from surgeon.plan import Split
from surgeon.training.comparison import Comparison
from surgeon.training.settings import FinetuneSettings
from surgeon_adapters.zoo.equiformer import build
from surgeon_adapters.zoo.equiformer.task import EquiformerTask

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "molecules"))
from equiformer import SETTINGS  # noqa: E402
from md17_files import write_npz  # noqa: E402

EVALUATED = 50
"""Frames in a batch of evaluation."""


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        published: the network is the published one, else the small one of ``examples/molecules``.
        batch: frames per step.
        epochs: passes over the training frames.
        evaluate_every: epochs between evaluations.
    """

    published: bool
    batch: int
    epochs: int
    evaluate_every: int


SIZES = {"small": Size(False, 10, 10, 1), "paper": Size(True, 8, 1500, 25)}
GRID = (1e-3, 3e-3, 9e-3)


def comparison_on(folder: Path, molecule: str, size: Size) -> Comparison:
    """Return the comparison on the frames of a molecule, which are written to one file of MD17's form on the way."""

    def make_model() -> nn.Module:
        return build(settings={} if size.published else SETTINGS)  # random: of the run's seed

    with tempfile.TemporaryDirectory() as target:
        parts = []
        for path in write_frames(folder, molecule, Path(target)).values():
            write_npz(path, path.with_suffix(".npz"))
            with np.load(path.with_suffix(".npz")) as arrays:
                parts.append(dict(arrays))
        whole = Path(target, f"{molecule}.npz")
        np.savez(whole, z=parts[0]["z"], **{name: np.concatenate([part[name] for part in parts]) for name in "REF"})
        spread = {"mean": float(parts[0]["E"].mean()), "std": float(parts[0]["E"].std())}
        task = EquiformerTask(whole, batch_size=size.batch, **spread).for_model(make_model())
    rows = torch.arange(sum(len(part["E"]) for part in parts)).split([len(part["E"]) for part in parts])
    splits: tuple[Split, ...] = ("train", "validation", "test")
    task = dataclasses.replace(task, splits=dict(zip(splits, rows, strict=True)))
    batch, acts = next(iter(task.batches("validation", 0))), {"act": task.act, "act_output": task.act_output}
    plan = surgeon.find(
        make_model(), "SO3", batch, forward=lambda model, batch: task_forward(task, model, batch), **acts
    )
    plan = surgeon.select(plan, include=["*.ffn.*"])
    settings = FinetuneSettings(epochs=size.epochs, warmup=10, evaluate_every=size.evaluate_every).settled()
    return Comparison(make_model, plan, InLargeBatches(task, EVALUATED), settings)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the frames")
    parser.add_argument("molecules", nargs="+")
    parser.add_argument("--confirm", action="store_true", help="run fresh seeds, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = os.environ.get("SIZE", "small")
    size = SIZES[name]
    for molecule in options.molecules:
        print(molecule, flush=True)
        comparison = comparison_on(options.folder, molecule, size)
        context = {"molecule": molecule, **asdict(size), "settings": shared_settings(comparison)}
        lines = Lines(RESULTS / f"table_d.{name}.jsonl", context)
        protocol = Protocol(MOLECULES, GRID, ("plain@soap",), ("drop",))
        run_protocol(comparison, lines, protocol, comparison if options.confirm else None)


if __name__ == "__main__":
    main()
