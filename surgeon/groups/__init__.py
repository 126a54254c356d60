"""Matrix Lie groups and finite groups, built in or given by generators."""

from surgeon.groups.core import Group
from surgeon.groups.custom import group_from_generators
from surgeon.groups.parse import parse_group

__all__ = ["Group", "group_from_generators", "parse_group"]
