"""What the branches of a run do over its training, site by site (Fig. 3 of the paper)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgeon.report.figures import ErrorRow, Line, Panel, curves, errors_on_log_axis
from surgeon.report.page import Part

USE, SHARE, SPECTRUM = "Branches over the training", "Equivariant share of W", "Singular values of W by irrep"

SINGLE = 6
"""Sites, at most, of which each has a line with its name; of more the median and the largest have."""

ROUNDING = 1e-6
"""Of the largest singular value: smaller ones are those of a W of lower rank, in float32."""

ROWS = 20
"""Sites, at most, in a figure that has a row for each."""


def use_part(evaluated: Sequence[Mapping[str, Any]], sites: Sequence[str]) -> Part:
    """Return the part with the shares and the errors of all sites; empty where a run has recorded none.

    Args:
        evaluated: the epochs with an evaluation, as a run records them.
        sites: their keys, in the order of the plan.
    """
    looked = [entry for entry in evaluated if entry.get("use")]
    if not looked:
        return Part(USE)
    panels = [
        Panel("|Wx| / |f(x)|", list(_lines(looked, sites, "share"))),
        Panel("Lie derivative / output", list(_lines(looked, sites, "lie"))),
    ]
    words = (
        "For each site, over the epochs: the norm of what its branch computes, before θ, relative to that of what the "
        "op itself returns; and the Lie derivative of the op with its branch at the θ of then, which is 0 for an "
        "equivariant map, relative to what they return. Root mean squares over a few rows of the validation split."
    )
    told = [] if len(sites) <= SINGLE else ["Every site has a thin line; CSV has their names."]
    return Part(USE, told, curves(USE, "epoch", panels, words))


def _lines(looked: Sequence[Mapping[str, Any]], sites: Sequence[str], name: str) -> Iterator[Line]:
    """Yield one line for each site, and of many sites further ones that sum them up."""
    table = [(entry["epoch"], entry["use"][name]) for entry in looked]
    many = len(sites) > SINGLE
    for number, key in enumerate(sites):
        points = [(epoch, values[number]) for epoch, values in table]
        yield Line(key, points, faint=many, series=5 if many else None)
    for label, of in (("median", statistics.median), ("largest", max)) if many else ():
        finite = [(epoch, [value for value in values if value is not None]) for epoch, values in table]
        yield Line(label, [(epoch, of(values) if values else None) for epoch, values in finite])


def share_part(contents: Mapping[str, Mapping[str, float | None]]) -> Part:
    """Return how much of each W commutes with the group; empty where it is not recorded.

    Args:
        contents: site to ``equivariant`` and ``random``, as :class:`surgeon.editing.spectrum.BranchContent` has them.
    """
    pairs = {key: (each["equivariant"], each["random"]) for key, each in contents.items()}
    known = {key: (own, chance) for key, (own, chance) in pairs.items() if own is not None and chance is not None}
    if not known:
        return Part(SHARE)
    drawn = sorted(known, key=lambda key: -abs(known[key][0] - known[key][1]))[:ROWS]
    words = (
        "Of each branch, |P(W)|² / |W|²: the share of W that commutes with the group, P(W) being its average over the "
        "group; and what that share is on average for a random W. A share of exactly 0 stands at the left edge."
    )
    told = [f"Drawn are the {ROWS} of {len(known)} sites that differ most from a random W."]
    found = [ErrorRow(key, {"W": known[key][0], "random W": known[key][1]}, None) for key in known if key in drawn]
    drawing = errors_on_log_axis(SHARE, "share that commutes with the group", found, words)
    table = [["site", "of W", "of a random W"], *([f"`{key}`", *map(str, pair)] for key, pair in known.items())]
    return Part(SHARE, told if len(known) > ROWS else [], drawing, table if len(known) > ROWS else [])


def spectrum_part(contents: Sequence[Mapping[str, Any]]) -> Part:
    """Return the singular values of all W, from irrep to irrep; empty where none are recorded."""
    pairs: dict[str, list[list[float]]] = {}
    for each in contents:
        largest = max((values[0] for values in each["spectrum"].values()), default=0.0)
        for pair, values in each["spectrum"].items():
            pairs.setdefault(pair, []).append([value / largest for value in values])
    if not pairs:
        return Part(SPECTRUM)
    order = sorted(pairs, key=lambda pair: -statistics.median(values[0] for values in pairs[pair]))
    named = [(pair.replace("->", "→"), _medians(pairs[pair])) for pair in order]
    lines = [Line(pair, points, faint=number >= SINGLE) for number, (pair, points) in enumerate(named)]
    words = (
        "Singular values of the blocks of W from all copies of one irrep to all copies of another, in descending "
        "order, relative to the largest one of the site; medians over the sites that have so many. Those at the level "
        "of rounding, which a W of lower rank has, are not drawn. No equivariant map "
        "has blocks between different irreps."
    )
    told = [] if len(order) <= SINGLE else [f"The {SINGLE} largest blocks have their names; CSV has all."]
    return Part(SPECTRUM, told, curves(SPECTRUM, "number", [Panel("relative singular value", lines)], words))


def _medians(found: Sequence[Sequence[float]]) -> list[tuple[float, float | None]]:
    longest = max(map(len, found))
    medians = [statistics.median([values[at] for values in found if len(values) > at]) for at in range(longest)]
    return [(number, value if value > ROUNDING else None) for number, value in enumerate(medians, start=1)]
