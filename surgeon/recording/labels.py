"""Representations as a user of the field would say them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import representation_from
from surgeon.plan import Site


def representation_in_words(rho: Mapping[str, Any], group: str) -> str:
    """Return "16x0e+8x1o", "8 vectors", "4 scalars", ... for a representation as data.

    Example:
        >>> representation_in_words({"axes": "v c", "sizes": {"c": 8}}, "SO3")
        '8 vectors'
    """
    text = str(representation_from(parse_group(group), rho)).replace(" (mul_ir)", "")
    text = re.sub(r"axes (?:v c|c v) \(c=(\d+)\)", r"\1 vectors", text)
    text = re.sub(r"axes v w c \(c=(\d+)\)", r"\1 tensors of rank 2", text)
    text = re.sub(r"(\d+) x trivial", r"\1 scalars", re.sub(r"axes v\b", "1 vector", text))
    return re.sub(r"\b1 (vector|scalar|tensor)s\b", r"1 \1", text)


def arrow(site: Site, group: str, arrow: str = "->") -> str:
    """Return both representations of a site, and the axes that they are on if these are not the last."""
    text = f" {arrow} ".join(representation_in_words(rho, group) for rho in (site.rho_in, site.rho_out))
    ends = dict.fromkeys((site.axes_in, site.axes_out))
    if set(ends) == {(-1,)}:
        return text
    return f"{text} (axes {' -> '.join(', '.join(map(str, axes)) for axes in ends)})"
