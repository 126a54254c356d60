"""Adapter for SEGNN: published checkpoints by their keys, and a task on N-body files.

The layers inside are e3nn's, whose adapter annotates them: a branch lies on a tensor product, before the gate.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckpointError, TaskError
from surgeon.plan import Task
from surgeon.registry import Adapter
from surgeon.support.imports import call_with
from surgeon_adapters.zoo.segnn.models import FACTORY, rebuilt
from surgeon_adapters.zoo.segnn.task import NBodyTask


class SEGNNAdapter(Adapter):
    """SEGNN from its state dict to its state dict."""

    name = "segnn"
    groups = ("O3", "SO3", "E3", "SE3")

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Return the network whose keys and shapes these are, with the irreps of the published script."""
        try:
            return rebuilt(tensors)
        except CheckpointError:
            return None

    def recognise(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say what of a SEGNN differs from those of the published script."""
        try:
            rebuilt(tensors)
        except CheckpointError as error:
            return str(error)
        return None

    def describe(self, module: nn.Module) -> Mapping[str, Any] | None:
        """Return the settings of a network of this package."""
        network = sys.modules.get("surgeon_adapters.zoo.segnn.network")
        if network is None or type(module) is not network.SEGNN:
            return None
        settings: Any = module.settings
        return {"factory": FACTORY, "args": asdict(settings)}

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on N-body files, of which one, ``loc_train_*.npy``, is named."""
        task: Task = call_with(functools.partial(NBodyTask, data), arguments, "the task of segnn", TaskError)
        return task


adapter = SEGNNAdapter()
