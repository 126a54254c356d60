"""Read a report as a browser would: headings, tables, links, figures."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

VOID = {"meta", "br", "link", "img", "hr"}


@dataclass
class Seen(HTMLParser):
    """What a page holds; ``headings`` are pairs of tag and text, ``csv`` and ``svg`` are by the title of the part."""

    tags: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    headings: list[list[str]] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    text: str = ""
    csv: dict[str, list[list[str]]] = field(default_factory=dict)
    svg: dict[str, str] = field(default_factory=dict)
    source: str = ""

    @classmethod
    def read(cls, path: Path) -> Seen:
        seen = cls()
        HTMLParser.__init__(seen)
        seen.source = path.read_text(encoding="utf-8")
        seen.feed(seen.source)
        assert seen.open == [], "every tag is closed, in order"
        return seen

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in given.items()]
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self.headings.append([tag, ""])
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "td" and given.get("class") == "bad":
            self.bad.append("")
        if tag == "a":
            kind, _, content = unquote(given["href"]).partition(";charset=utf-8,")
            title, _, ending = given["download"].rpartition(".")
            if ending == "csv":
                assert kind == "data:text/csv"
                self.csv[title] = list(csv.reader(io.StringIO(content)))
            else:
                assert (kind, ending) == ("data:image/svg+xml", "svg")
                self.svg[title] = content

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert [tag] == self.open[-1:]
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if any(tag in self.open for tag in ("h1", "h2", "h3")):
            self.headings[-1][1] += data
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def values(self, tag: str, name: str) -> list[str]:
        return [value for at, key, value in self.attributes if (at, key) == (tag, name)]

    def table(self, *first: str) -> list[list[str]]:
        """Return the table whose first headings are these."""
        (found,) = [table for table in self.tables if table[0][: len(first)] == list(first)]
        return found

    def column(self, title: str, heading: str) -> list[float | None]:
        """Return a column of a figure's numbers."""
        head, *rows = self.csv[title]
        return [float(row[head.index(heading)]) if row[head.index(heading)] else None for row in rows]
