"""Adapter for Equiformer on MD17: from its public checkpoints to its public checkpoints, with a task on their data.

The layers inside are e3nn's, whose adapter annotates them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckpointError, TaskError
from surgeon.plan import Task
from surgeon.registry import Adapter
from surgeon.support.imports import call_with
from surgeon_adapters.zoo.equiformer import build_from
from surgeon_adapters.zoo.equiformer.recognition import ADVICE, candidates, is_equiformer


class EquiformerAdapter(Adapter):
    """Equiformer from its file to its file."""

    name = "equiformer"
    groups = ("SO3", "O3", "SE3", "E3")

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Return the network of a state dict with the keys of the public code; None for other keys.

        The cutoff is read off the buffers of exponential functions; otherwise it is 5 Angstrom, the published one.

        Raises:
            CheckpointError: if it is an Equiformer, but a variant that is not known or not told by the shapes.
        """
        if not is_equiformer(tensors):
            return None
        shapes = _shapes(tensors)
        for module in map(build_from, candidates(tensors)):
            if _shapes(module.state_dict()) == shapes:
                return module
        raise CheckpointError(
            "the keys are those of an Equiformer, but no settings that this package knows give these shapes: " + ADVICE
        )

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on an MD17 or rMD17 file."""
        from surgeon_adapters.zoo.equiformer.task import EquiformerTask

        task: Task = call_with(functools.partial(EquiformerTask, data), arguments, "the task of equiformer", TaskError)
        return task


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


adapter = EquiformerAdapter()
