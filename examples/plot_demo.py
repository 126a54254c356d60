"""Draw the demo from its records: what theta did, what it did to the network, and what was left of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

MODELS = ("original", "relaxed, theta 1", "stripped")
COLOURS = ("#4477aa", "#cc6677", "#228833")
TOLERANCE = 1e-5
"""Equivariance error in float32 that counts as rounding."""


def draw_training(axes: Axes, history: list[dict[str, Any]], metric: str) -> None:
    """Draw theta and the validation metric of the relaxed and the clean model over the epochs."""
    evaluated = [entry for entry in history if entry["validation"]]
    epochs = [entry["epoch"] for entry in evaluated]
    for key, label, colour in (("validation_relaxed", "relaxed", COLOURS[1]), ("validation", "clean", COLOURS[2])):
        axes.plot(epochs, [entry[key][metric] for entry in evaluated], "o-", label=label, color=colour, markersize=3)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"validation {metric} (dimensionless)")
    axes.set_yscale("log")
    axes.legend(loc="upper right", frameon=False)
    theta = axes.twinx()
    theta.fill_between([e["epoch"] for e in history], [e["theta"][0] for e in history], color="0.9")
    theta.set_ylim(0, 2)
    theta.set_yticks([0, 1])
    theta.set_ylabel("theta (shaded)")
    axes.set_zorder(theta.get_zorder() + 1)
    axes.patch.set_visible(False)


def draw_equivariance(axes: Axes, equivariance: dict[str, Any]) -> None:
    """Draw the largest equivariance error in float32, with the element that has it, per component of the group."""
    components = list(equivariance["original"]["float32"])
    for place, (model, colour) in enumerate(zip(MODELS, COLOURS, strict=True)):
        errors = [equivariance[model]["float32"][component] for component in components]
        positions = [index + 0.25 * (place - 1) for index in range(len(components))]
        bars = axes.bar(positions, [error["maximum"] for error in errors], 0.22, color=colour, label=model)
        axes.bar_label(bars, [error["worst"] for error in errors], rotation=90, fontsize=6, padding=2)
    axes.axhline(TOLERANCE, color="0.4", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(components)), components)
    axes.set_yscale("log")
    axes.set_ylim(1e-8, 1e3)
    count = equivariance["original"]["float32"][components[0]]["count"]
    axes.set_ylabel(f"largest equivariance error of {count}")
    axes.legend(frameon=False, ncols=3, fontsize=7, loc="upper center")


def draw_comparison(axes: Axes, comparison: dict[str, Any]) -> None:
    """Draw the test metric of every arm: each seed, and the mean."""
    metric = comparison["metric"]
    for place, row in enumerate(comparison["rows"]):
        values = [run["test"][metric] for run in comparison["runs"] if run["arm"] == row["arm"]]
        axes.plot([place] * len(values), values, "o", color="0.6", markersize=4)
        axes.plot([place - 0.25, place + 0.25], [row["mean"]] * 2, color="k")
    axes.set_xticks(range(len(comparison["rows"])), [row["arm"] for row in comparison["rows"]])
    axes.set_ylabel(f"test {metric} (dots: seeds, line: mean)")


def draw_curves(axes: Axes, comparison: dict[str, Any]) -> None:
    """Draw the validation metric of every run of a comparison over its optimiser steps."""
    for row, colour in zip(comparison["rows"], COLOURS, strict=False):
        for run in comparison["runs"]:
            if run["arm"] == row["arm"]:
                steps, values = zip(*run["curve"], strict=True)
                label = row["arm"] if run["seed"] == 0 else None
                axes.plot(steps, values, "o-", color=colour, markersize=3, label=label)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("validation force error (meV/A)")
    axes.set_yscale("log")
    axes.legend(frameon=False)


def main(folder: Path, target: Path) -> None:
    """Read the records in the demo's output folder and write one picture."""
    lines = (folder / "run" / "records.jsonl").read_text(encoding="utf-8").splitlines()
    comparison = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    certificate = json.loads((folder / "clean" / "certificate.json").read_text(encoding="utf-8"))
    optimisers = json.loads((folder / "optimisers.json").read_text(encoding="utf-8"))
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    draw_training(axes[0], [json.loads(line) for line in lines], comparison["metric"])
    draw_equivariance(axes[1], certificate["equivariance"])
    draw_comparison(axes[2], comparison)
    draw_curves(axes[3], optimisers)
    titles = ("particles: fine-tuning (arm drop)", "equivariance", "arms compared", "ethanol: optimisers compared")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
