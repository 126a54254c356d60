"""Table A: is a pretrained potential fine-tuned better by SOAP or Muon than by tuned AdamW, at equal steps and time?

    SIZE=small python benchmarks/accuracy/table_a.py RMD17 ethanol --model mace=mace_malonaldehyde_salicylic.model

``RMD17`` holds ``MOLECULE_{train,valid,test}.xyz[.gz]`` with REF_energy in eV and REF_forces in eV/Angstrom. Each run
is written to ``results/table_a.SIZE.jsonl`` when it is finished; the same command goes on. How arms are compared says
``runner.py``; here SOAP is also run as ``surgeon finetune`` takes it by itself. ``--frames`` trains on fewer of the 100
frames, in as many steps; ``--branches`` adds arms with branches and updates. ``--confirm`` repeats what won once, with
fresh seeds, after the lines were committed. ``report.py`` beside this file writes the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from defaults import CLIPS, DEFAULTS, MUON, SOAP
from lines import RESULTS, Lines
from measures import FORCES
from rmd17 import write_frames
from runner import ADAMW, InLargeBatches, Protocol, run_protocol, shared_settings

from surgeon.opening.options import OpenOptions
from surgeon.training.comparison import Comparison
from surgeon.training.settings import FinetuneSettings
from surgeon.training.spread import comparison_of
from surgeon.training.starting import open_for_comparison

OTHERS = {library: tuple(dict.fromkeys((SOAP, arm, MUON))) for library, (arm, _) in DEFAULTS.items()}
DEFAULT_ONLY = ("large",)
"""Sizes at which what ``surgeon finetune`` takes by itself is all that is compared with AdamW."""
BATCH, EVALUATED = 5, 50
"""Frames in a batch of training, and of evaluation."""
EPOCHS = {"small": 5, "medium": 10, "large": 20, "paper": 50}
"""Passes over 100 training frames, of 20 steps each; over fewer frames, as many more as make the same steps."""
FRAMES = (10, 50, 100)
BRANCHES = ("drop", "fold", "lowrank")
GRID = {"mace": (1e-2, 3e-2, 9e-2), "sevennet": (3e-3, 9e-3, 2.7e-2)}
"""Learning rates that every arm is tried with first, by library."""


def others(library: str, size: str) -> tuple[str, ...]:
    """Return the arms that are compared with AdamW."""
    return (DEFAULTS[library][0],) if size in DEFAULT_ONLY else OTHERS[library]


def comparison_from(
    library: str, checkpoint: str, paths: Mapping[str, Path], arms: Sequence[str], size: str, frames: int
) -> tuple[Comparison, str]:
    """Open a checkpoint as ``surgeon finetune --compare`` does; return the comparison and the hash of its file."""
    arguments = {
        "validation": str(paths["valid"]),
        "test": str(paths["test"]),
        "batch_size": BATCH,
        "reference": "estimate",
    }
    options = OpenOptions(task=f"{library}:{paths['train']}", task_arguments=arguments, trust_pickle=True)
    workspace = open_for_comparison(checkpoint, [*ADAMW, *arms], options)
    passes = max(FRAMES) // frames
    settings = FinetuneSettings(epochs=EPOCHS[size] * passes, warmup=10, evaluate_every=5 * passes, clip=CLIPS[library])
    comparison = comparison_of(workspace, settings)
    comparison = dataclasses.replace(comparison, task=InLargeBatches(comparison.task, EVALUATED), judge=None)
    return comparison, str(workspace.require_relaxed()[1].config.base["sha256"])


def run_table(molecule: str, size: str, options: argparse.Namespace) -> None:
    """Run what is missing for one molecule."""
    library, _, checkpoint = options.model.partition("=")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_frames(options.folder, molecule, Path(folder), options.frames)
        arms = others(library, size)
        comparison, sha256 = comparison_from(
            library, checkpoint, paths, [*arms, *options.branches], size, options.frames
        )
        context = {"library": library, "sha256": sha256, "molecule": molecule, "batch": BATCH}
        context["settings"] = shared_settings(comparison)
        if options.frames != max(FRAMES):
            context["frames"] = options.frames
        protocol = Protocol(FORCES, GRID[library], arms, options.branches, default=DEFAULTS[library])
        print(f"{library}, {molecule}", flush=True)
        lines = Lines(RESULTS / f"table_a.{size}.jsonl", context)
        run_protocol(comparison, lines, protocol, comparison if options.confirm else None)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the frames")
    parser.add_argument("molecules", nargs="+")
    parser.add_argument("--model", required=True, metavar="LIBRARY=CHECKPOINT")
    parser.add_argument("--frames", type=int, choices=FRAMES, default=max(FRAMES), help="to train on, default all 100")
    parser.add_argument("--branches", nargs="+", choices=BRANCHES, default=(), help="run these arms, too")
    parser.add_argument("--confirm", action="store_true", help="run fresh seeds, too")
    options = parser.parse_args()
    for molecule in options.molecules:
        run_table(molecule, os.environ.get("SIZE", "small"), options)


if __name__ == "__main__":
    main()
