"""Real representations on a flat feature axis, applied block by block."""

from surgeon.representations.build import Layout, axes, irreps, regular, trivial
from surgeon.representations.core import Block, Representation
from surgeon.representations.factors import Factor
from surgeon.representations.operator import BlockOperator, OperatorBlock

__all__ = [
    "Block",
    "BlockOperator",
    "Factor",
    "Layout",
    "OperatorBlock",
    "Representation",
    "axes",
    "irreps",
    "regular",
    "trivial",
]
