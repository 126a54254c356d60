"""Figures of a report: drawn by matplotlib as SVG that takes its colours from the page around it."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from surgeon.errors import UsageError, printable
from surgeon.report.page import Drawing, Rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

WIDTH = 4.6
"""Inches: narrow, so that letters can be read on a phone, and two figures stand side by side on a desk."""

LETTERS = 30
"""Of a name in a figure; longer ones lose their middle. Tables have them whole."""

INK, FAINT, SERIES = "#010203", "#040506", tuple(f"#07080{number}" for number in range(6))
"""Drawn in these, which the page's own colours replace."""

COLOURS = {INK: "currentColor", FAINT: "var(--line)"} | {c: f"var(--c{i})" for i, c in enumerate(SERIES)}
MARKERS, DASHES = "os^Dv", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "font.family": ["sans-serif"],
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "legend.frameon": False,
    **{name: INK for name in ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")},
}


@dataclass(frozen=True)
class Line:
    """One line of a panel: pairs of x and y, None where there is no finite number; ``faint`` ones are not labelled."""

    label: str
    points: Sequence[tuple[float, float | None]]
    faint: bool = False
    series: int | None = None


@dataclass(frozen=True)
class Panel:
    """What shares one y axis; ``level`` is a horizontal line, with its label."""

    label: str
    lines: Sequence[Line]
    level: tuple[float | None, str] | None = None


def curves(title: str, x: str, panels: Sequence[Panel], words: str) -> Drawing:
    """Draw panels above each other over one x axis; y is logarithmic where it spans a factor of ten.

    Args:
        title: of the part it stands in.
        panels: from the top down.
    """

    def draw(figure: Figure) -> None:
        every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(every, panels, strict=True):
            _draw_panel(axes, panel)
        axes.set_xlabel(x)
        axes.xaxis.get_major_locator().set_params(integer=True)  # steps, epochs, numbers
        known = {word: handle for axes in every for handle, word in zip(*axes.get_legend_handles_labels(), strict=True)}
        if known:
            figure.legend(known.values(), known, loc="outside upper left", ncols=_columns(known), fontsize="small")

    words_of = dict.fromkeys(line.label for panel in panels for line in panel.lines if line.label and not line.faint)
    legend = 0.17 * math.ceil(len(words_of) / _columns(words_of))
    heights = 0.9 + legend + sum(2.2 if len(panels) == 1 else 1.45 for _ in panels)
    named = [
        (f"{panel.label}: {line.label}" if line.label else panel.label, line)
        for panel in panels
        for line in panel.lines
    ]
    places = sorted({place for _, line in named for place, _ in line.points})
    columns = [dict(line.points) for _, line in named]
    rows: Rows = [[x, *(name for name, _ in named)], *([place, *(c.get(place) for c in columns)] for place in places)]
    return Drawing(_svg(title, heights, words, draw), words, rows)


