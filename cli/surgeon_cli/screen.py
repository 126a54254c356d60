"""What the commands show: tables of plans, certificates and comparisons."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from surgeon.errors import printable
from surgeon.files.content import json_compatible

if TYPE_CHECKING:
    from surgeon.plan import Certificate

ERROR_TITLE = "equivariance error |f(gx) - g f(x)| / |g f(x)|"
SHORT = 13
"""Columns as wide as this, such as percentages, are not broken for the sake of longer ones."""

BAD = {"NO": "NO", "**NO**": "NO", "worse": "worse"}


class _Screen(Console):
    """A console to which names and values from files do no harm; nor are [ ] and : : in them markup."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, width=width)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Take a string, of a table's cell too."""
        return super().render_str(printable(text), **settings)


def console() -> Console:
    """Return a console on standard output; without a terminal as wide as COLUMNS says, or wide enough for logs."""
    plain = _Screen()
    return plain if plain.is_terminal or os.environ.get("COLUMNS", "").isdigit() else _Screen(width=120)


def say(text: str) -> None:
    """Print a sentence, without markup; a terminal's lines end between words, but not inside a command."""
    screen = console()
    sentence, mark, command = text.partition("; next: ") if screen.is_terminal else (text, "", "")
    with screen.capture() as told:
        screen.print(sentence, soft_wrap=not screen.is_terminal)
        if mark:
            screen.print(mark.removeprefix("; ") + command, soft_wrap=True)
    print(told.get(), end="")  # above a live bar, which would wipe out what a console writes by itself


def print_json(data: Mapping[str, Any]) -> None:
    """Print one JSON object; numbers that JSON does not have become null."""
    print(json.dumps(json_compatible(data), indent=2))


def show_certificate(certificate: Certificate, verbose: bool) -> None:
    """Print the verdict and what became of the metrics; the rest if it is wanted, or something does not hold."""
    from surgeon.opening.evaluation import Judging
    from surgeon.proof.words import OTHER_DATA, error_words, grade_words, sections

    data = json_compatible(certificate.to_data())
    parts, verbose = sections(data), verbose or not certificate.passed
    say(grade_words(data))
    judging = Judging.of_record(data["details"].get("judging"))
    split = (data["details"].get("measurement") or {}).get("split")
    models = (data["metrics"].get(model, {}) for model in ("original", "stripped"))
    print_table(f"metrics on the {split} split", judging.table(*models))
    print_table("on other data", parts[OTHER_DATA].table)
    failed = [name for name, holds in certificate.checks.items() if not holds]
    count = len(certificate.checks)
    say(f"checks: {count - len(failed)} of {count} hold" + (f", not: {', '.join(failed)}" if failed else ""))
    for text in (*error_words(data), *parts["Branches"].told):
        say(text)
    if verbose:
        print_table("certificate", parts["Checks"].table)
        print_table(ERROR_TITLE, parts["Equivariance"].table)
        for text in parts["Equivariance"].told[1:]:
            say(text)
        for name, change in parts["Buffers that the model's own training forward writes"].table[1:]:
            say(f"buffer {name} was written by training, largest change {change}")
    for difference in certificate.differences:
        say(f"difference: {difference}")


def print_table(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first row are the headings; nothing if it is the only one."""
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows[1:]:
        table.add_row(*(Text(BAD[cell], style="bold red") if cell in BAD else cell for cell in row))
    if table.row_count:
        show(table)


def show(table: Table) -> None:
    """Print a table; where it is too wide, columns give way down to their longest word, and only then into it."""
    screen = console()
    fit(table, screen.width)
    screen.print(table)


def fit(table: Table, width: int) -> None:
    """Give the columns of a table widths so that it has at most this one."""
    texts = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    most = [max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]
    words = [max((cell_len(word) for text in column for word in text.split()), default=0) for column in texts]
    least = [high if high <= SHORT else word for high, word in zip(most, words, strict=True)]
    room = width - 3 * len(texts) - 1
    if sum(most) <= room:
        return
    if sum(least) > room:  # even words have to break: those of the widest columns, which leave room for the others
        largest = next(size for size in range(room // 2, 0, -1) if sum(min(size, each) for each in least) <= room)
        least = [min(largest, each) for each in least]
    spare, wanted = room - sum(least), sum(most) - sum(least) or 1
    for column, low, high in zip(table.columns, least, most, strict=True):
        column.width, column.overflow = low + spare * max(0, high - low) // wanted, "fold"


def sweep_table(sweep: Mapping[str, Any]) -> Table:
    """Return the record of a learning-rate sweep: validation metric per arm and rate, the best marked."""
    seeds, grid = len(sweep["seeds"]), sorted({run["learning_rate"] for run in sweep["runs"]})
    title = (
        f"learning rates: validation {sweep['metric']}, same grid and budget, {seeds} seed{'' if seeds == 1 else 's'}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("arm", *(f"{rate:g}" for rate in grid)):
        table.add_column(heading, overflow="fold")
    values = {(run["arm"], run["learning_rate"]): _mean(run["validation"]) for run in sweep["runs"]}
    for arm, best in sweep["best"].items():
        marks = ("*" if rate == best else "" for rate in grid)
        tried = ((arm, rate) in values for rate in grid)
        cells = (
            f"{values[arm, rate]:.4g}{mark}" if known else "-"
            for rate, mark, known in zip(grid, marks, tried, strict=True)
        )
        table.add_row(arm, *cells)
    return table


def other_metrics_table(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """Return mean and spread of further test metrics, one column each."""
    table = Table(title="other test metrics (mean ± std)", title_justify="left")
    for heading in ("arm", *summaries):
        table.add_column(heading)
    for rows in zip(*summaries.values(), strict=True):
        table.add_row(rows[0]["arm"], *(_with_spread(row["mean"], row["spread"]) for row in rows))
    return table


def _with_spread(mean: float, spread: float) -> str:
    return f"{mean:.4g}" if math.isnan(spread) else f"{mean:.4g} ± {spread:.2g}"


def _mean(values: Sequence[float | None]) -> float:
    """Return the mean; NaN if one is missing, as a diverged run is in a record."""
    return math.nan if None in values else sum(value for value in values if value is not None) / len(values)


def comparison_table(rows: Sequence[Mapping[str, Any]], metric: str, seeds: int) -> Table:
    """Return the table of a comparison: mean and spread over seeds, paired difference with its 95 % interval."""
    reference = rows[0]["reference"]
    against = "" if reference is None else f" from {reference}"
    title = f"test {metric} over {seeds} seeds (mean ± std); differences{against} paired by seed (95 % interval)"
    table = Table(title=title, title_justify="left")
    for heading in ("arm", "lr", metric, "difference", "seconds", "equiv.\nerror", "same\ngraph"):
        table.add_column(heading)
    names = [row["arm"].replace("+", "\n+") for row in rows]  # cut there, and not wherever the column ends
    for name, row in zip(names, rows, strict=True):
        difference = "" if row["arm"] == reference or math.isnan(row["difference"]) else f"{row['difference']:+.2g}"
        if difference and not math.isnan(row["half_width"]):
            difference += f" ± {row['half_width']:.2g}"
        table.add_row(
            name,
            f"{row['learning_rate']:g}",
            _with_spread(row["mean"], row["spread"]),
            difference or "-",
            f"{row['seconds']:.1f}",
            row.get("equivariance", "-"),
            row.get("certificate", "-").removesuffix(" same graph"),
        )
    return table
