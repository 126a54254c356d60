"""Table A: is a pretrained potential fine-tuned better by SOAP or Muon than by tuned AdamW, at equal steps and time?

    SIZE=small python benchmarks/accuracy/table_a.py RMD17 ethanol --model mace=mace_malonaldehyde_salicylic.model

``RMD17`` holds ``MOLECULE_{train,valid,test}.xyz[.gz]`` with REF_energy in eV and REF_forces in eV/Angstrom. Each run
is written to ``results/table_a.SIZE.jsonl`` when it is finished; the same command goes on. For every arm one grid of
learning rates is tried on validation frames with seed 0, and extended while the best lies at an edge. AdamW is tried
with three values of beta2, and the best of them is what others are compared with, on test frames and with seeds of
their own. ``--confirm`` repeats the last step once with fresh seeds. ``report.py`` beside this file writes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import os
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lines import RESULTS, Lines

from surgeon.opening.evaluation import is_better
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import primary_metric
from surgeon.plan import Split
from surgeon.training.comparison import Comparison, run_arms
from surgeon.training.outcomes import ArmRun, Point
from surgeon.training.settings import FinetuneSettings
from surgeon.training.spread import comparison_of
from surgeon.training.starting import open_for_comparison
from surgeon.training.sweep import sweep
from surgeon_adapters.atoms.task import AtomisticTask

ADAMW = tuple(f"plain@adamw+beta2={beta2}" for beta2 in (0.9, 0.95, 0.999))
OTHERS = ("plain@soap", "plain@muon")
BATCH, EVALUATED = 5, 50
"""Frames in a batch of training, and of evaluation."""


@dataclass(frozen=True)
class Size:
    """How much is run.

    Attributes:
        epochs: passes over the 100 training frames, of 20 steps each.
        seeds: of the final runs.
        fresh: seeds of their confirmation.
        grid: learning rates that every arm is tried with first, by library.
    """

    epochs: int
    seeds: Sequence[int]
    fresh: Sequence[int]
    grid: Mapping[str, Sequence[float]]


GRID = {"mace": (1e-2, 3e-2, 9e-2), "sevennet": (1e-3, 3e-3, 9e-3)}
SIZES = {
    "small": Size(5, range(1, 6), range(6, 11), GRID),
    "paper": Size(50, range(1, 11), range(11, 21), GRID),
}


def unpacked(folder: Path, molecule: str, target: Path) -> dict[str, Path]:
    """Write the frames of a molecule as they are, and return one path for every split.

    Raises:
        SystemExit: if a file is missing.
    """
    paths = {}
    for split in ("train", "valid", "test"):
        plain, packed = (folder / f"{molecule}_{split}.xyz{ending}" for ending in ("", ".gz"))
        if not (plain.is_file() or packed.is_file()):
            raise SystemExit(f"expected {plain.name} or {packed.name} in '{folder}', found neither: name the folder")
        paths[split] = target / plain.name
        paths[split].write_bytes(plain.read_bytes() if plain.is_file() else gzip.decompress(packed.read_bytes()))
    return paths


class InLargeBatches:
    """A task whose validation and test frames come in larger batches, which is faster and changes no metric."""

    def __init__(self, task: AtomisticTask) -> None:
        self._task, self._large = task, dataclasses.replace(task, batch_size=EVALUATED)

    def batches(self, split: Split, seed: int) -> Any:
        """Return the batches of a split."""
        return (self._task if split == "train" else self._large).batches(split, seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def comparison_from(library: str, checkpoint: str, paths: Mapping[str, Path], size: Size) -> tuple[Comparison, str]:
    """Open a checkpoint as ``surgeon finetune --compare`` does; return the comparison and the hash of its file."""
    arguments = {
        "validation": str(paths["valid"]),
        "test": str(paths["test"]),
        "batch_size": BATCH,
        "reference": "estimate",
    }
    options = OpenOptions(task=f"{library}:{paths['train']}", task_arguments=arguments, trust_pickle=True)
    workspace = open_for_comparison(checkpoint, [*ADAMW, *OTHERS], options)
    settings = FinetuneSettings(epochs=size.epochs, warmup=10, evaluate_every=5)
    comparison = comparison_of(workspace, settings)
    comparison = dataclasses.replace(comparison, task=InLargeBatches(comparison.task), judge=None)
    return comparison, str(workspace.require_relaxed()[1].config.base["sha256"])


def seconds_per_step(lines: Lines, arm: str, rates: Sequence[float]) -> float:
    """Return the median over the sweep, in seconds of the processor, of what a run took per step."""
    points = [Point(arm, 0, rate, test=False) for rate in rates]
    timed = [(lines.cpu_seconds[point], lines[point]) for point in points if point in lines.cpu_seconds]
    return statistics.median(seconds / run.steps for seconds, run in timed if isinstance(run, ArmRun))


def run_table(library: str, checkpoint: str, data: Path, molecule: str, size_name: str, confirm: bool) -> None:
    """Run what is missing for one model and one molecule."""
    size = SIZES[size_name]
    with tempfile.TemporaryDirectory() as folder:
        comparison, sha256 = comparison_from(library, checkpoint, unpacked(data, molecule, Path(folder)), size)
        settings = comparison.settings.to_data()
        shared = {name: value for name, value in settings.items() if name not in ("seed", "learning_rate")}
        context = {"library": library, "sha256": sha256, "molecule": molecule, "batch": BATCH, "settings": shared}
        lines = Lines(RESULTS / f"table_a.{size_name}.jsonl", context)
        execute = lines.execute(comparison)
        arms = [*ADAMW, *OTHERS]
        swept = sweep(comparison, arms, size.grid[library], (0,), execute, lines)
        metric, direction = primary_metric(comparison.task)
        reached = {(run["arm"], run["learning_rate"]): run["validation"][0] for run in swept["runs"]}
        adamw = ADAMW[0]
        for arm in ADAMW:
            best = reached[arm, swept["best"][arm]]
            adamw = arm if is_better(best, reached[adamw, swept["best"][adamw]], direction) else adamw
        finalists = [adamw, *OTHERS]
        rates = {arm: swept["best"][arm] for arm in finalists}
        print(f"{molecule}: {metric}, best rates {rates}", flush=True)
        run_arms(comparison, finalists, [*size.seeds, *(size.fresh if confirm else ())], rates, execute, lines)
        per_step = {
            arm: seconds_per_step(lines, arm, [run["learning_rate"] for run in swept["runs"] if run["arm"] == arm])
            for arm in finalists
        }
        for arm in OTHERS:
            epochs = min(size.epochs, int(size.epochs * per_step[adamw] / per_step[arm]))
            if epochs == size.epochs:
                continue
            shorter = dataclasses.replace(comparison, settings=dataclasses.replace(comparison.settings, epochs=epochs))
            fewer = Lines(lines.path, {**context, "settings": {**shared, "epochs": epochs}})
            run_arms(shorter, [arm], list(size.seeds), rates, fewer.execute(shorter), fewer)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the frames")
    parser.add_argument("molecules", nargs="+")
    parser.add_argument("--model", required=True, metavar="LIBRARY=CHECKPOINT")
    parser.add_argument("--confirm", action="store_true", help="run fresh seeds, too")
    options = parser.parse_args()
    library, _, checkpoint = options.model.partition("=")
    for molecule in options.molecules:
        run_table(library, checkpoint, options.folder, molecule, os.environ.get("SIZE", "small"), options.confirm)


if __name__ == "__main__":
    main()
