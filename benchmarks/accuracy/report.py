"""Write the tables of ``docs/accuracy.md`` and the one of ``README.md`` from the lines of finished runs, or check them.

python benchmarks/accuracy/report.py
python benchmarks/accuracy/report.py --check
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lines import RESULTS, Lines, read_lines

from surgeon.training.outcomes import ArmRun, Outcome, Point
from surgeon.training.statistics import Estimate
from surgeon_adapters.mace.task import CLIP, RATE_OF_SMALL
from surgeon_adapters.sevennet.task import RATE

PAGES = tuple(Path(__file__).parents[2] / name for name in ("docs/accuracy.md", "README.md"))
MARKS = (
    ("<!-- table A: from the lines, by benchmarks/accuracy/report.py -->", "<!-- end of table A -->"),
    ("<!-- table A in short: from the lines, by benchmarks/accuracy/report.py -->", "<!-- end of table A in short -->"),
)
METRIC, OTHER = "force_mae", "energy_mae"
FRESH = 6
"""The first seed of a confirmation."""
SOAP, MUON = "plain@soap", "plain@muon"
NAMES = {"mace": "small MACE", "sevennet": "7net-0"}
DEFAULTS = {"mace": (RATE_OF_SMALL, CLIP), "sevennet": (RATE, None)}
"""Learning rate and largest norm of gradients that ``surgeon finetune`` takes by itself."""
TITLES = {"mace": "MACE, 3,808 weights, trained on two other molecules", "sevennet": "7net-0, as published"}


def chosen(runs: Mapping[Point, Outcome]) -> dict[str, tuple[float, float]]:
    """Return for every arm its best learning rate on validation frames, and the error there."""
    best: dict[str, tuple[float, float]] = {}
    for point, run in runs.items():
        if point.test or not isinstance(run, ArmRun):
            continue
        value = run.validation[METRIC]
        if math.isfinite(value) and value < best.get(point.arm, (0.0, math.inf))[1]:
            best[point.arm] = point.learning_rate, value
    return best


def tuned_adamw(best: Mapping[str, tuple[float, float]]) -> str:
    """Return the arm with the value of beta2 that is best on validation frames."""
    return min((arm for arm in best if "@adamw" in arm), key=lambda arm: best[arm][1])


def tested(runs: Mapping[Point, Outcome], arm: str, rate: float, fresh: bool) -> dict[int, ArmRun]:
    """Return the final runs of an arm at a rate by seed: those of the confirmation, or the others."""
    mine = {point: run for point, run in runs.items() if (point.arm, point.learning_rate) == (arm, rate)}
    found = {point.seed: run for point, run in mine.items() if point.test and (point.seed >= FRESH) == fresh}
    return {seed: run for seed, run in sorted(found.items()) if isinstance(run, ArmRun)}


def against(mine: Mapping[int, ArmRun], theirs: Mapping[int, ArmRun]) -> Estimate | None:
    """Estimate the difference of the errors in percent, paired by seed; None without a common seed."""
    both = [seed for seed in mine if seed in theirs]
    return Estimate.of([100 * (mine[s].test[METRIC] / theirs[s].test[METRIC] - 1) for s in both]) if both else None


def probability(values: Sequence[float]) -> str:
    """Return p of Student's t test of no difference, two-sided."""
    from scipy.stats import ttest_1samp

    p = float(ttest_1samp(values, 0.0).pvalue)
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def row(name: str, rate: float, own: Mapping[int, ArmRun], adamw: Mapping[int, ArmRun], step: str) -> list[str]:
    """Return a row of the table."""
    forces, energies = ([run.test[metric] for run in own.values()] for metric in (METRIC, OTHER))
    spread = f" ± {statistics.stdev(forces):.1f}" if len(forces) > 1 else ""
    difference = against(own, adamw) if own is not adamw else None
    words = "" if difference is None else f"{difference.mean:+.1f} %"
    if difference is not None and len(difference.values) > 1:
        words = f"{difference.mean:+.1f} ± {difference.half_width:.1f} %, {probability(difference.values)}"
    figures = [f"{statistics.fmean(forces):.1f}{spread}", words, f"{statistics.fmean(energies):.1f}", step]
    return [name, f"{rate:g}", str(len(own)), *figures]


