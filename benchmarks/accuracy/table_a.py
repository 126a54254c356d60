"""Table A: is a pretrained potential fine-tuned better by SOAP or Muon than by tuned AdamW, at equal steps and time?

    SIZE=small python benchmarks/accuracy/table_a.py RMD17 ethanol --model mace=mace_malonaldehyde_salicylic.model

``RMD17`` holds ``MOLECULE_{train,valid,test}.xyz[.gz]`` with REF_energy in eV and REF_forces in eV/Angstrom. Each run
is written to ``results/table_a.SIZE.jsonl`` when it is finished; the same command goes on. For every arm one grid of
learning rates is tried on validation frames with seed 0, and extended while the best lies at an edge. AdamW is tried
with three values of beta2, and the best of them is what others are compared with, on test frames and with seeds of
their own. SOAP is also run at the rate that ``surgeon finetune`` takes by itself. ``--confirm`` repeats what won there
once, with fresh seeds, after the lines were committed. ``report.py`` beside this file writes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lines import RESULTS, Lines
from report import FRESH, against, chosen, tested, tuned_adamw

from surgeon.opening.options import OpenOptions
from surgeon.optim.adam import MatrixOptimizer
from surgeon.optim.blocks import find_blocks
from surgeon.plan import Split
from surgeon.training.arms import Contender
from surgeon.training.comparison import Comparison, run_arms
from surgeon.training.optimizers import make_optimizer
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
    "small": Size(5, range(1, FRESH), range(FRESH, 11), GRID),
    "medium": Size(10, range(1, FRESH), range(FRESH, 11), GRID),
    "paper": Size(50, range(1, FRESH), range(FRESH, 11), GRID),
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
    preferred = workspace.require_task().task.preferred
    settings = FinetuneSettings(epochs=size.epochs, warmup=10, evaluate_every=5, clip=preferred.get("clip"))
    comparison = comparison_of(workspace, settings)
    comparison = dataclasses.replace(comparison, task=InLargeBatches(comparison.task), judge=None)
    return comparison, str(workspace.require_relaxed()[1].config.base["sha256"])


def step_seconds(comparison: Comparison, arms: Sequence[str], rounds: int = 40) -> dict[str, float]:
    """Measure what a step of each arm takes, in turn on one model and batch, so that other work disturbs all alike.

    Returns:
        Arm to seconds of the processor, means of the middle half: forward and backward, which all share, and the
        optimiser's own.
    """
    model, task = comparison.make_model(), comparison.task
    batch, groups = next(iter(task.batches("train", 0))), [{"params": list(model.parameters())}]
    optimizers = {}
    for arm in arms:
        settings = dataclasses.replace(Contender.parse(arm).settings(comparison.settings), learning_rate=1e-9)
        optimizers[arm] = make_optimizer([dict(group) for group in groups], settings)
        if isinstance(optimizers[arm], MatrixOptimizer):
            optimizers[arm].use_blocks(find_blocks(model))
    times: dict[str, list[float]] = {arm: [] for arm in ("shared", *arms)}
    for _ in range(rounds):
        began = time.process_time()
        model.zero_grad()
        task.loss(task.forward(model, batch), batch).backward()
        times["shared"].append(time.process_time() - began)
        for arm in arms:
            began = time.process_time()
            optimizers[arm].step()
            times[arm].append(time.process_time() - began)
    shared, *own = (statistics.fmean(sorted(each)[rounds // 4 : -rounds // 4]) for each in times.values())
    return {arm: shared + seconds for arm, seconds in zip(arms, own, strict=True)}


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
        sweep(comparison, arms, size.grid[library], (0,), execute, lines)
        best = chosen(lines)
        adamw = tuned_adamw(best)
        finalists = [adamw, *OTHERS]
        rates = {arm: best[arm][0] for arm in finalists}
        print(f"{molecule}: best rates {rates}", flush=True)
        run_arms(comparison, finalists, size.seeds, rates, execute, lines)
        reference = tested(lines, adamw, rates[adamw], False)
        differences = {arm: against(tested(lines, arm, rates[arm], False), reference) for arm in OTHERS}
        gained = [arm for arm, difference in differences.items() if difference is not None and difference.high < 0]
        preferred = comparison.task.preferred
        default = f"plain@{preferred['optimizer']}"
        for seeds in (size.seeds, *([size.fresh] if confirm and default in gained else [])):
            run_arms(comparison, [default], seeds, {default: preferred["learning_rate"]}, execute, lines)
        if confirm and gained:
            run_arms(comparison, [adamw, *gained], size.fresh, rates, execute, lines)
        if not lines.step_seconds:
            lines.keep_step_seconds(step_seconds(comparison, finalists))
        for arm in OTHERS:
            epochs = int(size.epochs * min(1.0, lines.step_seconds[adamw] / lines.step_seconds[arm]))
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
