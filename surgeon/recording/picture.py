"""A picture of a model's graph with its sites marked, as SVG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from torch import fx

from surgeon.plan import Plan, Site
from surgeon.recording.labels import arrow
from surgeon.recording.record import Recording

WIDTH, HEIGHT, GAP_X, GAP_Y = 286, 46, 22, 34
LEFT, TOP, LANE = 16, 76, 11
NAME_LETTERS, LETTERS = 34, 37
INPUT, OUTPUT = "inputs", "outputs"
SITE, OTHER, ENDS = "#0b6e99", "#e8e8e8", "#ffffff"


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    lines: tuple[str, ...]
    title: str
    fill: str


def model_picture(recording: Recording, plan: Plan) -> str:
    """Draw the modules that own parameters, from the inputs at the top to the outputs at the bottom.

    Args:
        recording: one run of the model, see :func:`surgeon.recording.record`.
        plan: its sites, and the audit of all other parameters.

    Returns:
        SVG. Sites are filled and carry their representations, other modules the class of their parameters; the full
        text is in the tooltips.
    """
    notes = _notes(plan)
    flow = data_flow(recording, notes)
    boxes = _place(flow, plan, notes)
    depth = max(flow.level.values()) + 1
    columns = max(sum(1 for other in flow.level.values() if other == level) for level in range(depth))
    lanes = _lanes(flow)
    width = LEFT + columns * (WIDTH + GAP_X) + 30 + LANE * (max(lanes.values(), default=0) + 1)
    height = TOP + depth * (HEIGHT + GAP_Y) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#777777"/></marker></defs>',
        *_legend(plan),
        *(_edge(boxes, edge, lanes, LEFT + columns * (WIDTH + GAP_X)) for edge in flow.edges),
        *(_drawn(box) for box in boxes.values()),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _notes(plan: Plan) -> dict[str, str]:
    """Name of each module to show: that of a site, or of an owner of other parameters with their classes."""
    notes = {site.name: "" for site in plan.sites}
    for entry in plan.audit:
        owner = entry.parameter.rpartition(".")[0]
        related = any(_contains(owner, site.name) or _contains(site.name, owner) for site in plan.sites if site.name)
        if entry.coverage != "site" and not related and owner and owner not in notes:
            notes[owner] = entry.coverage
    return notes


def _contains(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")


def _place(flow: Flow, plan: Plan, notes: Mapping[str, str]) -> dict[str, _Box]:
    sites: dict[str, list[Site]] = {}
    for site in plan.sites:
        sites.setdefault(site.name, []).append(site)
    rows: dict[int, list[str]] = {}
    for box in flow.boxes:
        rows.setdefault(flow.level[box], []).append(box)
    columns = max(len(row) for row in rows.values())
    placed = {}
    for level, row in rows.items():
        start = LEFT + (columns - len(row)) * (WIDTH + GAP_X) / 2
        for index, box in enumerate(row):
            x, y = start + index * (WIDTH + GAP_X), TOP + level * (HEIGHT + GAP_Y)
            placed[box] = _box(x, y, box, sites.get(box, []), notes)
    return placed


def _box(x: float, y: float, name: str, sites: list[Site], notes: Mapping[str, str]) -> _Box:
    if name in (INPUT, OUTPUT):
        return _Box(x, y, (name,), name, ENDS)
    shown = name or "the model itself"
    if not sites:
        return _Box(x, y, (_short(shown, NAME_LETTERS), notes.get(name, "")), f"{shown}: {notes.get(name, '')}", OTHER)
    words = [arrow(site, "→") for site in sites]
    title = "\n".join(
        f"{site.key}: {site.kind}, {text}, {site.evidence}" for site, text in zip(sites, words, strict=True)
    )
    more = f" (+{len(words) - 1})" if len(words) > 1 else ""
    return _Box(x, y, (_short(shown, NAME_LETTERS), _short(words[0], LETTERS - len(more)) + more), title, SITE)


def _short(text: str, limit: int) -> str:
    """Leave out the middle of a long text."""
    if len(text) <= limit:
        return text
    half = (limit - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def _drawn(box: _Box) -> str:
    ink = "#ffffff" if box.fill == SITE else "#222222"
    lines = [line for line in box.lines if line]
    first = box.y + HEIGHT / 2 + 4 - 8 * (len(lines) - 1)
    texts = [
        f'<text x="{box.x + WIDTH / 2:.1f}" y="{first + 17 * index:.1f}" text-anchor="middle" fill="{ink}"'
        f"{' font-weight=' + chr(34) + 'bold' + chr(34) if index == 0 else ''}>{escape(line)}</text>"
        for index, line in enumerate(lines)
    ]
    rectangle = (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{WIDTH}" height="{HEIGHT}" rx="5" fill="{box.fill}" '
        'stroke="#555555"/>'
    )
    return f"<g><title>{escape(box.title)}</title>{rectangle}{''.join(texts)}</g>"


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


def _edge(boxes: Mapping[str, _Box], edge: tuple[str, str], lanes: Mapping[tuple[str, str], int], right: float) -> str:
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
    colour = "#777777" if edge not in lanes else "#b5b5b5"
    return f'<path d="{path}" fill="none" stroke="{colour}" marker-end="url(#tip)"/>'


def _legend(plan: Plan) -> list[str]:
    text = f"{len(plan.sites)} relaxable ops under {plan.group}"
    entries = ((SITE, "takes a branch"), (OTHER, "left alone"))
    drawn = [f'<text x="16" y="26" font-size="15" font-weight="bold">{escape(text)}</text>']
    for index, (fill, label) in enumerate(entries):
        x = 16 + 150 * index
        drawn.append(
            f'<rect x="{x}" y="40" width="22" height="14" rx="3" fill="{fill}" stroke="#555555"/>'
            f'<text x="{x + 30}" y="52">{label}</text>'
        )
    return drawn


@dataclass(frozen=True)
class Flow:
    """A directed acyclic graph of boxes.

    Attributes:
        boxes: in the order of execution; the first is the inputs, the last the outputs.
        edges: pairs (from, to); an edge that a longer path implies is left out.
        level: the length of the longest path from the inputs.
    """

    boxes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...]
    level: Mapping[str, int]


def data_flow(recording: Recording, boxed: Iterable[str]) -> Flow:
    """Collapse a recorded graph to some of its modules.

    Args:
        recording: the run; what autograd does inside the forward is left out.
        boxed: qualified names of the modules to show; all ops outside them become part of the edges.

    Returns:
        The flow; a module that is called several times is one box.
    """
    names = sorted(boxed, key=len, reverse=True)
    order: dict[str, int] = {INPUT: 0}
    edges: dict[tuple[str, str], None] = {}
    sources: dict[fx.Node, frozenset[str]] = {}
    for node in recording.graph.nodes:
        before = frozenset[str]().union(*(sources.get(part, frozenset()) for part in node.all_input_nodes))
        if node.op == "output":
            edges |= {(source, OUTPUT): None for source in before}
        elif node.op == "placeholder":
            sources[node] = frozenset({INPUT})
        elif not node.meta["backward"]:
            box = _box_of(node.meta["owner"], names)
            if box is None or not node.meta["activation"]:
                sources[node] = before
                continue
            order.setdefault(box, len(order))
            edges |= {(source, box): None for source in before if source != box and order[source] < order[box]}
            sources[node] = frozenset({box})
    order[OUTPUT] = len(order)
    kept = _without_shortcuts(list(edges), order)
    return Flow(tuple(order), tuple(kept), _levels(order, kept))


def _box_of(owner: str, names: list[str]) -> str | None:
    """The innermost boxed module that an op runs in."""
    return next((name for name in names if owner == name or owner.startswith(f"{name}.") or not name), None)


def _without_shortcuts(edges: list[tuple[str, str]], order: Mapping[str, int]) -> list[tuple[str, str]]:
    """Transitive reduction of an acyclic graph."""
    after: dict[str, set[str]] = {box: set() for box in order}
    for source, target in edges:
        after[source].add(target)
    reach: dict[str, set[str]] = {}
    for box in sorted(order, key=order.__getitem__, reverse=True):
        reach[box] = after[box].union(*(reach[target] for target in after[box]))
    return [
        (source, target)
        for source, target in edges
        if not any(target in reach[other] for other in after[source] if other != target)
    ]


def _levels(order: Mapping[str, int], edges: list[tuple[str, str]]) -> dict[str, int]:
    level = dict.fromkeys(order, 0)
    for box in sorted(order, key=order.__getitem__):
        level[box] = max((level[source] + 1 for source, target in edges if target == box), default=0)
    level[OUTPUT] = 1 + max(depth for box, depth in level.items() if box != OUTPUT)
    return level
