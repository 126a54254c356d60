"""Does it change the result that the penalty looks at some rows every few steps, instead of all rows at every step?

The pretrained N-body network is fine-tuned with the paper's method and both ways of computing the penalty, with equal
seeds and batches. Paired differences are reported: of the test metrics after dropping, and of the size and the relative
defect of W half-way, which is what the penalty acts on::

    python benchmarks/penalty.py
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t

import surgeon
from surgeon.editing.strip import strip
from surgeon.opening.evaluation import evaluate
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import task_forward
from surgeon.support.versions import machine, versions
from surgeon.training.arms import arm_named
from surgeon.training.engine import Finetuner
from surgeon.training.settings import FinetuneSettings

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "penalty.json"
RATE = json.loads((ROOT / "examples" / "nbody" / "sweep.json").read_text())["sweep"]["best"]["drop"]
METRICS = ("mse", "log10_mse")
WAYS: dict[str, dict[str, Any]] = {"exact": {"penalty_rows": None, "penalty_every": 1}, "default": {}}


def one(way: str, weight: float, seed: int, epochs: int) -> dict[str, Any]:
    """Fine-tune once; test metrics after dropping, and the sizes and defects of W half-way."""
    options = OpenOptions(task=str(ROOT / "examples" / "nbody" / "task.py"))
    workspace = open_path(ROOT / "examples" / "nbody" / "segnn_nbody.safetensors", options)
    task, model = workspace.require_task().task, workspace.model
    batch = next(iter(task.batches("validation", 0)))
    plan = surgeon.find(copy.deepcopy(model), "O3", batch, forward=lambda m, b: task_forward(task, m, b))
    relaxation = surgeon.relax(model, plan, dense=True)
    settings = FinetuneSettings(epochs=epochs, learning_rate=RATE, penalty_weight=weight, seed=seed, evaluate_every=5)
    half: dict[str, float] = {}

    def watch(event: Any) -> None:
        if event.step == event.steps // 2:
            weights = torch.cat([branch.weight.detach().flatten() for branch in relaxation.branches.values()])
            half["norm"] = float(weights.norm())
            half["defect"] = statistics.fmean(relaxation.defects().values())

    result = Finetuner(model, task, replace(settings, **WAYS[way]), arm_named("drop"), relaxation).run(watch)
    strip(relaxation)
    test = evaluate(model, task, "test")
    return {"way": way, "lambda": weight, "seed": seed, "test": test, "seconds": result.seconds, **half}


def paired(runs: list[dict[str, Any]], value: Any) -> dict[str, float]:
    """Return the mean of exact, and that of default minus exact with its 95 % interval, over seeds."""
    values = {way: [value(run) for run in runs if run["way"] == way] for way in WAYS}
    differences = [b - a for a, b in zip(values["exact"], values["default"], strict=True)]
    width = float(t.ppf(0.975, len(differences) - 1)) * statistics.stdev(differences) / len(differences) ** 0.5
    exact = statistics.fmean(values["exact"])
    return {"exact": exact, "difference": statistics.fmean(differences), "half_width": width}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lambdas", default="0.01,0.3")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = {
        "command": f"python benchmarks/penalty.py --seeds {options.seeds} --epochs {options.epochs} "
        f"--lambdas {options.lambdas}",
        "machine": {**machine(), "threads": 1},
        "versions": versions(),
        "summary": [],
        "runs": [],
    }
    for weight in (float(part) for part in options.lambdas.split(",")):
        runs = [one(way, weight, seed, options.epochs) for seed in range(options.seeds) for way in WAYS]
        record["runs"] += runs
        summary: dict[str, Any] = {"lambda": weight}
        for name in METRICS:
            if name in runs[0]["test"]:
                summary[name] = paired(runs, lambda run, name=name: run["test"][name])
        for name in ("norm", "defect", "seconds"):
            summary[name] = paired(runs, lambda run, name=name: run[name])
        record["summary"].append(summary)
        print(json.dumps(summary))
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