def _columns(names: Iterable[str]) -> int:
    """Return in how many columns a legend fits into the width."""
    return max(1, min(3, 60 // (8 + max((len(_label(name)) for name in names), default=0))))


def _draw_panel(axes: Axes, panel: Panel) -> None:
    styles = _styles()
    for number, line in enumerate(panel.lines):
        colour, marker, dashes = styles[(number if line.series is None else line.series) % len(styles)]
        x, y = [place for place, _ in line.points], [_finite(value) for _, value in line.points]
        if line.faint:
            axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.45)
        else:
            every = (number % 3, max(1, len(x) // 8))
            shown: dict[str, Any] = {"marker": marker, "markevery": every, "linestyle": dashes}
            width = max(1.2, 2.2 - 0.5 * number)  # of lines that coincide the lower one is seen, too
            axes.plot(x, y, color=colour, linewidth=width, label=_label(line.label) or None, **shown)
    if panel.level is not None and panel.level[0] is not None:
        axes.axhline(panel.level[0], color=INK, linewidth=0.9, linestyle=(0, (1, 2)), label=_label(panel.level[1]))
    values = [value for line in panel.lines for _, value in line.points if value is not None and math.isfinite(value)]
    if values and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis, max(values) / min(values))
    axes.set_title(_label(panel.label, 50), loc="left", fontsize="medium")


@dataclass(frozen=True)
class Interval:
    """A mean with half the width of what is drawn around it, None if it is not known, its sample, and its colour."""

    label: str
    mean: float
    half_width: float | None
    values: Sequence[float] = ()
    series: int = 0


def intervals(
    title: str, x: str, found: Sequence[Interval], names: tuple[str, str], words: str, zero: bool = False
) -> Drawing:
    """Draw means with bars around them, one row each, and every value of the sample as a dot.

    Args:
        title: of the part it stands in.
        found: from the top down.
        names: what mean and half width are called in the table.
        zero: draw a line at 0.
    """

    def draw(figure: Figure) -> None:
        axes, styles = figure.subplots(), _styles()
        for row, each in enumerate(found):
            colour, marker, _ = styles[each.series % len(styles)]
            axes.plot(each.values, [row + 0.25] * len(each.values), "o", color=SERIES[5], alpha=0.7, markersize=3)
            bar = 0.0 if each.half_width is None else each.half_width
            axes.errorbar(each.mean, row, xerr=bar, fmt=marker, color=colour, capsize=4, markersize=5)
        if zero:
            axes.axvline(0, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(found)), [_label(each.label) for each in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel(_label(x, 70))

    most = max((len(each.values) for each in found), default=0)
    head = ["arm", *names, "low", "high", *(f"value {number}" for number in range(1, most + 1))]
    rows = [
        [each.label, each.mean, each.half_width, *_ends(each), *each.values, *[None] * (most - len(each.values))]
        for each in found
    ]
    return Drawing(_svg(title, 0.9 + 0.45 * len(found), words, draw), words, [head, *rows])


def _ends(found: Interval) -> list[float | None]:
    return [None if found.half_width is None else found.mean + sign * found.half_width for sign in (-1, 1)]


@dataclass(frozen=True)
class ErrorRow:
    """Errors of several models under one heading, None where one is not finite, and the largest that is allowed."""

    label: str
    errors: Mapping[str, float | None]
    allowed: float | None


def errors_on_log_axis(title: str, x: str, found: Sequence[ErrorRow], words: str) -> Drawing:
    """Draw errors on a logarithmic axis, one row each, one mark for each model; an error of 0 stands at the left edge.

    Args:
        title: of the part it stands in.
        found: from the top down.
    """
    models = list(dict.fromkeys(model for each in found for model in each.errors))
    numbers = [value for each in found for value in (*each.errors.values(), each.allowed) if value]
    zeros = any(value == 0 for each in found for value in each.errors.values())
    edge = 10.0 ** (math.floor(math.log10(min(numbers, default=1.0))) - zeros)

    def draw(figure: Figure) -> None:
        axes, styles = figure.subplots(), _styles()
        for number, model in enumerate(models):
            colour, marker, _ = styles[number % len(styles)]
            drawn = [(value, row) for row, each in enumerate(found) if (value := each.errors.get(model)) is not None]
            places = [row + 0.16 * (number - (len(models) - 1) / 2) for _, row in drawn]
            axes.plot([max(v, edge) for v, _ in drawn], places, marker, color=colour, label=_label(model), markersize=5)
        limits = [(each.allowed, row) for row, each in enumerate(found) if each.allowed is not None]
        for number, (limit, row) in enumerate(limits):
            label = "allowed for the result" if number == 0 else None
            axes.plot([limit, limit], [row - 0.4, row + 0.4], color=INK, linestyle=(0, (2, 1)), label=label)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis, max(numbers, default=1.0) / edge)
        axes.set_xlim(left=edge / 2)
        axes.set_yticks(range(len(found)), [_label(each.label) for each in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel(_label(x, 70))
        figure.legend(loc="outside upper left", ncols=_columns(models), fontsize="small")

    rows: Rows = [["", *models, "allowed"], *([e.label, *(e.errors.get(m) for m in models), e.allowed] for e in found)]
    return Drawing(
        _svg(title, 1.2 + 0.45 * min(len(found), 5) + 0.2 * max(len(found) - 5, 0), words, draw), words, rows
    )


@dataclass(frozen=True)
class Cloud:
    """Points of one series."""

    label: str
    x: Sequence[float | None]
    y: Sequence[float | None]


def clouds(title: str, axis: tuple[str, str], panels: Sequence[tuple[str, Sequence[Cloud]]], words: str) -> Drawing:
    """Draw points of several series in one panel for each name, two beside each other, with the line x = y.

    Args:
        title: of the part it stands in.
        axis: labels of x and y.
        panels: names with their series.
        words: what is shown.
    """
    height = -(-len(panels) // 2)

    def draw(figure: Figure) -> None:
        places = list(figure.subplots(height, 2, squeeze=False).flat)
        for axes, (name, series) in zip(places, panels, strict=False):
            for cloud, (colour, marker, _) in zip(series, _styles(), strict=False):
                x, y = ([_finite(value) for value in values] for values in (cloud.x, cloud.y))
                axes.plot(x, y, marker, color=colour, markersize=2.5, alpha=0.6, label=_label(cloud.label))
            axes.axline((0, 0), slope=1, color=INK, linewidth=0.7)
            axes.set_title(_label(name), fontsize="small")
            axes.set(xlabel=axis[0], ylabel=axis[1])
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        figure.legend(*places[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, fontsize="small")

    rows = [[name, c.label, *pair] for name, series in panels for c in series for pair in zip(c.x, c.y, strict=True)]
    return Drawing(_svg(title, 0.6 + 2.2 * height, words, draw), words, [["", "model", *axis], *rows])


def _styles() -> list[tuple[str, str, Any]]:
    """Return colours with marks and dashes of their own: colour alone tells nothing apart."""
    return [each for each, _ in zip(zip(cycle(SERIES), cycle(MARKERS), cycle(DASHES)), range(30), strict=False)]


def _plain_ticks(axis: Axis, span: float) -> None:
    """Write the ticks of a logarithmic axis without mathtext, which names in figures must not be read as.

    Args:
        span: largest by smallest value; below two decades there are ticks inside them.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 100 else (1.0,), numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain_number(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain_number(value: float) -> str:
    """Return a tick of a logarithmic axis: 0.1, 10, 1e-5."""
    if not 1e-3 <= value < 1e5:
        digits, _, power = f"{value:e}".partition("e")
        return f"{float(digits):g}e{int(power)}"
    return f"{value:g}"


def _finite(value: float | None) -> float:
    return math.nan if value is None or not math.isfinite(value) else value


def _label(text: str, letters: int = LETTERS) -> str:
    """Return a name as it fits into a figure, without what no font and no XML has."""
    plain, half = printable(text), (letters - 1) // 2
    return plain if len(plain) <= letters else f"{plain[:half]}…{plain[-half:]}"


def _svg(title: str, height: float, words: str, draw: Callable[[Figure], None]) -> str:
    """Draw a figure in its own style, whatever matplotlib is set to, and return what goes into a page.

    Raises:
        UsageError: if matplotlib is missing.
    """
    try:
        from matplotlib import style
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "expected matplotlib for the figures of a report, which is not installed: pip install 'equisurgeon[plots]'"
        ) from error
    target = io.BytesIO()
    with warnings.catch_warnings(), style.context(["default", {**STYLE, "svg.hashsalt": title}]):
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)  # it is the reader's font that counts
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return _inline(ElementTree.fromstring(target.getvalue()), title, words)


def _inline(root: ElementTree.Element, title: str, words: str) -> str:
    """Return an SVG for the inside of a page: with the page's colours, names of its own, and without addresses."""
    prefix = "f" + hashlib.sha256(title.encode("utf-8", "replace")).hexdigest()[:6]
    for parent in list(root.iter()):
        for child in [each for each in parent if each.tag.rpartition("}")[2] in ("metadata", "style")]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = dict(_renamed(element.attrib, prefix))
    del root.attrib["width"], root.attrib["height"]  # the page says how wide it is
    root.attrib |= {"role": "img", "aria-label": printable(words)}
    return ElementTree.tostring(root, encoding="unicode")


def _renamed(attributes: Mapping[str, str], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in attributes.items():
        key = name.rpartition("}")[2]
        if key == "id":
            value = f"{prefix}-{value}"
        elif key == "href":
            value = f"#{prefix}-{value.removeprefix('#')}"
        else:
            value = value.replace("url(#", f"url(#{prefix}-")
            for drawn, shown in COLOURS.items():
                value = value.replace(drawn, shown)
        yield key, value
