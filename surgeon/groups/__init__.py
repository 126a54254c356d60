"""Matrix Lie groups and finite groups, built in or given by generators."""

from surgeon.groups.core import OTHER_ELEMENTS, Group, GroupElement
from surgeon.groups.custom import group_from_generators
from surgeon.groups.named import rotations_of
from surgeon.groups.parse import parse_group

__all__ = ["OTHER_ELEMENTS", "Group", "GroupElement", "group_from_generators", "parse_group", "rotations_of"]
