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

from surgeon.errors import UsageError

if TYPE_CHECKING:
    from markupsafe import Markup

Rows = Sequence[Sequence[Any]]
"""A table, whose first row are the headings."""

TEMPLATE = "page.html"


class Bad(str):
    """What is marked in a cell: a metric that got worse, a check that does not hold."""


@dataclass(frozen=True)
class Drawing:
    """A figure.

    Attributes:
        svg: as :mod:`surgeon.report.figures` draws it.
        words: what it shows, for those who cannot see it.
        rows: the numbers that are drawn; they are offered as CSV.
    """

    svg: str
    words: str
    rows: Rows


@dataclass(frozen=True)
class Part:
    """What stands under one heading; ``folded`` parts are closed until they are asked for."""

    title: str
    told: Sequence[str] = ()
    drawing: Drawing | None = None
    rows: Rows = ()
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        title: what it is of.
        lead: what came out, in sentences, the verdict first.
        facts: pairs of a name and a value.
        parts: the rest, in order; those with nothing in them are left out.
    """

    title: str
    lead: Sequence[str]
    facts: Rows
    parts: Sequence[Part]

    def html(self) -> str:
        """Return the page as HTML that needs no other file, no network and no script.

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
        environment.filters |= {"number": is_number, "code": with_code, "csv": csv_link}
        environment.tests["bad"] = lambda cell: isinstance(cell, Bad)
        template = environment.from_string(files("surgeon.report").joinpath(TEMPLATE).read_text(encoding="utf-8"))
        parts = [part for part in self.parts if part.told or part.drawing or len(part.rows) > 1]
        text = template.render(page=self, parts=parts)
        return text.encode("utf-8", "replace").decode("utf-8")  # JSON can hold what UTF-8 cannot


def is_number(cell: Any) -> bool:
    """Tell whether a cell stands to the right."""
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def cell_text(cell: Any) -> str:
    """Return what is shown of a cell; JSON has null for a number that is not finite."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return "–"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def with_code(text: Any) -> Markup:
    """Escape a text, and set what stands between backticks as code."""
    from markupsafe import Markup, escape

    parts = re.split("`([^`]*)`", cell_text(text))
    marked = (Markup("<code>{}</code>").format(part) if odd % 2 else escape(part) for odd, part in enumerate(parts))
    return Markup("").join(marked)


def csv_link(rows: Rows) -> str:
    """Return a table as CSV in a data URL; numbers have all their digits."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["" if cell is None else cell for cell in row] for row in rows])
    return "data:text/csv;charset=utf-8," + quote(text.getvalue(), errors="replace")