def verdict(arm: str, first: Estimate | None, fresh: Estimate | None) -> str:
    """Say in words what an arm shows against tuned AdamW; a gain is claimed only if fresh seeds show it again."""
    if first is None or not (first.high < 0 or first.low > 0):
        return f"{arm} cannot be told from tuned AdamW."
    if first.low > 0:
        return f"{arm} is worse than tuned AdamW."
    if fresh is None:
        return f"{arm} is better with the first seeds; without fresh ones no gain is claimed."
    if fresh.high < 0:
        return f"{arm} is better with the first seeds, and fresh ones confirm it."
    return f"{arm} is better with the first seeds, which fresh ones do not confirm: no gain is claimed."


def table(lines: Lines, others: Sequence[Lines]) -> list[str]:
    """Return the table of one model and molecule.

    Args:
        lines: the runs with the full number of steps.
        others: those with fewer, of equal time.
    """
    best = chosen(lines)
    tries = [point for point in lines if not point.test]
    counted = {arm: sum(point.arm == arm for point in tries) for arm in best}
    said = f"{len(tries)} combinations of learning rate and β₂ were tried on validation frames, each with one seed: "
    said += "; ".join(f"{arm} {counted[arm]}, best {value:.1f} at {rate:g}" for arm, (rate, value) in best.items())
    adamw = tuned_adamw(best)
    costs = {arm: f"{1e3 * seconds:.0f} ms" for arm, seconds in lines.step_seconds.items()}
    finalists = [(arm, best[arm][0], "") for arm in [adamw, *(arm for arm in best if "@adamw" not in arm)]]
    further = dict.fromkeys((p.arm, p.learning_rate) for p in lines if p.test and p.learning_rate != best[p.arm][0])
    finalists += [(arm, rate, f" at {rate:g}") for arm, rate in further]
    rows: list[list[str]] = []
    for fresh in (False, True):
        reference = tested(lines, adamw, best[adamw][0], fresh)
        for arm, rate, how in finalists:
            own = reference if arm == adamw else tested(lines, arm, rate, fresh)
            if own:
                name = f"{arm}{how}{', fresh seeds' if fresh else ''}"
                rows.append(row(name, rate, own, reference, costs.get(arm, "")))
    whole = max(run.steps for run in lines.values() if isinstance(run, ArmRun))
    reference, fresh_reference = (tested(lines, adamw, best[adamw][0], fresh) for fresh in (False, True))
    for fewer in others:
        for arm in dict.fromkeys(point.arm for point in fewer):
            own = tested(fewer, arm, best[arm][0], False)
            steps = next(iter(own.values())).steps
            share = steps * lines.step_seconds[arm] / (whole * lines.step_seconds[adamw])
            name, time = f"{arm}, {steps} steps", f"{100 * share:.0f} % of its time"
            rows.append(row(name, best[arm][0], own, reference, time))
    if not rows:
        return [f"{said}.", "", "The runs on test frames are not finished."]
    heading = ["arm", "rate", "seeds", "forces, meV/Å", "against tuned AdamW", "energies, meV/atom", "a step"]
    grid = [heading, ["---"] * len(heading), *rows]
    verdicts = [
        verdict(
            f"{arm}{how}",
            against(tested(lines, arm, rate, False), reference),
            against(tested(lines, arm, rate, True), fresh_reference),
        )
        for arm, rate, how in finalists
        if arm != adamw
    ]
    return [*("| " + " | ".join(cells) + " |" for cells in grid), "", " ".join(verdicts), "", f"{said}."]


def groups(path: Path) -> list[list[Lines]]:
    """Return the comparisons in a file, those that differ by the number of epochs alone together, longest first."""
    contexts = {json.dumps(line["context"], sort_keys=True): line["context"] for line in read_lines(path)}
    found: dict[str, list[dict[str, Any]]] = {}
    for context in contexts.values():
        same = {**context, "settings": {**context["settings"], "epochs": None}}
        found.setdefault(json.dumps(same, sort_keys=True), []).append(context)
    longest_first = [sorted(each, key=lambda context: -context["settings"]["epochs"]) for each in found.values()]
    return [[Lines(path, context) for context in each] for each in longest_first]


