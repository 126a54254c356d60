"""What an ONNX file says about itself: group, units, and how its inputs and outputs transform."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference.axis import THREE_DIMENSIONAL
from surgeon.finding.inference.hypotheses import infer_type
from surgeon.finding.inference.probe import Elements, TensorProbe
from surgeon.opening.task_calls import can_act, task_symmetry
from surgeon.plan import Task
from surgeon.support.trees import tensors_in

_VECTOR = "axes v"

Named = tuple[Any, Mapping[int, str]]
"""Nested data, and names of some of its tensors by position."""


def facts(task: Task, group: Group | None, inputs: Named, outputs: Named) -> dict[str, str]:
    """Return the metadata of a file: ``group``, ``units.NAME``, ``irreps.NAME``.

    How a tensor transforms is measured on what the task's ``act`` and ``act_output`` make of it; indices have no entry.

    Args:
        task: may have ``units``.
        group: None if it is not known.
        inputs: an example batch in float64.
        outputs: those of the batch, in float64.
    """
    found = {f"units.{name}": str(unit) for name, unit in (getattr(task, "units", None) or {}).items()}
    if group is None:
        return found
    found["group"] = group.name
    if can_act(task):
        symmetry = task_symmetry(task, group)
        for act, named in ((symmetry.act, inputs), (symmetry.expected, outputs)):
            found |= {f"irreps.{name}": words for name, words in _transformations(group, act, *named)}
    return found


def _transformations(group: Group, act: Any, tree: Any, names: Mapping[int, str]) -> Iterator[tuple[str, str]]:
    elements = Elements.draw(group, torch.Generator().manual_seed(0))
    turns = dataclasses.replace(elements, checks=_unmoved(group, elements.checks))
    runs = [tensors_in(act(g, tree)) for g in turns.all()]
    shifted = tensors_in(act(_shift(group), tree))
    for index, name in names.items():
        kind = infer_type(TensorProbe(turns, tuple(run[index] for run in runs))).type
        if kind is not None:
            moves = not torch.equal(shifted[index], runs[0][index])
            yield name, _words(kind, group) + (", moved by translations" if moves else "")


def _unmoved(group: Group, elements: Tensor) -> Tensor:
    """Return elements without their translations, under which coordinates transform linearly."""
    result = elements.clone()
    if group.affine:
        result[..., :-1, -1] = 0
    return result


def _shift(group: Group) -> Tensor:
    """Return a pure translation; the identity if the group has none."""
    shift = torch.eye(group.dimension, dtype=torch.float64)
    if group.affine:
        shift[:-1, -1] = 1
    return shift


def _words(kind: TensorType, group: Group) -> str:
    if group.name not in THREE_DIMENSIONAL:
        return str(kind)
    if kind.is_invariant:
        return "1x0e"
    text = str(kind)
    return "1x1o" + text.removeprefix(_VECTOR) if str(kind.rho) == _VECTOR else text
