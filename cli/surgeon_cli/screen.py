"""What the commands show: tables of plans, certificates and comparisons."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.files.content import json_compatible
from surgeon.plan import EXACT_WHILE, Certificate
from surgeon.proof.certificate_words import flipped_words


def console() -> Console:
    """Return a console on standard output; wide when the output is not a terminal, so that logs do not wrap."""
    plain = Console(highlight=False, markup=False, emoji=False)  # names of modules and paths may hold [ ] and : :
    return plain if plain.is_terminal else Console(highlight=False, markup=False, emoji=False, width=120)


def say(text: str) -> None:
    """Print one line for the user, without markup."""
    console().print(text, soft_wrap=True)


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object; numbers that JSON does not have become null."""
    print(json.dumps(json_compatible(data), indent=2))


def show_certificate(certificate: Certificate) -> None:
    """Print the verdict, the checks, and what was measured."""
    out = console()
    table = Table(title="certificate", title_justify="left")
    table.add_column("check")
    table.add_column("holds")
    for name, holds in certificate.checks.items():
        table.add_row(name, "yes" if holds else Text("NO", style="bold red"))
    out.print(table)
    if certificate.equivariance:
        out.print(equivariance_table(certificate.equivariance))
    flipped = flipped_words(certificate.details).removeprefix(". ")
    if flipped:
        say(flipped)
    for model, metrics in certificate.metrics.items():
        say(f"{model}: " + ", ".join(f"{name} {value:.6g}" for name, value in metrics.items()))
    if certificate.sites:
        folded = sum(record.folded for record in certificate.sites)
        lost = sum(record.lost for record in certificate.sites)
        say(
            f"{len(certificate.sites)} branches stripped ({certificate.strip_mode}): sum of norms folded {folded:.3g}, "
            f"lost {lost:.3g}"
        )
        for note, count in Counter(record.note for record in certificate.sites).items():
            if EXACT_WHILE in note:
                say(f"{count} of them {note}")
    if certificate.projection_error is not None:
        say(f"projection error (relative change of the outputs by stripping): {certificate.projection_error:.1e}")
    theta = certificate.details.get("theta")
    if theta is not None:
        say(f"the relaxed model has theta {theta[0]:.2f} (foldable part {theta[1]:.2f}), that of its best epoch")
    for name, change in certificate.buffers_written.items():
        say(f"buffer {name} was written by training, largest change {change:.2e}")
    for difference in certificate.differences:
        say(f"difference: {difference}")


def equivariance_table(equivariance: Mapping[str, Mapping[str, Mapping[str, ErrorSummary]]]) -> Table:
    """Return equivariance errors, one row per model, dtype and component of the group."""
    table = Table(title="equivariance error |f(gx) - g f(x)| / |g f(x)|", title_justify="left")
    for heading in ("model", "dtype", "group component", "mean", "median", "max", "of element", "count"):
        table.add_column(heading)
    for model, dtypes in equivariance.items():
        for dtype, components in dtypes.items():
            for component, error in components.items():
                numbers = (f"{value:.1e}" for value in (error.mean, error.median, error.maximum))
                table.add_row(model, dtype, component, *numbers, error.worst, str(error.count))
    return table


def sweep_table(sweep: Mapping[str, Any]) -> Table:
    """Return the record of a learning-rate sweep: validation metric per arm and rate, the best marked."""
    seeds, grid = len(sweep["seeds"]), sweep["grid"]
    title = f"learning rates: validation {sweep['metric']}, same grid and budget, {seeds} seeds"
    table = Table(title=title, title_justify="left")
    for heading in ("arm", *(f"{rate:g}" for rate in grid)):
        table.add_column(heading, no_wrap=True)
    values = {(run["arm"], run["learning_rate"]): _mean(run["validation"]) for run in sweep["runs"]}
    for arm, best in sweep["best"].items():
        marks = ("*" if rate == best else "" for rate in grid)
        cells = (f"{values[arm, rate]:.4e}{mark}" for rate, mark in zip(grid, marks, strict=True))
        table.add_row(arm, *cells)
    return table


def other_metrics_table(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Return mean and spread of further test metrics, one column each."""
    table = Table(title="other test metrics (mean ± std)", title_justify="left")
    for heading in ("arm", *summaries):
        table.add_column(heading, no_wrap=True)
    for rows in zip(*summaries.values(), strict=True):
        table.add_row(rows[0]["arm"], *(_with_spread(row["mean"], row["spread"]) for row in rows))
    return table


def _with_spread(mean: float, spread: float) -> str:
    return f"{mean:.4e}" if math.isnan(spread) else f"{mean:.4e} ± {spread:.1e}"


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean; NaN if one is missing, as a diverged run is in a record."""
    return math.nan if None in values else sum(value for value in values if value is not None) / len(values)


def comparison_table(rows: Sequence[Mapping[str, Any]], metric: str, seeds: int) -> Table:
    """Return the table of a comparison: mean and spread over seeds, paired difference with its 95 % interval."""
    title = f"test {metric} over {seeds} seeds (mean ± std); difference to plain paired by seed (95 % interval)"
    table = Table(title=title, title_justify="left")
    for heading in ("arm", "lr", metric, "minus plain", "seconds", "equivariance error", "certificate"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        difference = "" if row["arm"] == "plain" or math.isnan(row["difference"]) else f"{row['difference']:+.1e}"
        if difference and not math.isnan(row["half_width"]):
            difference += f" ± {row['half_width']:.1e}"
        table.add_row(
            row["arm"],
            f"{row['learning_rate']:g}",
            _with_spread(row["mean"], row["spread"]),
            difference or "-",
            f"{row['seconds']:.1f}",
            row.get("equivariance", "-"),
            row.get("certificate", "-"),
        )
    return table
