"""From what a user types to a group."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.named import CHOICES, named_group
from surgeon.errors import GroupError
from surgeon.support.imports import importable


def parse_group(name: str | Group) -> Group:
    """Return the group with this name; a group is returned as it is.

    Args:
        name: SO2, O2, SO3, O3, SE3, E3, SO13 (the component of the identity), O13, C<n>, or another of those that
            docs/any_model.md lists; case, brackets, commas and blanks are ignored. Or ``module:function``: the function
            is imported and called, and returns a :class:`Group` or a tuple ``(algebra, elements)`` of array-likes,
            either of which may be None.

    Returns:
        The group. One from ``module:function`` is named so, unless the function returned a built-in one.

    Raises:
        GroupError: if there is no such group, or the function fails.

    Example:
        >>> parse_group("so(1,3)"), parse_group("C 4")
        (Group(SO13), Group(C4))
    """
    if isinstance(name, Group):
        return name
    if not isinstance(name, str):
        raise GroupError(f"expected a group or its name, got {type(name).__name__}: choose one of {CHOICES}")
    if ":" in name:
        return _group_from_function(name)
    group = named_group(name)
    if group is None:
        raise GroupError(
            f"expected the name of a group, got {name!r}: choose one of {CHOICES}, or write module:function"
        )
    return group


def _group_from_function(name: str) -> Group:
    module_name, _, function_name = name.partition(":")
    try:
        with importable(Path.cwd()):
            result: Any = getattr(importlib.import_module(module_name), function_name)()
    except Exception as error:
        raise GroupError(
            f"expected module:function that returns a group, but {name!r} fails with {type(error).__name__}: {error}; "
            f"run from the folder that holds the module, or choose one of {CHOICES}"
        ) from error
    if isinstance(result, Group):
        # The name is what a saved plan holds: it must lead back to this group.
        return result if named_group(result.name) is not None else dataclasses.replace(result, name=name)
    if isinstance(result, tuple) and len(result) == 2:
        return group_from_generators(name, _as_tensor(name, result[0]), _as_tensor(name, result[1]))
    raise GroupError(
        f"expected {name} to return a Group or a tuple (algebra, elements), got {type(result).__name__}: "
        "see surgeon.algebra.groups.group_from_generators"
    )


def _as_tensor(name: str, values: Any) -> Tensor | None:
    if values is None:
        return None
    try:
        return torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GroupError(
            f"expected {name} to return arrays of numbers of shape (n, k, k), got {type(values).__name__}: {error}"
        ) from error
