"""Adapter for vector neurons: annotations, published checkpoints by their keys, and a task on HDF5 files.

Layers are known by class names that start with "VN", as in the authors' public code and its copies. Their features are
(b, c, 3, ...); an ``nn.Linear`` inside sees channels and the last axis exchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.build import axes
from surgeon.errors import CheckpointError, TaskError
from surgeon.plan import Task
from surgeon.registry import Adapter, Proposal, Refusal
from surgeon.support.imports import call_with
from surgeon_adapters.zoo.vector_neurons.models import FACTORY, build, built_from, recognised
from surgeon_adapters.zoo.vector_neurons.task import PointCloudTask

CHOOSING = "VNMaxPool"


class VectorNeuronAdapter(Adapter):
    """Vector neurons from their published files to the same kind of file."""

    name = "vn"
    groups = ("SO3", "O3")

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | Mapping[str, Proposal | Refusal] | None:
        """Answer for the linear children of a module of the family."""
        if not type(module).__name__.startswith("VN"):
            return None
        answers: dict[str, Proposal | Refusal] = {}
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and name.startswith(("map_to_", "vn_lin")):
                answers[name] = _proposal(child, group)
                if type(module).__name__ == CHOOSING:
                    answers[name] = Refusal("it only chooses among vectors: no gradient reaches it", "no effect")
        return answers or None

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Return the published network whose keys and shapes these are, with the published number of neighbours."""
        try:
            settings = recognised(tensors)
        except CheckpointError:
            return None
        return None if settings is None else build(**asdict(settings))

    def recognise(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say which network a state dict nearly is, and what differs."""
        try:
            recognised(tensors)
        except CheckpointError as error:
            return str(error)
        return None

    def describe(self, module: nn.Module) -> Mapping[str, Any] | None:
        """Return the settings of a network of this package."""
        settings = built_from(module)
        return None if settings is None else {"factory": FACTORY, "args": asdict(settings)}

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on HDF5 files of point clouds: classes, or parts if the model gives parts."""
        task: Task = call_with(functools.partial(PointCloudTask, data), arguments, "the task of vn", TaskError)
        return task


def _proposal(linear: nn.Linear, group: Group) -> Proposal | Refusal:
    if linear.bias is not None:
        return Refusal("it adds a bias to vectors, which is not equivariant", "not equivariant")
    if not linear.weight.requires_grad:
        return Refusal("its weights are frozen", "frozen")
    rho_in, rho_out = (axes(group, "v c", {"c": size}) for size in (linear.in_features, linear.out_features))
    return Proposal("input", "linear", rho_in, rho_out, axes_in=_axes, axes_out=_axes)


def _axes(count: int) -> tuple[int, ...]:
    """Components and channels, of features with ``count`` axes of which axis 1 and the last were exchanged."""
    return ((1 if count == 3 else 2) - count, -1)


adapter = VectorNeuronAdapter()
