"""What the branches of a run do over its training, site by site (Fig. 3 of the paper)."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from surgeon.report.figures import Line, Panel, curves
from surgeon.report.page import Part

USE = "Branches over the training"

SINGLE = 6
"""Sites, at most, of which each has a line with its name; of more the median and the largest have."""


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
