"""One comparison as a table: every arm at its best rate beside tuned AdamW, at equal steps and at equal time."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from findings import Measure, against, chosen, plain_of, probability, tested, tuned_adamw, verdict
from lines import BESIDE, Lines, read_lines

from surgeon.training.outcomes import ArmRun
from surgeon.training.statistics import Estimate

Runs = Mapping[int, ArmRun]


def grid_of(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, its heading first."""
    return ["| " + " | ".join(cells) + " |" for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:])]


def groups(path: Path) -> list[list[Lines]]:
    """Return the comparisons in a file, those that differ by the number of epochs alone together, longest first."""
    contexts = {json.dumps(line["context"], sort_keys=True): line["context"] for line in read_lines(path)}
    found: dict[str, list[dict[str, Any]]] = {}
    for context in contexts.values():
        same = {**context, "settings": {**context["settings"], "epochs": None}}
        found.setdefault(json.dumps(same, sort_keys=True), []).append(context)
    longest_first = [sorted(each, key=lambda context: -context["settings"]["epochs"]) for each in found.values()]
    return [[Lines(path, context) for context in each] for each in longest_first]


def finalists(lines: Lines, measure: Measure) -> list[tuple[str, float, str]]:
    """Return arm, rate, and how to tell it from the same arm at its best rate; tuned AdamW first."""
    best = chosen(lines, measure)
    adamw = tuned_adamw(best, measure)
    found = [(arm, best[arm][0], "") for arm in [adamw, *(arm for arm in best if not arm.startswith("plain@adamw"))]]
    further = dict.fromkeys((p.arm, p.learning_rate) for p in lines if p.test and p.learning_rate != best[p.arm][0])
    return [*found, *((arm, rate, f" at {rate:g}") for arm, rate in further)]


def in_words(difference: Estimate, measure: Measure) -> str:
    """Return a difference with its interval, if it is known."""
    words = f"{difference.mean:+.1f}"
    return f"{words} ± {difference.half_width:.1f}" if len(difference.values) > 1 else words


def row(name: str, rate: float, own: Runs, reference: Runs, step: str, measure: Measure) -> list[str]:
    """Return a row of the table."""
    values, others = ([measure.factor * run.test[metric] for run in own.values()] for metric in measure.both)
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    difference = against(own, reference, measure) if own is not reference else None
    words = "" if difference is None else f"{in_words(difference, measure)} {measure.unit}"
    if difference is not None and len(difference.values) > 1:
        words += f", {probability(difference.values)}"
    figures = [f"{statistics.fmean(values):.1f}{spread}", words, f"{statistics.fmean(others):.1f}", step]
    return [name, f"{rate:g}", str(len(own)), *figures]


def tried(lines: Lines, measure: Measure) -> str:
    """Say how many combinations were tried on validation data, and what came out."""
    best, tries = chosen(lines, measure), [point for point in lines if not point.test]
    combinations = {(point.arm, point.learning_rate) for point in tries}
    counted = {arm: sum(name == arm for name, _ in combinations) for arm in best}
    seeds = max(Counter((point.arm, point.learning_rate) for point in tries).values())
    each = (
        f"{arm} {counted[arm]}, best {measure.factor * value:.1f} at {rate:g}" for arm, (rate, value) in best.items()
    )
    said = (
        f"{len(combinations)} combinations of learning rate and β₂ were tried on validation {measure.data}, each with"
    )
    return f"{said} {'one seed' if seeds == 1 else f'{seeds} seeds'}: {'; '.join(each)}."


def equal_time(lines: Lines, others: Sequence[Lines], measure: Measure) -> list[list[str]]:
    """Return the rows of the runs with fewer steps."""
    (adamw, rate, _), *_ = finalists(lines, measure)
    best, reference = chosen(lines, measure), tested(lines, adamw, rate, False)
    whole, rows = max(run.steps for run in lines.values() if isinstance(run, ArmRun)), []
    for fewer in others:
        for arm in dict.fromkeys(point.arm for point in fewer):
            own = tested(fewer, arm, best[arm][0], False)
            steps = next(iter(own.values())).steps
            share = steps * lines.step_seconds[arm] / (whole * lines.step_seconds[adamw])
            time = f"{100 * share:.0f} % of its time"
            rows.append(row(f"{arm}, {steps} steps", best[arm][0], own, reference, time, measure))
    return rows


def table(lines: Lines, others: Sequence[Lines], measure: Measure) -> list[str]:
    """Return the table of one comparison, what it shows in words, and how much was tried.

    Args:
        lines: the runs with the full number of steps.
        others: those with fewer, of equal time.
    """
    arms = finalists(lines, measure)
    costs = {arm: f"{1e3 * seconds:.0f} ms" for arm, seconds in lines.step_seconds.items()}
    rows: list[list[str]] = []
    for fresh in (False, True):
        reference = tested(lines, *arms[0][:2], fresh)
        for arm, rate, how in arms:
            own = reference if arm == arms[0][0] else tested(lines, arm, rate, fresh)
            if own:
                name = f"{arm}{how}{', fresh seeds' if fresh else ''}"
                rows.append(row(name, rate, own, reference, costs.get(arm, ""), measure))
    said = tried(lines, measure)
    if not rows:
        return [said, "", f"The runs on test {measure.data} are not finished."]
    heading = ["arm", "rate", "seeds", measure.words, "against tuned AdamW", measure.other_words, "a step"]
    verdicts, best = [], chosen(lines, measure)
    for arm, rate, how in arms[1:]:
        pairs = [(tested(lines, arm, rate, fresh), tested(lines, *arms[0][:2], fresh)) for fresh in (False, True)]
        first, again = (against(*pair, measure) for pair in pairs)
        if first is not None:
            verdicts.append(verdict(f"{arm}{how}", first, again, measure))
        if (plain := plain_of(arm)) not in (arm, arms[0][0]):
            pair = (tested(lines, arm, rate, False), tested(lines, plain, best[plain][0], False))
            beside = against(*pair, measure)
            if beside is not None:
                verdicts.append(f"Beside {plain}, {arm} is at {in_words(beside, measure)} {measure.unit}.")
    grid = grid_of([heading, *rows, *equal_time(lines, others, measure)])
    rest = "Not finished: the same command goes on with the seeds that are missing here, and with runs of equal time."
    return [*grid, "", " ".join(verdicts), "", said, *([] if lines.step_seconds else ["", rest])]


def networks_table(first: Lines, others: Sequence[Lines], measure: Measure) -> list[str]:
    """Return the table of a comparison's network and of others, each trained by its tuned AdamW."""
    heading = ["network", "rate", "seeds", measure.words, "against the first", measure.other_words, "trained weights"]
    weights = others[0].context[BESIDE]["weights"][1]
    named = [("as above", weights, first)]
    named += [(each.context[BESIDE]["network"], each.context[BESIDE]["weights"][0], each) for each in others]
    rows, reference = [heading], None
    for name, weights, lines in named:
        (arm, rate, _), *_ = finalists(lines, measure)
        own = tested(lines, arm, rate, False)
        reference = reference or own
        if own:
            rows.append(row(f"{name}, {arm}", rate, own, reference, f"{weights:,}", measure))
    return grid_of(rows)
