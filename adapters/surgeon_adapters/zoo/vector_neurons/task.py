"""Tasks on point clouds in HDF5 files: classes, or the parts of objects whose category is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from torch import nn

from surgeon.errors import TaskError
from surgeon.plan import Split
from surgeon_adapters.zoo.vector_neurons.classes import Batch, Classes, Turns
from surgeon_adapters.zoo.vector_neurons.data import Clouds, read_clouds
from surgeon_adapters.zoo.vector_neurons.models import ModelSettings, built_from
from surgeon_adapters.zoo.vector_neurons.parts import ShapeParts, known_parts

POINTS = {False: 1024, True: 2048}
"""Points per cloud that the published code takes for classes, and for parts."""


@dataclass(frozen=True)
class PointCloudTask:
    """Point clouds of HDF5 files; what is asked of them is decided by the model, see :meth:`for_model`.

    Attributes:
        data: the training clouds: a file, or a text file that lists files.
        validation: others; without them, ``fraction`` of the training clouds.
        test: the same for the test split.
        fraction: of the clouds of ``data``, per split without a file of its own.
        seed: chooses these clouds.
        points: per cloud, the first ones of each; by default up to 1024 for classes and 2048 for parts.
        batch_size: clouds per batch.
        turn: how training clouds are turned at random: "none", about "z", or by any rotation, "so3".
        smoothing: of the labels in the loss, from 0 to 1.
        metric: which one decides what is best: "accuracy", "cross_entropy", or "iou" for parts; by default accuracy,
            and iou for parts.
    """

    data: Path
    validation: str | None = None
    test: str | None = None
    fraction: float = 0.1
    seed: int = 0
    points: int | None = None
    batch_size: int = 32
    turn: Turns = "none"
    smoothing: float = 0.0
    metric: str | None = None

    def for_model(self, model: nn.Module) -> Classes:
        """Read the files for a model: parts for one that gives parts, else classes.

        Raises:
            TaskError: if an argument is unusable, or a file does not fit the model.
        """
        self._require_sound()
        settings = built_from(model)
        segments = settings is not None and settings.segments
        dtype = next((value.dtype for value in model.parameters()), torch.float32)
        clouds = self._split(self.points or POINTS[segments], dtype)
        self._require_points(clouds, settings)
        how = (self.batch_size, self.turn, self.smoothing, self.metric)
        if settings is None or settings.categories is None:
            return self._require_metric(Classes(clouds, *how))
        return self._require_metric(ShapeParts(clouds, *how, settings.categories, known_parts(clouds.values())))

    def _require_metric(self, task: Classes) -> Classes:
        if self.metric is not None and self.metric not in task.units:
            raise TaskError(
                f"expected metric to be {' or '.join(task.units)}, got {self.metric!r}: correct --task-args"
            )
        return task

    def _require_points(self, clouds: Mapping[Split, Clouds], settings: ModelSettings | None) -> None:
        for part in clouds.values():
            points, neighbours = part.points.shape[-1], settings.neighbours if settings else None
            needed = max(self.points or 1, neighbours or 1)
            if points < needed:
                reason = ", as many as the model's neighbours," if needed == neighbours else ""
                raise TaskError(
                    f"expected clouds of at least {needed} points{reason or ','} got {points}: "
                    "give other data, or other `points` in --task-args"
                )
        if settings is not None:
            _require_fitting(settings, clouds, self.data)

    def _require_sound(self) -> None:
        if not 0 < self.fraction < 0.5 or self.batch_size < 2 or not 0 <= self.smoothing < 1:
            raise TaskError(
                f"expected 0 < fraction < 0.5, a batch_size of at least 2 and 0 <= smoothing < 1, got {self.fraction}, "
                f"{self.batch_size} and {self.smoothing}: correct --task-args"
            )
        if self.turn not in get_args(Turns):
            raise TaskError(f"expected turn to be {', '.join(get_args(Turns))}, got {self.turn!r}: correct --task-args")

    def _split(self, points: int, dtype: torch.dtype) -> dict[Split, Clouds]:
        whole = read_clouds(self.data, points, dtype)
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(self.seed))
        result: dict[Split, Clouds] = {}
        others: tuple[tuple[Split, str | None], ...] = (("validation", self.validation), ("test", self.test))
        for split, path in others:
            if path is not None:
                result[split] = read_clouds(Path(path).absolute(), points, dtype)
                continue
            count = max(1, round(self.fraction * len(whole)))
            result[split], order = whole.chosen(order[:count]), order[count:]
        if len(order) < 2:
            raise TaskError(
                f"expected at least two training clouds besides those for validation and test in {str(self.data)!r}, "
                f"got {len(whole)} in all: give files of their own as "
                '--task-args \'{"validation": "FILE", "test": "FILE"}\''
            )
        return {"train": whole.chosen(order.sort().values), **result}

    def batches(self, split: Split, seed: int) -> NoReturn:
        """Refuse: the model decides what the task is."""
        raise TaskError("the task of vn has not seen its model yet: call for_model(model) first")

    def loss(self, outputs: Any, batch: Batch) -> NoReturn:
        """Refuse: the model decides what the task is."""
        raise TaskError("the task of vn has not seen its model yet: call for_model(model) first")


def _require_fitting(settings: ModelSettings, clouds: Mapping[Split, Clouds], path: Path) -> None:
    for part in clouds.values():
        if settings.segments and part.parts is None:
            raise TaskError(f"expected `pid` beside data and label for a {settings.words}, {str(path)!r} has none")
        limits = [("category" if settings.segments else "class", part.labels, settings.categories or settings.outputs)]
        if settings.segments and part.parts is not None:
            limits.append(("part", part.parts, settings.outputs))
        for what, values, limit in limits:
            if not 0 <= int(values.min()) <= int(values.max()) < limit:
                raise TaskError(
                    f"expected each {what} of the data of {str(path)!r} to be from 0 to {limit - 1} for a "
                    f"{settings.words}, got {int(values.min())} to {int(values.max())}: give the data that it is for"
                )
