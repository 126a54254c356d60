"""The page of one training: from what its run folder records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePath
from typing import Any

from surgeon.errors import CheckpointError
from surgeon.files.content import read_json
from surgeon.files.relaxed import CONFIG_FILE, RelaxedConfig
from surgeon.files.seals import check_seal, finish_update
from surgeon.opening.evaluation import Judging
from surgeon.recording.labels import arrow
from surgeon.report.figures import Line, Panel, curves
from surgeon.report.graph import graph_part
from surgeon.report.page import NO_BREAK, Bad, Good, Page, Part, Rows
from surgeon.report.pairs import pairs_part
from surgeon.report.use import share_part, spectrum_part, use_part
from surgeon.support.plain import parse_json
from surgeon.training.arms import ARMS
from surgeon.training.figures import FIGURES_FILE, read_figures
from surgeon.training.runs import BRANCHES_FILE, RECORDS_FILE, STEPS_FILE, RunRecord, read_record

THETA, LOSS = "θ, loss and penalty over the training", "Loss over the training"
VALIDATION = "Validation over the training"


def run_page(folder: Path) -> Page:
    """Return the page of a run folder; neither its weights nor its task are opened.

    Raises:
        CheckpointError: if a record is missing, damaged, or not as it was written.
    """
    finish_update(folder)
    there = [name for name in (BRANCHES_FILE, FIGURES_FILE) if (folder / name).is_file()]
    check_seal(folder, (CONFIG_FILE, RECORDS_FILE, STEPS_FILE, *there))
    figures = read_figures(folder)
    config = RelaxedConfig.from_data(read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    record = read_record(folder)
    history, steps = (read_lines(folder / name) for name in (RECORDS_FILE, STEPS_FILE))
    contents = read_lines(folder / BRANCHES_FILE) if BRANCHES_FILE in there else []
    evaluated = [entry for entry in history if entry["validation"]]
    chosen = [entry for entry in evaluated if entry["epoch"] == record.state.best_epoch]
    before, after = (each[0]["validation"] if each else {} for each in (evaluated, chosen))
    metrics = metric_rows(record.judging, before, after)
    written = datetime.fromtimestamp((folder / RECORDS_FILE).stat().st_mtime, UTC)
    branched = bool(record.branches)
    return Page(
        title=f"Run {folder.resolve().name}",
        lead=[*_lead(record, before, after), *worse_in_words(metrics)],
        unfinished=not record.state.ended(record.settings.epochs) or not _all_probed(record),
        facts=[*_facts(config, record), ("last written", f"{written:%Y-%m-%d %H:%M} UTC (date of {RECORDS_FILE})")],
        parts=[
            Part("Metrics before and after", [_ABOUT_METRICS], rows=metrics),
            _probes(record),
            _theta(steps or [entry for entry in history if entry["loss"] is not None], branched),
            _validation(evaluated, record.judging, branched),
            pairs_part(figures.pairs),
            use_part(evaluated, [site.key for site in config.plan.sites]),
            share_part({each["site"]: each for each in contents}),
            spectrum_part(contents),
            graph_part(figures.flow, config.plan, evaluated),
            Part("Sites", _told_of_sites(config), rows=_site_rows(config, record)),
            Part("Settings", rows=[["setting", "value"], *_settings(config, record)], folded=True),
            Part("Epochs", rows=_epoch_rows(history), folded=True),
        ],
    )


_ABOUT_METRICS = (
    "On the validation split, without branches, as stripping leaves the network. The best epoch was chosen on this "
    "split: `surgeon strip` measures on the test split."
)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object from each line of a file.

    Raises:
        CheckpointError: if a line is none.
    """
    try:
        return [dict(parse_json(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"could not read {str(path)!r} as one JSON object per line ({error})") from error


def metric_rows(
    judging: Judging, before: Mapping[str, float | None], after: Mapping[str, float | None], first: str = "before"
) -> Rows:
    """Return a table of metrics before and after, the one that decides first; what got worse is marked."""
    names = sorted(after, key=lambda name: name != judging.metric)
    rows = [metric_row(judging, name, before.get(name), after.get(name)) for name in names]
    return [["metric", first, "after", "change", ""], *rows]


def metric_row(judging: Judging, name: str, before: float | None, after: float | None) -> list[Any]:
    """Return one row: name with unit, before, after, change, and in a word what came of it."""
    change, word = judging.change(name, before, after)
    marked = Bad(word) if word == "worse" else Good(word) if word == "better" else word
    return [judging.with_unit(name), before, after, change.replace(" ", NO_BREAK), marked]


def rows_of_probes(judging: Judging, probes: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> Rows:
    """Return a table of the metrics of "original" and "stripped" on other data, by the names of the probes."""
    rows = [
        [name, *row]
        for name, metrics in probes.items()
        for row in metric_rows(judging, metrics.get("original", {}), metrics.get("stripped", {}))[1:]
    ]
    return [["data", "metric", "original", "after", "change", ""], *rows]


def _all_probed(record: RunRecord) -> bool:
    return all("stripped" in metrics for metrics in record.state.probes.values())


def _probes(record: RunRecord) -> Part:
    probes, said = record.state.probes, "Of the best epoch, on the test split of each, without branches."
    if not _all_probed(record):
        said = f"{', '.join(probes)}: what came of it is measured when the training has ended."
    return Part("On other data", [said] if probes else [], rows=rows_of_probes(record.judging, probes))


def worse_in_words(rows: Rows) -> Iterator[str]:
    """Say of which rows of metrics the last cell is marked, if any is."""
    worse = [f"`{row[0]}`" for row in rows if isinstance(row[-1], Bad)]
    if worse:
        yield f"Worse than before: {', '.join(worse)}."


def primary_in_words(judging: Judging, before: float | None, after: float | None, when: str) -> str:
    """Return in a sentence what became of the metric that decides."""
    unit, (change, word) = judging.units.get(judging.metric, ""), judging.change(judging.metric, before, after)
    values = ["not finite" if value is None else f"{value:.6g} {unit}".rstrip() for value in (before, after)]
    told = ", ".join(part for part in (change, word) if part.strip("–"))
    return f"`{judging.metric}`: {values[0]} before, {values[1]} {when}{f' ({told})' if told else ''}."


def _lead(record: RunRecord, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    state, epochs, judging = record.state, record.settings.epochs, record.judging
    begun = state.best_epoch == 0 and not state.ended(epochs)
    if begun:
        yield f"No epoch so far was better than the weights that the training began with (`{judging.metric}`)."
    else:
        values = before.get(judging.metric), after.get(judging.metric)
        yield f"Validation {primary_in_words(judging, *values, f'at the best epoch {state.best_epoch}')}"
    if state.best_epoch == 0 and not begun:
        yield "Nothing was gained: no epoch was better than the weights that the training began with."
    if state.stopped:
        yield f"It stopped early: {state.stopped}."
    elif not state.ended(epochs):
        yield f"It is not finished: epoch {state.epoch} of {epochs}."


def _facts(config: RelaxedConfig, record: RunRecord) -> Rows:
    settings, state, base = record.settings, record.state, config.base
    arm = ARMS[record.arm].summary if record.arm in ARMS else ""
    place = f"{base['repo']}: {base['file']}" if base["repo"] else PurePath(base["file"].replace("\\", "/")).name
    return [
        ("arm", f"{record.arm}: {arm}" if arm else record.arm),
        ("optimiser", f"{settings.chosen_optimizer}, learning rate {settings.chosen_rate:g}"),
        ("best epoch", f"{state.best_epoch} of {settings.epochs}"),
        ("optimiser steps", f"{state.step} in {state.seconds:.1f} s, evaluation included"),
        ("group", config.plan.group),
        ("branches", f"{len(config.plan.sites)}, stripped by {config.strip_mode}" if config.plan.sites else "none"),
        ("started from", f"`{place}`, sha256 `{base['sha256']}`"),
    ]


def _theta(steps: Sequence[Mapping[str, Any]], branched: bool) -> Part:
    def line(label: str, name: str) -> Line:
        return Line(label, [(entry["step"], entry[name]) for entry in steps])

    title = THETA if branched else LOSS
    if len(steps) < 2:
        return Part(title, [f"Steps that were recorded: {len(steps)}, too few for a figure."])
    panels = [Panel("loss", [line("", "loss")])]
    words = "The task loss"
    if branched:
        thetas = [Line("", [(entry["step"], entry["theta"][0]) for entry in steps])]
        words = "θ of the first branch"
        if any(entry["theta"][0] != entry["theta"][1] for entry in steps):
            foldable = [(entry["step"], entry["theta"][1]) for entry in steps]
            thetas = [Line("what breaks the symmetry", thetas[0].points), Line("what can be folded", foldable)]
            words += ", of the part of W that breaks the symmetry and of that which can be folded"
        panels = [Panel("θ", thetas), *panels, Panel("penalty", [line("", "penalty")])]
        words += ", the task loss and the penalty"
    words += f" at {len(steps)} of the optimiser steps, from {steps[0]['step']} to {steps[-1]['step']}."
    return Part(title, drawing=curves(title, "optimiser step", panels, words))


def _validation(evaluated: Sequence[Mapping[str, Any]], judging: Judging, branched: bool) -> Part:
    if len(evaluated) < 2:
        return Part(VALIDATION, ["There was no evaluation after the first."])
    names = sorted(evaluated[0]["validation"], key=lambda name: name != judging.metric)

    def line(label: str, kind: str, name: str) -> Line:
        return Line(label, [(entry["epoch"], (entry[kind] or {}).get(name)) for entry in evaluated])

    panels = []
    for name in names:
        lines = [line("clean", "validation", name)]
        if branched:
            lines.append(line("relaxed", "validation_relaxed", name))
        panels.append(Panel(judging.with_unit(name), lines, (evaluated[0]["validation"][name], "original")))
    words = f"{', '.join(names)} on the validation split over the epochs, without branches (clean)"
    words += ", with them at the θ of then (relaxed)" if branched else ""
    words += " and, as a dotted line, of the model before training (original)."
    return Part(VALIDATION, drawing=curves(VALIDATION, "epoch", panels, words))


def _told_of_sites(config: RelaxedConfig) -> list[str]:
    plan = config.plan
    added = sum(site.extra_parameters for site in plan.sites)
    if not plan.sites:
        return ["There were no branches."]
    return [f"{len(plan.sites)} branches under {plan.group} added {added:,} parameters in training: {plan.forms}."]


def _theta_in_words(values: Sequence[float]) -> str:
    """Return one number where both parts of W have the same."""
    return ", ".join(f"{value:g}" for value in dict.fromkeys(values)) or "–"


def _site_rows(config: RelaxedConfig, record: RunRecord) -> Rows:
    head = ["site", "kind", "from → to", "W", "parameters", "θ at the best epoch"]
    thetas = record.state.best_theta
    rows = [
        [
            f"`{site.key}`",
            site.kind,
            arrow(site, "→"),
            f"{NO_BREAK}×{NO_BREAK}".join(map(str, site.shape)),
            site.extra_parameters,
            _theta_in_words(thetas.get(site.key, ())),
        ]
        for site in config.plan.sites
    ]
    return [head, *rows]


def _settings(config: RelaxedConfig, record: RunRecord) -> Iterator[list[str]]:
    for name, value in record.settings.to_data().items():
        if name != "schedule":
            yield [name.replace("_", " "), "–" if value is None else str(value)]
    for name, value in config.schedule.to_data().items():
        yield [f"schedule of θ: {name}", str(value)]
    yield ["processes", str(record.processes)]
    if config.adjustments is not None:
        yield ["changed before training", config.adjustments.sentence]
    for name, version in (config.graph["versions"] if config.graph else {}).items():
        yield [f"version of {name}", version]


def _epoch_rows(history: Sequence[Mapping[str, Any]]) -> Rows:
    names = list(next((entry["validation"] for entry in history if entry["validation"]), {}))
    rows = [
        [entry["epoch"], entry["step"], entry["theta"][0], entry["loss"], entry["penalty"]]
        + [(entry["validation"] or {}).get(name) for name in names]
        for entry in history
    ]
    return [["epoch", "step", "θ", "loss", "penalty", *(f"clean {name}" for name in names)], *rows]
