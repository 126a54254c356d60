"""Fine-tuning task: the next velocity field of smoke from the last few, under quarter turns or changes of scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from data import Sequences, read_sequences
from torch import Tensor, nn

from surgeon.errors import TaskError, UsageError
from surgeon.plan import Split

Batch = Mapping[str, Tensor]

FOLDER = Path(__file__).parent
VARIANTS = ("rotation", "scale")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
TRAINED, SEEN = 0.6, 0.8
"""Shares of each experiment's windows before which they are for training, and for training or validation."""


@dataclass(frozen=True)
class SmokeTask:
    """Prediction of velocity fields.

    Windows early in time train, later ones validate, the last ones are the test "future". Experiments named in
    ``held_out`` take no part in training or validation: all their windows are the test "domain".

    Attributes:
        path: data, see :func:`data.read_sequences`.
        experiments: only those whose names begin so.
        inputs: frames that the network sees.
        steps: frames to predict one after the other, each from what was predicted before.
        held_out: names of experiments.
        test: "future" or "domain".
        batch_size: windows per training batch.
    """

    path: Path
    experiments: str = ""
    inputs: int = 2
    steps: int = 1
    held_out: tuple[str, ...] = ()
    test: str = "future"
    batch_size: int = 8

    primary_metric: ClassVar[str] = "rmse"
    primary_direction: ClassVar[str] = "min"
    input_names: ClassVar[tuple[str, ...]] = ("frames",)
    output_names: ClassVar[tuple[str, ...]] = ("next",)
    units: ClassVar[Mapping[str, str]] = {"rmse": "cells per step", "mse": "squared cells per step"}

    def batches(self, split: Split, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield ``frames`` (b, 2 inputs, h, w) and ``target`` (b, 2 steps, h, w).

        Args:
            split: which windows.
            seed: order of the training windows.

        Raises:
            UsageError: if the split is unknown.
        """
        if split not in SPLITS:
            raise UsageError(f"expected a split out of {', '.join(SPLITS)}, got {split!r}: choose one of these")
        windows = self._windows[split]
        if split == "train":
            order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed)).tolist()
            windows = [windows[index] for index in order]
        for first in range(0, len(windows), self.batch_size):
            yield self._batch(windows[first : first + self.batch_size])

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return predictions (b, 2 steps, h, w)."""
        frames, predictions = batch["frames"], []
        for _ in range(self.steps):
            predictions.append(model(frames))
            frames = torch.cat([frames[:, 2:], predictions[-1]], dim=1)
        return torch.cat(predictions, dim=1)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error."""
        return (outputs - batch["target"]).square().mean()

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        """Return sums over windows, and their number, of mean squared errors and of their roots."""
        squares = (outputs.detach() - batch["target"]).double().square().flatten(1).mean(1)
        number = float(len(squares))
        return {"rmse": (float(squares.sqrt().sum()), number), "mse": (float(squares.sum()), number)}

    def act(self, g: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return a new batch with all fields moved by a rotation (2, 2) or a change of scale (1, 1)."""
        return {name: move(g, fields) for name, fields in batch.items()}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Return the predictions moved by g."""
        return move(g, outputs)

    @cached_property
    def _sequences(self) -> Sequences:
        return read_sequences(self.path)

    @cached_property
    def _windows(self) -> dict[str, list[tuple[int, int]]]:
        """Experiment and first frame of each window, by split."""
        found: dict[str, list[tuple[int, int]]] = {split: [] for split in SPLITS}
        frames = self._sequences.velocity.shape[1]
        count = frames - self.inputs - self.steps + 1
        if count < 3:
            raise TaskError(
                f"expected at least {self.inputs + self.steps + 2} frames of each experiment in {str(self.path)!r}, "
                f"got {frames}: take fewer inputs or steps"
            )
        first, second = max(1, math.floor(TRAINED * count)), min(count - 1, max(2, math.floor(SEEN * count)))
        for number, name in self._chosen:
            if name in self.held_out:
                found["test"] += [(number, start) for start in range(count) if self.test == "domain"]
                continue
            found["train"] += [(number, start) for start in range(first)]
            found["validation"] += [(number, start) for start in range(first, second)]
            found["test"] += [(number, start) for start in range(second, count) if self.test == "future"]
        return found

    @property
    def _chosen(self) -> list[tuple[int, str]]:
        names = self._sequences.names
        chosen = [(number, name) for number, name in enumerate(names) if name.startswith(self.experiments)]
        unknown = sorted(set(self.held_out) - {name for _, name in chosen})
        if unknown or len(chosen) <= len(self.held_out):
            raise TaskError(
                f"expected experiments of {str(self.path)!r}, whose names are {', '.join(names)}, got "
                f"{self.experiments!r} as their beginning and {list(self.held_out)} to hold out: choose among these, "
                "and leave some to train on"
            )
        return chosen

    def _batch(self, windows: list[tuple[int, int]]) -> dict[str, Tensor]:
        velocity, middle = self._sequences.velocity, self.inputs
        parts = [velocity[number, start : start + middle + self.steps] for number, start in windows]
        return {
            "frames": torch.stack([part[:middle].flatten(0, 1) for part in parts]),
            "target": torch.stack([part[middle:].flatten(0, 1) for part in parts]),
        }


def move(g: Tensor, fields: Tensor) -> Tensor:
    """Move vector fields (b, 2 n, h, w) by quarter turns, or by whole powers of a change of scale.

    Raises:
        TaskError: if g is neither, or the fields have no point in the centre to shrink about.
    """
    return shrink(g, fields) if g.shape == (1, 1) else turn(g, fields)


def turn(g: Tensor, fields: Tensor) -> Tensor:
    """Turn positions about the centre, and the vectors themselves."""
    turned = g.detach().to("cpu", torch.float64)
    quarters = round(float(torch.atan2(turned[1, 0], turned[0, 0])) / (math.pi / 2)) % 4
    exact = torch.linalg.matrix_power(torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64), quarters)
    if g.shape != (2, 2) or not torch.allclose(turned, exact, atol=1e-6):
        raise TaskError(f"expected quarter turns of the plane, got {turned.tolist()}: use the group C4")
    # Rows run along y and columns along x, so that a turn from x to y goes from columns to rows.
    moved = torch.rot90(fields, -quarters, (-2, -1)).unflatten(1, (-1, 2))
    return torch.einsum("vw,bnwij->bnvij", exact.to(fields), moved).flatten(1, 2)


def shrink(g: Tensor, fields: Tensor) -> Tensor:
    """Return ``g v(u / g)`` about the centre, 0 outside: lengths shrink, and so do velocities in cells per step."""
    step, size = round(1 / float(g)), fields.shape[-1]
    if abs(1 / float(g) - step) > 1e-6 or fields.shape[-2] != size or size % 2 == 0:
        raise TaskError(
            f"expected to shrink square fields of an odd size by a whole number, got {tuple(fields.shape[-2:])} and "
            f"{1 / float(g):g}: use the group SCALE2 and fields with a point in the centre"
        )
    kept, half = size // 2 // step, size // 2
    rows = slice(half - step * kept, half + step * kept + 1, step)
    inside = slice(half - kept, half + kept + 1)
    moved = torch.zeros_like(fields)
    moved[..., inside, inside] = float(g) * fields[..., rows, rows]
    return moved


def make_task(
    variant: str = "rotation",
    data: str = "",
    experiments: str | None = None,
    inputs: int = 2,
    steps: int = 1,
    held_out: tuple[str, ...] = (),
    test: str = "future",
    batch_size: int = 8,
) -> SmokeTask:
    """Return the task.

    Args:
        variant: which of the shipped files, "rotation" or "scale".
        data: a file or folder of your own instead, see :func:`data.read_sequences`.
        experiments: beginning of the names of those to use; default "2_", the stronger buoyancy, of a shipped file, on
            whose "1_" the checkpoints were trained, and all of your own data.
        inputs, steps, held_out, test, batch_size: see :class:`SmokeTask`.

    Raises:
        UsageError: if an argument is unknown or too small.

    Example:
        >>> batch = next(make_task(batch_size=3).batches("train", seed=0))
        >>> tuple(batch["frames"].shape), tuple(batch["target"].shape)
        ((3, 4, 25, 25), (3, 2, 25, 25))
    """
    if variant not in VARIANTS or test not in ("future", "domain"):
        raise UsageError(
            f"expected a variant out of {', '.join(VARIANTS)} and the test future or domain, got {variant!r} and "
            f"{test!r}: choose one of these"
        )
    if test == "domain" and not held_out:
        raise UsageError("expected experiments in held_out for the test domain, got none: name at least one")
    if min(inputs, steps, batch_size) < 1:
        raise UsageError(f"expected positive numbers, got {inputs}, {steps} and {batch_size}: give larger ones")
    path = Path(data) if data else FOLDER / f"smoke_{variant}.npz"
    if experiments is None:
        experiments = "" if data else "2_"
    return SmokeTask(path, experiments, inputs, steps, tuple(held_out), test, batch_size)
