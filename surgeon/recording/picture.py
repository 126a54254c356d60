"""A picture of a model's graph with its sites marked, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from surgeon.plan import Plan, Site
from surgeon.recording.flow import INPUT, OUTPUT, Flow, box_of, boxed_modules
from surgeon.recording.labels import arrow

WIDTH, HEIGHT, GAP_X, GAP_Y = 286, 46, 22, 34
LEFT, TOP, LANE, KEY = 16, 76, 11, 150
NAME_LETTERS, LETTERS = 34, 37
COLOURS = {"ground": "#ffffff", "ink": "#222222", "line": "#777777", "other": "#d8d8d8", "site": "#0b6e99"}
"""Of a file of its own."""

PALEST, FULL = 0.05, 0.55
"""Opacities of the colour behind a site's name, which can be read on both."""

DECADES = 2
"""Uses that are so much smaller than the largest one are palest."""


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    lines: tuple[str, ...]
    title: str
    fill: str
    opacity: float = FULL


def model_picture(flow: Flow, plan: Plan) -> str:
    """Draw the modules that own parameters, from the inputs at the top to the outputs at the bottom.

    Args:
        flow: with the boxes of :func:`surgeon.recording.flow.boxed_modules`.
        plan: its sites, and the audit of all other parameters.

    Returns:
        SVG, a file of its own, as by :func:`draw_flow`.
    """
    drawn = draw_flow(flow, plan, COLOURS)
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def draw_flow(flow: Flow, plan: Plan, colours: Mapping[str, str], uses: Mapping[str, float] | None = None) -> str:
    """Draw the flow of the data through the boxes of a plan.

    Args:
        flow: with the boxes of :func:`surgeon.recording.flow.boxed_modules`.
        plan: its sites, and the audit of all other parameters.
        colours: of ``COLOURS``.
        uses: of sites by their keys, positive; the larger, the stronger a box is coloured, the largest of its sites
            counts.

    Returns:
        SVG without a name space. Boxes with sites are filled and carry their representations, others the class of
        their parameters; the full text is in the tooltips.
    """
    boxes = _place(flow, plan, uses)
    depth = max(flow.level.values()) + 1
    columns = max(sum(1 for other in flow.level.values() if other == level) for level in range(depth))
    lanes, right = _lanes(flow), LEFT + columns * (WIDTH + GAP_X)
    legend = _legend(flow, plan, colours, uses)
    width = max(right + 30 + LANE * (max(lanes.values(), default=0) + 1), LEFT + KEY * (len(legend) - 1))
    height = TOP + depth * (HEIGHT + GAP_Y) + 10
    parts = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="{colours["ground"]}"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{colours["line"]}"/></marker></defs>',
        *legend,
        *(_edge(boxes, edge, lanes, right, colours["line"]) for edge in flow.edges),
        *(_drawn(box, colours) for box in boxes.values()),
        "</svg>",
    ]
    return "\n".join(parts)


def sites_of_boxes(flow: Flow, plan: Plan) -> dict[str, list[Site]]:
    """Return the sites in each box that has any."""
    names, found = sorted(flow.boxes[1:-1], key=len, reverse=True), dict[str, list[Site]]()
    for site in plan.sites:
        box = box_of(site.name, names)
        if box is not None:
            found.setdefault(box, []).append(site)
    return found


def _place(flow: Flow, plan: Plan, uses: Mapping[str, float] | None) -> dict[str, _Box]:
    sites, notes = sites_of_boxes(flow, plan), boxed_modules(plan)
    rows: dict[int, list[str]] = {}
    for box in flow.boxes:
        rows.setdefault(flow.level[box], []).append(box)
    columns = max(len(row) for row in rows.values())
    placed = {}
    for level, row in rows.items():
        start = LEFT + (columns - len(row)) * (WIDTH + GAP_X) / 2
        for index, box in enumerate(row):
            x, y = start + index * (WIDTH + GAP_X), TOP + level * (HEIGHT + GAP_Y)
            placed[box] = _box(x, y, box, sites.get(box, []), notes.get(box, ""), uses)
    return placed


def _box(x: float, y: float, name: str, sites: list[Site], note: str, uses: Mapping[str, float] | None) -> _Box:
    if name in (INPUT, OUTPUT):
        return _Box(x, y, (name,), name, "ground")
    shown = name or "the model itself"
    if not sites:
        return _Box(x, y, (_short(shown, NAME_LETTERS), _short(note, LETTERS)), f"{shown}: {note}", "other")
    known = uses or {}
    told = [f"{site.key}: {site.kind}, {arrow(site, '→')}, {site.evidence}{_used(known, [site])}" for site in sites]
    alone = all(site.name == name for site in sites)
    words = arrow(sites[0], "→") if alone else f"{len(sites)} sites"
    more = (f" (+{len(sites) - 1})" if alone and len(sites) > 1 else "") + _used(known, sites)
    lines = _short(shown, NAME_LETTERS), _short(words, LETTERS - len(more)) + more
    return _Box(x, y, lines, "\n".join(told), "site", FULL if uses is None else _opacity(known, sites))