def in_short(results: Path = RESULTS) -> str:
    """Return a row for each model and molecule, clipped as its task prefers: the longest runs that are there."""
    heading = [
        "model, 100 frames of",
        "steps",
        "AdamW, tuned: meV/Å",
        "SOAP, tuned",
        "with fresh seeds",
        "`surgeon finetune` as it is",
        "Muon, tuned",
    ]
    rows: dict[str, list[str]] = {}
    for path in sorted(results.glob("table_a.*.jsonl")):
        for lines, *_ in groups(path):
            best = chosen(lines)
            adamw = tuned_adamw(best)
            reference = tested(lines, adamw, best[adamw][0], False)
            if not reference:
                continue
            steps = next(iter(reference.values())).steps
            default, clip = DEFAULTS[lines.context["library"]]
            name = f"{NAMES[lines.context['library']]}, {lines.context['molecule']}"
            if lines.context["settings"].get("clip") != clip or steps < int(rows.get(name, ["", "0"])[1]):
                continue
            rates = [(SOAP, best[SOAP][0]), (SOAP, default), (MUON, best[MUON][0])]
            cells = [difference(tested(lines, arm, rate, False), reference) for arm, rate in rates]
            again = (tested(lines, arm, best[arm][0], True) for arm in (SOAP, adamw))
            cells.insert(1, difference(*again))
            error = statistics.fmean(run.test[METRIC] for run in reference.values())
            rows[name] = [name, str(steps), f"{error:.1f}", *cells]
    grid = [heading, ["---"] * len(heading), *(rows[name] for name in sorted(rows))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in grid)


def difference(mine: Mapping[int, ArmRun], reference: Mapping[int, ArmRun]) -> str:
    """Return the difference from tuned AdamW, in bold where it is told from 0; nothing where it was not run."""
    found = against(mine, reference)
    if found is None or len(found.values) == 1:
        return ""
    words = f"{found.mean:+.1f} ± {found.half_width:.1f} %"
    return f"**{words}**" if found.high < 0 or found.low > 0 else words


def text(results: Path = RESULTS) -> str:
    """Return everything between the markers of the page."""
    parts = []
    for path in sorted(results.glob("table_a.*.jsonl")):
        for first, *others in groups(path):
            context, everything = first.context, read_lines(path)
            steps = max(run.steps for run in first.values() if isinstance(run, ArmRun))
            mine = [line for line in everything if line["context"] == context]
            made = ", ".join(dict.fromkeys(f"`{line['commit']}`" for line in mine))
            machine, torch = mine[-1]["machine"], mine[-1]["versions"]["torch"]
            frames = "50 validation and 1,000 test frames"
            clip = context["settings"].get("clip")
            clipped = f"; gradients clipped at {clip:g}" if clip else ""
            parts += [
                f"### {TITLES[context['library']]} → rMD17 {context['molecule']}, {steps} steps",
                "",
                f"100 training frames in batches of {context['batch']}, {frames}{clipped}.",
                "",
                *table(first, others),
                "",
                f"Commit {made}; {machine['cores']} cores, {machine['threads']} thread; torch {torch}.",
                "",
            ]
    return "\n".join(parts).rstrip()


def written_anew(page: str, results: Path = RESULTS) -> str:
    """Return a page with what the lines give between the marks that it has."""
    for (begin, end), make in zip(MARKS, (text, in_short), strict=True):
        before, mark, rest = page.partition(begin)
        if mark:
            page = f"{before}{begin}\n\n{make(results)}\n\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page says something else")
    pages = {path: path.read_text(encoding="utf-8") for path in PAGES}
    wanted = {path: written_anew(page) for path, page in pages.items()}
    if parser.parse_args().check:
        return int(pages != wanted)
    for path, page in wanted.items():
        path.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
