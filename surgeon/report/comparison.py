"""The page of a comparison: from the record that ``surgeon finetune --compare`` writes."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from surgeon.errors import CheckpointError
from surgeon.files.content import read_json
from surgeon.opening.evaluation import Judging
from surgeon.report.figures import Interval, Line, Panel, curves, intervals
from surgeon.report.page import NO_BREAK, Bad, Good, Page, Part, Rows

Number = float | None
"""JSON has null for a number that is not finite."""


class _Row(TypedDict):
    arm: str
    runs: int
    reference: str | None
    mean: Number
    spread: Number
    difference: Number
    half_width: Number
    learning_rate: float
    seconds: float
    certificate: str
    equivariance: str


class _Run(TypedDict):
    arm: str
    seed: int
    test: dict[str, Number]
    curve: list[tuple[int, Number]]


class _Sweep(TypedDict):
    best: dict[str, float]
    runs: NotRequired[list[dict[str, Any]]]


class _Comparison(TypedDict):
    complete: bool
    metric: str
    judging: Judging
    rows: list[_Row]
    sentences: list[str]
    runs: list[_Run]
    settings: dict[str, Any]
    sweep: _Sweep | None
    group: str
    sites: int
    versions: dict[str, str]
    machine: dict[str, Any]
    command: list[str]


def comparison_page(path: Path) -> Page:
    """Return the page of a comparison.

    Raises:
        CheckpointError: if the file holds something else.
    """
    data = _read(path)
    judging, metric = data["judging"], data["metric"]
    unfinished = [] if data["complete"] else ["It is not finished: these are the runs so far."]
    count, *sentences = data["sentences"]
    return Page(
        title=f"Comparison {path.stem}",
        lead=[*_verdict(data), *unfinished, *sentences] or [count],
        unfinished=not data["complete"],
        facts=[
            ("size", count),
            (
                "judged by",
                f"test {judging.with_unit(metric)}, {'smaller' if judging.direction == 'min' else 'larger'} is better",
            ),
            ("group", data["group"]),
            ("sites", data["sites"]),
            ("command", f"`{shlex.join(data['command'])}`"),
            ("machine", ", ".join(f"{name} {value}" for name, value in data["machine"].items() if value is not None)),
        ],
        parts=[
            Part(
                "Arms", ["Mean ± standard deviation over seeds; differences are paired by seed."], rows=_arm_rows(data)
            ),
            *_differences(data),
            _means(data),
            _curves(data),
            Part("Other metrics of the test split", rows=_other_rows(data)),
            Part("Learning rates that were tried", _told_of_sweep(data), rows=_sweep_rows(data)),
            Part("Settings that all share", rows=[["setting", "value"], *_settings(data)], folded=True),
        ],
    )


def _read(path: Path) -> _Comparison:
    import msgspec

    try:
        found = msgspec.convert(read_json(path), _Comparison)
    except msgspec.ValidationError as error:
        raise CheckpointError(
            f"expected what `surgeon finetune --compare` wrote in {str(path)!r}, got something else ({error}): name "
            "that file"
        ) from error
    if not found["rows"]:
        raise CheckpointError(f"expected finished runs in {str(path)!r}, got none: let the comparison go on first")
    return found


def _arm_rows(data: _Comparison) -> Rows:
    reference = data["rows"][0]["reference"]
    against = f"from {reference} (95{NO_BREAK}%)" if reference else "difference"
    head = ["arm", "learning rate", "runs", f"test {data['judging'].with_unit(data['metric'])}", against, ""]
    head += ["seconds", "equivariance error", "certificate"]
    rows = [
        [row["arm"], row["learning_rate"], row["runs"], _with_spread(row["mean"], row["spread"])]
        + (["–", ""] if row["arm"] == reference else [_difference(row), _WORDS[_outcome(data, row)]])
        + [f"{row['seconds']:.3g}", row["equivariance"], row["certificate"]]
        for row in data["rows"]
    ]
    return [head, *rows]


def _with_spread(mean: Number, spread: Number) -> str:
    """Return a mean and its standard deviation in a cell, with the digits that the command prints."""
    if mean is None:
        return "–"
    return f"{mean:.4g}" if spread is None else f"{mean:.4g} ± {spread:.2g}".replace(" ", NO_BREAK)


def _difference(row: _Row) -> str:
    difference, half = row["difference"], row["half_width"]
    if difference is None:
        return "–"
    return f"{difference:+.2g}" if half is None else f"{difference:+.2g} ± {half:.2g}".replace(" ", NO_BREAK)


_WORDS: Mapping[str, str] = {
    "better": Good("better"),
    "worse": Bad("worse"),
    "not told apart": "not told apart".replace(" ", NO_BREAK),
    "unknown": "unknown",
}


def _outcome(data: _Comparison, row: _Row) -> str:
    """Return in a word whether an arm can be told from the one that it is compared with."""
    difference, half = row["difference"], row["half_width"]
    if difference is None or not half:
        return "unknown"
    if abs(difference) <= half:
        return "not told apart"
    return "better" if (difference < 0) == (data["judging"].direction == "min") else "worse"


def _verdict(data: _Comparison) -> Iterator[str]:
    """Say in one sentence which arms are better than the one that they are compared with, and which are not."""
    reference = data["rows"][0]["reference"]
    others = [row for row in data["rows"] if row["arm"] != reference]
    if reference is None or not others:
        return
    found = {word: [row["arm"] for row in others if _outcome(data, row) == word] for word in _WORDS}
    said = [f"{', '.join(found[word])} {word} than {reference}" for word in ("better", "worse") if found[word]]
    if found["not told apart"]:
        said.append(f"{', '.join(found['not told apart'])} not told apart from {reference}")
    if found["unknown"]:
        said.append(f"{', '.join(found['unknown'])} not judged against {reference}, for want of seeds")
    yield f"Test `{data['metric']}`: {'; '.join(said)}."


def _paired(data: _Comparison, arm: str, reference: str) -> list[float]:
    """Return the differences of an arm seed by seed."""
    values = {(run["arm"], run["seed"]): run["test"].get(data["metric"]) for run in data["runs"]}
    pairs = ((value, values.get((reference, seed))) for (name, seed), value in values.items() if name == arm)
    return [value - other for value, other in pairs if value is not None and other is not None]


def _differences(data: _Comparison) -> Iterator[Part]:
    reference = data["rows"][0]["reference"]
    rows = [row for row in data["rows"] if row["arm"] != reference and row["difference"] is not None]
    if reference is None or not rows:
        return
    found = [
        Interval(row["arm"], row["difference"], row["half_width"], _paired(data, row["arm"], reference), number)
        for number, row in enumerate(data["rows"])
        if row in rows and row["difference"] is not None
    ]
    title, name = f"Differences from {reference}", data["judging"].with_unit(data["metric"])
    words = (
        f"Test {name} of every arm minus {reference}, paired by seed: the mean with its 95 % interval (Student's t), "
        "and every seed as a grey dot. An arm whose interval reaches over 0 cannot be told from the other with these "
        "seeds."
    )
    names = ("difference", "half width of the 95 % interval")
    side = "left" if data["judging"].direction == "min" else "right"
    yield Part(title, drawing=intervals(title, f"difference of {name}; {side} is better", found, names, words, True))


def _means(data: _Comparison) -> Part:
    found = [
        Interval(row["arm"], row["mean"], row["spread"], _finite(_values(data, row["arm"], data["metric"])), number)
        for number, row in enumerate(data["rows"])
        if row["mean"] is not None
    ]
    title, name = "Results by arm", data["judging"].with_unit(data["metric"])
    if not found:
        return Part(title, ["No arm has a finite result."])
    words = f"Test {name} of every arm: mean and standard deviation over the seeds, and every seed as a grey dot."
    return Part(title, drawing=intervals(title, f"test {name}", found, ("mean", "standard deviation"), words))


def _values(data: _Comparison, arm: str, name: str) -> list[Number]:
    return [run["test"].get(name) for run in data["runs"] if run["arm"] == arm]


def _finite(values: Sequence[Number]) -> list[float]:
    return [value for value in values if value is not None]


def _curves(data: _Comparison) -> Part:
    title, lines = "Validation over the training", []
    for number, row in enumerate(data["rows"]):
        own = [run for run in data["runs"] if run["arm"] == row["arm"] and run["curve"]]
        if len(own) > 1:
            lines += [Line(f"{row['arm']}, seed {run['seed']}", run["curve"], faint=True, series=number) for run in own]
        if own:
            lines.append(Line(row["arm"], _mean_curve([dict(run["curve"]) for run in own]), series=number))
    if not lines:
        return Part(title, ["No curve was recorded."])
    name = data["judging"].with_unit(data["metric"])
    words = f"Clean validation {name} of every arm over the optimiser steps: the mean over the seeds; thin lines: each."
    return Part(title, drawing=curves(title, "optimiser step", [Panel(name, lines)], words))


def _mean_curve(found: Sequence[Mapping[int, Number]]) -> list[tuple[float, Number]]:
    """Return the mean at the steps at which every seed was evaluated."""
    common = sorted(set.intersection(*(set(curve) for curve in found)))
    return [(step, _mean([curve[step] for curve in found])) for step in common]


def _other_rows(data: _Comparison) -> Rows:
    """Return mean and spread of the further metrics, as the command prints them."""
    names = [name for name in data["runs"][0]["test"] if name != data["metric"]]
    rows = []
    for arm in (row["arm"] for row in data["rows"]):
        cells = [arm]
        for name in names:
            values = _values(data, arm, name)
            spread = statistics.stdev(_finite(values)) if len(_finite(values)) > 1 else None
            cells.append(_with_spread(_mean(values), spread))
        rows.append(cells)
    return [["arm", *map(data["judging"].with_unit, names)], *rows] if names else []


def _told_of_sweep(data: _Comparison) -> list[str]:
    if data["sweep"] is None:
        return []
    best = ", ".join(f"{arm} {rate:g}" for arm, rate in data["sweep"]["best"].items())
    name = data["judging"].with_unit(data["metric"])
    return [f"Chosen by the validation {name} at every rate: {best}."]


def _sweep_rows(data: _Comparison) -> Rows:
    """Return validation means by arm and learning rate; the best of each arm says so."""
    sweep = data["sweep"] or {"best": {}}
    means = {(run["arm"], run["learning_rate"]): _mean(run["validation"]) for run in sweep.get("runs", [])}
    rates = sorted({rate for _, rate in means})
    rows = [
        [arm, *(_swept(means.get((arm, rate)), sweep["best"].get(arm) == rate) for rate in rates)]
        for arm in dict.fromkeys(arm for arm, _ in means)
    ]
    return [["arm", *(f"{rate:.3g}" for rate in rates)], *rows] if rows else []


def _mean(values: Sequence[Number]) -> Number:
    return statistics.fmean(_finite(values)) if values and None not in values else None


def _swept(mean: Number, best: bool) -> str:
    told = "–" if mean is None else f"{mean:.4g}"
    return Good(f"{told} best") if best else told


def _settings(data: _Comparison) -> Iterator[list[str]]:
    for name, value in data["settings"].items():
        yield [name.replace("_", " "), "–" if value is None else str(value)]
    for name, version in data["versions"].items():
        yield [f"version of {name}", version]
