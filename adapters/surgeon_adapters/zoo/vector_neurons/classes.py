"""Classification of point clouds: batches, loss, metrics and the group's action."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.errors import ShapeError
from surgeon.plan import Split
from surgeon_adapters.zoo.vector_neurons.data import Clouds

Batch = Mapping[str, Tensor]
Turns = Literal["none", "z", "so3"]


@dataclass(frozen=True)
class Classes:
    """Classification of point clouds.

    Attributes:
        clouds: of each split.
        batch_size, turn, smoothing: as in the task that reads the files.
        metric: which one decides, a key of ``units``; the first one if None.
    """

    clouds: Mapping[Split, Clouds] = field(repr=False)
    batch_size: int
    turn: Turns
    smoothing: float
    metric: str | None

    input_names: ClassVar[tuple[str, ...]] = ("points",)
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    units: ClassVar[Mapping[str, str]] = {"accuracy": "dimensionless", "cross_entropy": "nats"}

    @property
    def primary_metric(self) -> str:
        """The metric that decides."""
        return self.metric or next(iter(self.units))

    @property
    def primary_direction(self) -> str:
        """Small entropies are good, everything else is better large."""
        return "min" if self.primary_metric == "cross_entropy" else "max"

    def batches(self, split: Split, seed: int) -> CloudBatches:
        """Return the batches of a split; training clouds in another order, and turned otherwise, for each seed."""
        return CloudBatches(self.clouds[split], self.batch_size, seed if split == "train" else None, self.turn)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits of shape (b, classes)."""
        return first_output(model(batch["points"]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return functional.cross_entropy(outputs, batch["labels"], label_smoothing=self.smoothing)

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        """Return sums over clouds and their number, of correct answers and of cross-entropies."""
        logits, labels = outputs.detach().double(), batch["labels"]
        entropy = functional.cross_entropy(logits, labels, reduction="sum")
        number = float(len(labels))
        correct = float((logits.argmax(-1) == labels).sum())
        return {"accuracy": (correct, number), "cross_entropy": (float(entropy), number)}

    def act(self, g: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Turn the points by a matrix of shape (3, 3); labels stay.

        Raises:
            ShapeError: if g has another shape.
        """
        if g.shape != (3, 3):
            raise ShapeError(f"expected a group element of shape (3, 3), got {tuple(g.shape)}: use SO3 or O3")
        points = batch["points"]
        return {**batch, "points": (g.to(points.device, torch.float64) @ points.double()).to(points.dtype)}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Return the logits as they are: they are invariant."""
        return outputs


@dataclass(frozen=True)
class CloudBatches:
    """Batches of clouds, made while they are drawn.

    Attributes:
        clouds: the clouds.
        size: clouds per batch; a last training batch of a single cloud is left out, since batch normalisation cannot
            train on it.
        seed: of the order and the turns; None keeps the order and turns nothing.
        turn: how clouds are turned at random.
        categories: number of columns of one-hot categories; None without parts.
    """

    clouds: Clouds
    size: int
    seed: int | None
    turn: Turns = "none"
    categories: int | None = None

    def __len__(self) -> int:
        count = len(self.clouds)
        return count // self.size + (count % self.size > (0 if self.seed is None else 1))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed or 0)
        order = torch.arange(len(self.clouds))
        if self.seed is not None:
            order = torch.randperm(len(order), generator=generator)
        for rows in torch.split(order, self.size)[: len(self)]:
            yield self._batch(self.clouds.chosen(rows), generator)

    def _batch(self, clouds: Clouds, generator: torch.Generator) -> dict[str, Tensor]:
        points = clouds.points
        if self.seed is not None and self.turn != "none":
            points = (_turns(self.turn, len(clouds), generator) @ points.double()).to(points.dtype)
        if self.categories is None or clouds.parts is None:
            return {"points": points, "labels": clouds.labels}
        categories = functional.one_hot(clouds.labels, self.categories).to(points.dtype)
        return {"points": points, "categories": categories, "parts": clouds.parts}


def _turns(kind: Turns, count: int, generator: torch.Generator) -> Tensor:
    """Return random rotations of shape (count, 3, 3), float64: about the z axis, or uniformly distributed."""
    if kind == "so3":
        q, r = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
        q = q * r.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)  # makes the distribution uniform
        turned: Tensor = q * torch.det(q)[:, None, None]
        return turned
    angle = 2 * math.pi * torch.rand(count, generator=generator, dtype=torch.float64)
    turns = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    turns[:, 0, 0], turns[:, 0, 1] = angle.cos(), -angle.sin()
    turns[:, 1, 0], turns[:, 1, 1] = angle.sin(), angle.cos()
    return turns


def first_output(outputs: Any) -> Tensor:
    """Return the logits; the published classes return a second value that is always None."""
    logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
    return logits
