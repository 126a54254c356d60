"""Real representations on a flat feature axis, applied block by block."""

from surgeon.representations.build import Layout, axes, irreps, matrices, on_grid, regular, repeated, trivial
from surgeon.representations.core import Block, Representation
from surgeon.representations.factors import Factor
from surgeon.representations.operator import BlockOperator, OperatorBlock
from surgeon.representations.tensors import TensorType

__all__ = [
    "Block",
    "BlockOperator",
    "Factor",
    "Layout",
    "OperatorBlock",
    "Representation",
    "TensorType",
    "axes",
    "irreps",
    "matrices",
    "on_grid",
    "regular",
    "repeated",
    "trivial",
]