def largest_use(uses: Mapping[str, float], sites: Sequence[Site]) -> float | None:
    """Return the largest use of some sites; None where none is known."""
    return max((uses[site.key] for site in sites if site.key in uses), default=None)


def _used(uses: Mapping[str, float], sites: Sequence[Site]) -> str:
    use = largest_use(uses, sites)
    return "" if use is None else f": {use:.2g}"


def _opacity(uses: Mapping[str, float], sites: Sequence[Site]) -> float:
    use, top = largest_use(uses, sites), max(uses.values(), default=0.0)
    depth = DECADES if not use else min(math.log10(top / use), DECADES)
    return FULL - (FULL - PALEST) * depth / DECADES


def _short(text: str, limit: int) -> str:
    """Leave out the middle of a long text."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _drawn(box: _Box, colours: Mapping[str, str]) -> str:
    lines = [line for line in box.lines if line]
    first = box.y + HEIGHT / 2 + 4 - 8 * (len(lines) - 1)
    texts = [
        f'<text x="{box.x + WIDTH / 2:.1f}" y="{first + 17 * index:.1f}" text-anchor="middle" fill="{colours["ink"]}"'
        f"{' font-weight=' + chr(34) + 'bold' + chr(34) if index == 0 else ''}>{escape(line)}</text>"
        for index, line in enumerate(lines)
    ]
    frame = _rectangle(box.x, box.y, WIDTH, HEIGHT, colours, (box.fill, box.opacity))
    return f"<g><title>{escape(box.title)}</title>{frame}{''.join(texts)}</g>"


def _rectangle(
    x: float, y: float, width: float, height: float, colours: Mapping[str, str], fill: tuple[str, float]
) -> str:
    """Draw the ground, so that no edge shines through, and a colour on it."""
    place = f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" rx="5" '
    return (
        f'{place}fill="{colours["ground"]}"/>'
        f'{place}fill="{colours[fill[0]]}" fill-opacity="{fill[1]:.3f}" stroke="{colours["line"]}"/>'
    )


def _lanes(flow: Flow) -> dict[tuple[str, str], int]:
    """Edges that skip levels run on the right; those that overlap get different lanes."""
    lanes: dict[tuple[str, str], int] = {}
    for edge in sorted(flow.edges, key=lambda each: flow.level[each[1]] - flow.level[each[0]]):
        top, bottom = flow.level[edge[0]], flow.level[edge[1]]
        if bottom - top > 1:
            taken = {
                lane for other, lane in lanes.items() if flow.level[other[0]] < bottom and top < flow.level[other[1]]
            }
            lanes[edge] = next(lane for lane in range(len(taken) + 1) if lane not in taken)
    return lanes


def _edge(
    boxes: Mapping[str, _Box], edge: tuple[str, str], lanes: Mapping[tuple[str, str], int], right: float, colour: str
) -> str:
    source, target = boxes[edge[0]], boxes[edge[1]]
    x0, y0 = source.x + WIDTH / 2, source.y + HEIGHT
    x1, y1 = target.x + WIDTH / 2, target.y
    if edge not in lanes:
        middle = (y0 + y1) / 2
        path = f"M{x0:.1f},{y0:.1f} C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    else:
        lane = right + LANE * (lanes[edge] + 1)
        out, back = y0 + GAP_Y * 0.35, y1 - GAP_Y * 0.35
        path = f"M{x0 + 40:.1f},{y0:.1f} V{out:.1f} H{lane:.1f} V{back:.1f} H{x1 + 40:.1f} V{y1:.1f}"
    opacity = "" if edge not in lanes else ' stroke-opacity="0.5"'
    return f'<path d="{path}" fill="none" stroke="{colour}"{opacity} marker-end="url(#tip)"/>'


def _legend(flow: Flow, plan: Plan, colours: Mapping[str, str], uses: Mapping[str, float] | None) -> list[str]:
    """Return a headline, and one key for each meaning of a colour that occurs."""
    text = f"{len(plan.sites)} relaxable ops under {plan.group}"
    entries = [("takes a branch", ("site", FULL))]
    if uses:
        text, top = f"{len(plan.sites)} branches under {plan.group}", max(uses.values())
        shown = ((f"{top:.1g}", FULL), (f"{top / 10**DECADES:.1g} or less", PALEST))
        entries = [(f"used: {word}", ("site", opacity)) for word, opacity in shown]
    if len(sites_of_boxes(flow, plan)) < len(flow.boxes) - 2:
        entries.append(("left alone", ("other", FULL)))
    drawn = [f'<text x="16" y="26" font-size="15" font-weight="bold" fill="{colours["ink"]}">{escape(text)}</text>']
    for index, (label, fill) in enumerate(entries):
        x = LEFT + KEY * index
        text = f'<text x="{x + 30}" y="52" fill="{colours["ink"]}">{label}</text>'
        drawn.append(_rectangle(x, 40, 22, 14, colours, fill) + text)
    return drawn
