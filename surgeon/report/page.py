"""A page of a report as plain data, and as self-contained HTML."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from xml.etree import ElementTree

from surgeon.errors import UsageError, printable

if TYPE_CHECKING:
    from markupsafe import Markup

Rows = Sequence[Sequence[Any]]
"""A table, whose first row are the headings."""

TEMPLATE = "page.html"

NO_BREAK = "\u00a0"

LIGHT = {
    "--ground": "#ffffff",
    "--ink": "#1c1f23",
    "--soft": "#5a626b",
    "--line": "#d5dae0",
    "--panel": "#f4f6f8",
    "--link": "#0a5c91",
    "--good": "#00694d",
    "--bad": "#b3261e",
    **{f"--c{i}": c for i, c in enumerate(("#0067a5", "#c04a00", "#00795c", "#8b3f95", "#8a6a00", "#5f6670"))},
}
DARK = {
    "--ground": "#15181c",
    "--ink": "#e7eaee",
    "--soft": "#a3acb6",
    "--line": "#3a424b",
    "--panel": "#1f242a",
    "--link": "#7cc4f5",
    "--good": "#45d3ab",
    "--bad": "#ff8a80",
    **{f"--c{i}": c for i, c in enumerate(("#5db5f0", "#ff9a5c", "#45d3ab", "#e0a0e8", "#f0cf4f", "#aab3bd"))},
}
"""Colours of a page as its reader's system is set; figures take theirs from it."""


class Good(str):
    """What is marked in a cell as a gain."""


class Bad(str):
    """What is marked in a cell: a metric that got worse, a check that does not hold."""


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        svg: as :mod:`surgeon.report.figures` draws it.
        words: what it shows, for those who cannot see it.
        rows: the numbers that are drawn; they are offered as CSV.
        wide: it has a size of its own, and is moved under a narrow window instead of being made smaller.
    """

    svg: str
    words: str
    rows: Rows
    wide: bool = False


@dataclass(frozen=True)
class Part:
    """What stands under one heading.

    Attributes:
        title: the heading.
        told: sentences.
        drawing: a figure.
        rows: a table.
        folded: the whole part is closed until it is asked for.
        closed: its table is.
    """

    title: str
    told: Sequence[str] = ()
    drawing: Drawing | None = None
    rows: Rows = ()
    folded: bool = False
    closed: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: what it is of.
        lead: what came out, in sentences, the verdict first.
        facts: pairs of a name and a value.
        parts: the rest, in order; those with nothing in them are left out.
        unfinished: its records will change.
    """

    title: str
    lead: Sequence[str]
    facts: Rows
    parts: Sequence[Part]
    unfinished: bool = False

    def html(self, refresh: int | None = None) -> str:
        """Return the page as HTML that needs no other file, no network and no script.

        Args:
            refresh: seconds after which a browser opens the file again.

        Raises:
            UsageError: if jinja2 is missing.
        """
        try:
            import jinja2
        except ImportError as error:
            raise UsageError("expected jinja2 for a report, which is not installed: pip install jinja2") from error
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        environment.filters |= {"number": is_number, "code": with_code, "csv": csv_link, "svg": svg_link}
        environment.tests |= {"bad": lambda cell: isinstance(cell, Bad), "good": lambda cell: isinstance(cell, Good)}
        template = environment.from_string(files("surgeon.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
        parts = [part for part in self.parts if part.told or part.drawing or len(part.rows) > 1]
        text = template.render(page=self, parts=parts, refresh=refresh, light=LIGHT, dark=DARK)
        return NO_BREAK.join(printable(each) for each in text.split(NO_BREAK))


def is_number(cell: Any) -> bool:
    """Tell whether a cell is a number, which no line breaks."""
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def cell_text(cell: Any) -> str:
    """Return what is shown of a cell; JSON has null for a number that is not finite."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def with_code(text: Any) -> Markup:
    """Escape a text, and set what stands between backticks as code, whose lines end between words alone."""
    from markupsafe import Markup, escape

    def code(part: str) -> Markup:
        words = (Markup("<span>{}</span>").format(word) for word in part.split(" "))
        return Markup("<code>{}</code>").format(Markup(" ").join(words))

    parts = re.split("`([^`]*)`", cell_text(text))
    return Markup("").join(code(part) if odd % 2 else escape(part) for odd, part in enumerate(parts))


def csv_link(rows: Rows) -> str:
    """Return a table as CSV in a data URL; numbers have all their digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["" if cell is None else cell for cell in row] for row in rows])
    return "data:text/csv;charset=utf-8," + quote(printable(text.getvalue()))


def standalone(drawing: Drawing) -> str:
    """Return a figure as a file of its own, which brings the colours that a light page would give it."""
    root = ElementTree.fromstring(drawing.svg)
    width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
    colours = ";".join(f"{name}:{value}" for name, value in LIGHT.items())
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg", "width": f"{width:g}", "height": f"{height:g}"}
    root.attrib["style"] = f"background:{LIGHT['--ground']};color:{LIGHT['--ink']};{colours}"
    return printable(ElementTree.tostring(root, encoding="unicode")) + "\n"


def svg_link(drawing: Drawing) -> str:
    """Return a figure as a file in a data URL."""
    return "data:image/svg+xml;charset=utf-8," + quote(standalone(drawing), safe="")
