"""Table F: after how many steps, and in what time, an arm is as good on validation data as tuned AdamW at its end."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

from findings import Measure, tested
from lines import Lines
from tables import finalists, grid_of

from surgeon.training.outcomes import ArmRun

ENOUGH = 4
"""Evaluations during a training without which it cannot be told."""
HEADING = ["comparison", "arm", "reached", "steps", "of AdamW's steps", "of AdamW's time"]


def first_step(run: ArmRun, target: float, measure: Measure) -> float:
    """Return the step of the first evaluation that is as good as a target; infinity if none is."""
    return next((float(step) for step, value in run.curve if not measure.better(target, value)), math.inf)


def steps_to_target(
    mine: Mapping[int, ArmRun], reference: Mapping[int, ArmRun], measure: Measure
) -> list[tuple[float, float]]:
    """Return for every common seed the steps to the reference's last value: of an arm, and of the reference itself."""
    targets = {seed: run.curve[-1][1] for seed, run in reference.items()}
    pairs = [(mine[seed], reference[seed], targets[seed]) for seed in mine if seed in reference]
    return [(first_step(run, target, measure), first_step(other, target, measure)) for run, other, target in pairs]


def rows_of(title: str, lines: Lines, measure: Measure) -> list[list[str]]:
    """Return the rows of one comparison; none if its lines hold too few evaluations."""
    (adamw, rate, _), *others = finalists(lines, measure)
    reference, rows = tested(lines, adamw, rate, False), []
    if not reference or any(len(run.curve) <= ENOUGH for run in reference.values()):
        return []
    for arm, own_rate, how in others:
        pairs = steps_to_target(tested(lines, arm, own_rate, False), reference, measure)
        if not pairs:
            continue
        reached = sum(math.isfinite(mine) for mine, _ in pairs)
        steps, ratio = statistics.median(mine for mine, _ in pairs), statistics.median(a / b for a, b in pairs)
        known = arm in lines.step_seconds and adamw in lines.step_seconds
        time = ratio * lines.step_seconds[arm] / lines.step_seconds[adamw] if known else math.nan
        figures = [f"{steps:.0f}", f"{ratio:.2f}", f"{time:.2f}" if known else ""] if math.isfinite(ratio) else [""] * 3
        rows.append([title, f"{arm}{how}", f"{reached} of {len(pairs)}", *figures])
    return rows


def table(comparisons: Sequence[tuple[str, str, Lines, Measure]]) -> list[str]:
    """Return the table, and for how many comparisons it cannot be told.

    Args:
        comparisons: name of the table, title, runs with the full number of steps, and measure of each.
    """
    rows, without = [HEADING], Counter[str]()
    for name, title, lines, measure in comparisons:
        found = rows_of(title, lines, measure)
        rows += found
        without[name] += not found
    few = f"whose lines hold fewer than {ENOUGH} evaluations during a training, or no final runs"
    counts = {
        name: "1 comparison" if count == 1 else f"{count} comparisons" for name, count in without.items() if count
    }
    said = [f"Left out of {name}: {count}, {few}." for name, count in counts.items()]
    return [*(grid_of(rows) if len(rows) > 1 else []), "", *said]
