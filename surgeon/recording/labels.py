"""Representations as a user of the field would say them."""

from __future__ import annotations

import re

from surgeon.algebra.representations.core import Representation
from surgeon.plan import Site


def representation_in_words(rho: Representation) -> str:
    """Return "16x0e+8x1o", "8 vectors", "4 scalars", ... for a representation.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> from surgeon.algebra.representations import axes
        >>> representation_in_words(axes(parse_group("SO3"), "v c", {"c": 8}))
        '8 vectors'
    """
    text = str(rho).replace(" (mul_ir)", "")
    text = re.sub(r"axes (?:v c|c v) \(c=(\d+)\)", r"\1 vectors", text)
    text = re.sub(r"axes v w c \(c=(\d+)\)", r"\1 tensors of rank 2", text)
    text = re.sub(r"(\d+) x trivial", r"\1 scalars", re.sub(r"axes v\b", "1 vector", text))
    return re.sub(r"\b1 (vector|scalar|tensor)s\b", r"1 \1", text)


def arrow(site: Site, arrow: str = "->") -> str:
    """Return both representations of a site, and the axes that they are on if these are not the last."""
    text = f" {arrow} ".join(representation_in_words(rho) for rho in (site.rho_in, site.rho_out))
    ends = dict.fromkeys((site.axes_in, site.axes_out))
    if set(ends) == {(-1,)}:
        return text
    return f"{text} (axes {' -> '.join(', '.join(map(str, axes)) for axes in ends)})"
