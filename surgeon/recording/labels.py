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
    text = text.replace("pseudo-tensor axes", "pseudo-axes")
    for axes, kind in (("(?:v c|c v)", "vectors"), ("v w c", "tensors of rank 2")):
        text = re.sub(rf"(pseudo-)?axes {axes} \(c=(\d+)\)", rf"\2 \1{kind}", text)
    for axes, kind in (("v", "vectors"), ("v w", "tensors of rank 2")):
        text = re.sub(rf"(pseudo-)?axes {axes}(?! \w)", rf"1 \1{kind}", text)
    text = re.sub(r"(\d+) x trivial", r"\1 scalars", text.replace("pseudo-axes", "pseudo-tensor axes"))
    return re.sub(r"\b1 (pseudo-)?(vector|scalar|tensor)s\b", r"1 \1\2", text)


def arrow(site: Site, arrow: str = "->") -> str:
    """Return both representations of a site, and the axes that they are on if these are not the last."""
    text = f" {arrow} ".join(representation_in_words(rho) for rho in (site.rho_in, site.rho_out))
    ends = dict.fromkeys((site.axes_in, site.axes_out))
    if set(ends) == {(-1,)}:
        return text
    return f"{text} (axes {' -> '.join(', '.join(map(str, axes)) for axes in ends)})"
