"""Matrix Lie groups and finite groups, built in or given by generators."""

from surgeon.algebra.groups.core import OTHER_ELEMENTS, Group, GroupElement
from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.named import rotations_of
from surgeon.algebra.groups.parse import parse_group

__all__ = ["OTHER_ELEMENTS", "Group", "GroupElement", "group_from_generators", "parse_group", "rotations_of"]
