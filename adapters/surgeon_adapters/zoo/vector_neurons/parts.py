"""Part segmentation of point clouds: batches, loss and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.plan import Split
from surgeon_adapters.zoo.vector_neurons.classes import Batch, Classes, CloudBatches, first_output
from surgeon_adapters.zoo.vector_neurons.data import Clouds


@dataclass(frozen=True)
class ShapeParts(Classes):
    """A part for each point of an object whose category is known.

    Attributes:
        categories: number of categories that the model is told.
        known: category to the parts that the files have in it.
    """

    categories: int
    known: Mapping[int, tuple[int, ...]] = field(repr=False)

    input_names: ClassVar[tuple[str, ...]] = ("points", "categories")
    units: ClassVar[Mapping[str, str]] = {
        "iou": "dimensionless",
        "accuracy": "dimensionless",
        "cross_entropy": "nats",
    }

    def batches(self, split: Split, seed: int) -> CloudBatches:
        """Return batches of ``points``, one-hot ``categories`` (b, categories), and ``parts`` (b, n)."""
        return replace(super().batches(split, seed), categories=self.categories)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits of shape (b, n, parts)."""
        return first_output(model(batch["points"], batch["categories"]))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over points in nats."""
        return functional.cross_entropy(outputs.flatten(0, 1), batch["parts"].flatten(), label_smoothing=self.smoothing)

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        """Return the mean intersection over union per object, and accuracy and cross-entropy per point.

        Answers are taken among the parts of the object's category; a part that neither label nor answer has counts 1.
        """
        logits, parts = outputs.detach().double(), batch["parts"]
        entropy = functional.cross_entropy(logits.flatten(0, 1), parts.flatten(), reduction="sum")
        correct, overlap, number = 0.0, 0.0, float(parts.numel())
        for scores, expected, category in zip(logits, parts, batch["categories"].argmax(-1).tolist(), strict=True):
            known = torch.tensor(self.known[category], device=scores.device)
            answer = known[scores[:, known].argmax(-1)]
            correct += float((answer == expected).sum())
            overlap += _mean_overlap(answer, expected, known)
        return {
            "iou": (overlap, float(len(parts))),
            "accuracy": (correct, number),
            "cross_entropy": (float(entropy), number),
        }


def _mean_overlap(answer: Tensor, expected: Tensor, known: Tensor) -> float:
    """Return the mean over parts of intersection by union; a part that neither of the two has counts 1."""
    mine, theirs = answer == known[:, None], expected == known[:, None]
    union = (mine | theirs).sum(-1).double()
    ratio = (mine & theirs).sum(-1).double() / union.clamp(min=1)
    return float(torch.where(union > 0, ratio, torch.ones_like(ratio)).mean())


def known_parts(splits: Iterable[Clouds]) -> dict[int, tuple[int, ...]]:
    """Return the parts that each category has in any split."""
    found: dict[int, set[int]] = {}
    for clouds in splits:
        for label, parts in zip(clouds.labels.tolist(), clouds.parts if clouds.parts is not None else (), strict=True):
            found.setdefault(label, set()).update(parts.unique().tolist())
    return {label: tuple(sorted(parts)) for label, parts in found.items()}
