"""Real representations on a flat feature axis, applied block by block."""

from surgeon.algebra.representations.build import (
    Layout,
    axes,
    irreps,
    matrices,
    on_grid,
    regular,
    repeated,
    representation_from,
    trivial,
)
from surgeon.algebra.representations.core import Block, Representation
from surgeon.algebra.representations.factors import Factor
from surgeon.algebra.representations.operator import BlockOperator, OperatorBlock
from surgeon.algebra.representations.tensors import TensorType

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
    "representation_from",
    "trivial",
]
