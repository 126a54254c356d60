"""The graph of a run's network, its sites coloured by what their branches did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from surgeon.plan import Plan
from surgeon.recording.flow import Flow
from surgeon.recording.picture import draw_flow, largest_use, sites_of_boxes
from surgeon.report.page import Drawing, Part

GRAPH = "The network and its branches"

COLOURS = {
    "ground": "var(--ground)",
    "ink": "currentColor",
    "line": "var(--soft)",
    "other": "var(--line)",
    "site": "var(--c0)",
}


def graph_part(flow: Flow | None, plan: Plan, evaluated: Sequence[Mapping[str, Any]]) -> Part:
    """Return the part with the picture; empty where no flow is recorded.

    Args:
        flow: as the run has recorded it.
        plan: with the sites of its branches.
        evaluated: the epochs with an evaluation, as a run records them.
    """
    if flow is None:
        return Part(GRAPH)
    uses = largest_uses(evaluated, [site.key for site in plan.sites])
    words = (
        "The modules that own parameters, from the inputs at the top to the outputs at the bottom. The number is the "
        "largest |Wx| / |f(x)| of the branch over all evaluations, before θ; the stronger the colour, the larger it is."
    )
    sites = sites_of_boxes(flow, plan)
    rows = [[box, len(sites.get(box, [])), largest_use(uses, sites.get(box, []))] for box in flow.boxes]
    svg = draw_flow(flow, plan, COLOURS, uses)
    shown = svg.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)
    return Part(GRAPH, drawing=Drawing(shown, words, [["module", "sites", "largest |Wx| / |f(x)|"], *rows], wide=True))


def largest_uses(evaluated: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> dict[str, float]:
    """Return by site the largest share that its branch had at an evaluation; without those that never had any."""
    found: dict[str, float] = {}
    for entry in evaluated:
        shares = entry["use"]["share"] if entry.get("use") else []
        for key, share in zip(sites, shares, strict=False):
            if share:
                found[key] = max(found.get(key, 0.0), share)
    return found
