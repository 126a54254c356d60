"""Is ``--auto`` worth its steps? A search beside one training of the default that takes as many steps in all.

    python benchmarks/accuracy/auto.py RMD17 malonaldehyde --model mace=mace_ethanol_aspirin.model --seeds 1

``RMD17`` is that of ``table_a.py``. Each seed is one line of ``results/auto.jsonl``: what the search chose, its error,
and that of the default with its own length and with all its steps, on 50 validation and 1,000 test frames.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from lines import RESULTS, commit
from rmd17 import write_frames
from table_a import BATCH

import surgeon
from surgeon.opening.evaluation import evaluate
from surgeon.support.versions import machine, versions

EPOCHS, BUDGET = 10, 10.0


def tested(folder: Path, options: surgeon.OpenOptions) -> dict[str, float]:
    """Return the metrics of a run's best weights on test frames."""
    workspace = surgeon.open_path(folder, options)
    return evaluate(workspace.model, workspace.require_task().task, "test")


def compared(checkpoint: str, options: surgeon.OpenOptions, seed: int, folder: Path) -> dict[str, Any]:
    """Search, and train the default as long as one of the runs and as long as all of them."""
    shared = surgeon.FinetuneSettings(epochs=EPOCHS, seed=seed)
    asked = surgeon.AutoSettings(shared, budget=BUDGET)
    found, done = surgeon.finetune_auto(checkpoint, folder / "search", asked, options=options)
    line: dict[str, Any] = {"epochs": EPOCHS, "budget": BUDGET, "seed": seed, "rows": found.rows, "steps": found.steps}
    line["search"] = {**found.best, "seconds": found.seconds, "test": tested(done.folder, options)}
    for name, epochs in (("default", EPOCHS), ("default, all steps", found.steps * EPOCHS // done.result.steps)):
        settings = surgeon.FinetuneSettings(epochs=epochs, seed=seed, evaluate_every=max(1, epochs // EPOCHS))
        run = surgeon.finetune(checkpoint, folder / name, settings, options=options).result
        figures = {"steps": run.steps, "seconds": run.seconds, "validation": run.validation}
        line[name] = {**figures, "test": tested(folder / name, options)}
    return line


def main() -> None:
    """Append one line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with the frames")
    parser.add_argument("molecule")
    parser.add_argument("--model", required=True, metavar="LIBRARY=CHECKPOINT")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    given = parser.parse_args()
    library, _, checkpoint = given.model.partition("=")
    for seed in given.seeds:
        with tempfile.TemporaryDirectory() as name:
            paths = write_frames(given.folder, given.molecule, Path(name))
            splits = {"validation": str(paths["valid"]), "test": str(paths["test"])}
            arguments = {**splits, "batch_size": BATCH, "reference": "estimate"}
            options = surgeon.OpenOptions(f"{library}:{paths['train']}", arguments, trust_pickle=True)
            line = compared(checkpoint, options, seed, Path(name))
        made = {"commit": commit(), "versions": versions(), "machine": machine()}
        line = {"library": library, "molecule": given.molecule, **line, **made}
        with (RESULTS / "auto.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({key: line[key] for key in ("molecule", "seed", "search", "default", "default, all steps")}))


if __name__ == "__main__":
    main()
