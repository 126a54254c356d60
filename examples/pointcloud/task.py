"""Fine-tuning task: tell ten kinds of surfaces from the points on them.

Clouds are generated, so that nothing has to be downloaded. By default all stand upright, as scanned objects mostly do:
the labels are invariant under rotations, but the distribution of the data is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from shapes import SHAPES, sample_clouds
from torch import Tensor, nn
from torch.nn import functional

from surgeon.errors import ShapeError, UsageError
from surgeon.plan import Split
from surgeon_adapters.zoo.vector_neurons.dgcnn import VNDGCNN
from surgeon_adapters.zoo.vector_neurons.layers import Pooling
from surgeon_adapters.zoo.vector_neurons.pointnet import VNPointNet

Batch = Mapping[str, Tensor]

EVALUATION_BATCH = 100
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
NETWORKS: Mapping[str, type[VNPointNet] | type[VNDGCNN]] = {"pointnet": VNPointNet, "dgcnn": VNDGCNN}


@dataclass(frozen=True)
class PointCloudTask:
    """Classification of point clouds; data are generated on first use and kept in memory.

    Attributes:
        points: number of points per cloud.
        count: number of training clouds.
        held_out: number of clouds in each of the two other splits.
        network: "pointnet" or "dgcnn".
        base: width of the network; 64 gives the published shapes.
        neighbours: nearest neighbours that the network looks at.
        pooling: how the network pools neighbours, "mean" or "max".
        batch_size: clouds per training batch.
        noise: standard deviation of each coordinate, relative to a radius of about 1.
        rotate: turn every cloud by a random rotation.
        data_seed: seed of all three splits.
        dtype: dtype of the batches; clouds are drawn in float64.
    """

    points: int = 64
    count: int = 400
    held_out: int = 200
    network: str = "pointnet"
    base: int = 24
    neighbours: int = 10
    pooling: Pooling = "mean"
    batch_size: int = 20
    noise: float = 0.02
    rotate: bool = False
    data_seed: int = 0
    dtype: torch.dtype = torch.float32
    _cache: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    primary_metric: ClassVar[str] = "accuracy"
    primary_direction: ClassVar[str] = "max"
    input_names: ClassVar[tuple[str, ...]] = ("points",)
    output_names: ClassVar[tuple[str, ...]] = ("logits",)
    units: ClassVar[Mapping[str, str]] = {"accuracy": "dimensionless", "cross_entropy": "nats"}

    def model(self) -> nn.Module:
        """Return the network with fresh weights, one class per shape."""
        return NETWORKS[self.network](len(SHAPES), self.base, self.neighbours, self.pooling)

    def batches(self, split: Split, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches: ``points`` of shape (b, 3, n) and ``labels`` of shape (b,), long.

        Args:
            split: which clouds.
            seed: order of the training clouds; the other splits keep theirs.

        Returns:
            Fresh tensors at each call; a last training batch of a single cloud is left out.

        Raises:
            UsageError: if the split is unknown.
        """
        data = self._data(split)
        order = torch.arange(len(data["labels"]))
        if split == "train":
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, self.batch_size if split == "train" else EVALUATION_BATCH):
            if split != "train" or len(rows) > 1:  # batch normalisation cannot train on a single cloud
                yield {name: values[rows] for name, values in data.items()}

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return logits of shape (b, classes)."""
        logits: Tensor = model(batch["points"])
        return logits

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return functional.cross_entropy(outputs, batch["labels"])

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        """Return sums over clouds and their number, of correct answers and of cross-entropies."""
        logits, labels = outputs.detach().double(), batch["labels"]
        entropy = functional.cross_entropy(logits, labels, reduction="sum")
        correct = (logits.argmax(-1) == labels).sum()
        number = float(len(labels))
        return {"accuracy": (float(correct), number), "cross_entropy": (float(entropy), number)}

    def act(self, g: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Turn the points; labels stay.

        Args:
            g: a rotation or reflection, shape (3, 3), float64.
            batch: as from :meth:`batches`.

        Returns:
            A new batch.

        Raises:
            ShapeError: if g has another shape.
        """
        if g.shape != (3, 3):
            raise ShapeError(
                f"expected a group element of shape (3, 3), got {tuple(g.shape)} in the point cloud task: use SO3 or O3"
            )
        points = batch["points"]
        turn = g.to(points.device, torch.float64)
        return {**batch, "points": (turn @ points.double()).to(points.dtype)}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Return the logits as they are: they are invariant."""
        return outputs

    def _data(self, split: Split) -> dict[str, Tensor]:
        if split not in SPLITS:
            raise UsageError(f"expected a split out of {', '.join(SPLITS)}, got {split!r}: choose one of these")
        if split not in self._cache:
            count = self.count if split == "train" else self.held_out
            seed = (self.data_seed, SPLITS.index(split))
            clouds = sample_clouds(count, self.points, self.noise, self.rotate, seed)
            self._cache[split] = {"points": clouds.points.to(self.dtype), "labels": clouds.labels}
        return self._cache[split]


def make_task(
    points: int = 64,
    count: int = 400,
    held_out: int = 200,
    network: str = "pointnet",
    base: int = 24,
    neighbours: int = 10,
    pooling: Pooling = "mean",
    batch_size: int = 20,
    noise: float = 0.02,
    rotate: bool = False,
    data_seed: int = 0,
    dtype: str = "float32",
) -> PointCloudTask:
    """Return the task; the arguments are the attributes of :class:`PointCloudTask`.

    Raises:
        UsageError: if a number is too small or a name is unknown.

    Example:
        >>> task = make_task(points=16, count=8, batch_size=4)
        >>> [tuple(batch["points"].shape) for batch in task.batches("train", seed=0)]
        [(4, 3, 16), (4, 3, 16)]
    """
    if min(count, batch_size) < 2:
        raise UsageError(f"expected at least 2 clouds per batch, got {min(count, batch_size)}: give larger numbers")
    if held_out < 1:
        raise UsageError(f"expected at least 1 held-out cloud, got {held_out}: give a larger number")
    if base < 3:
        raise UsageError(f"expected a base width of at least 3, got {base}: give a larger one")
    if not 1 <= neighbours <= points:
        raise UsageError(f"expected 1 to {points} neighbours, got {neighbours}: no more than there are points")
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    for what, name, known in (
        ("network", network, list(NETWORKS)),
        ("pooling", pooling, ["mean", "max"]),
        ("dtype", dtype, list(dtypes)),
    ):
        if name not in known:
            raise UsageError(f"expected {what} to be {' or '.join(known)}, got {name!r}: choose one of these")
    return PointCloudTask(
        points, count, held_out, network, base, neighbours, pooling, batch_size, noise, rotate, data_seed, dtypes[dtype]
    )
