"""Fine-tuning task: charged particles whose interaction differs from the one that the checkpoint was trained on.

From positions, velocities and charges at frame 30, predict the positions 1.0 time units later, at frame 40. The
checkpoint was pretrained at interaction strength 1; here the strength is 2, as if the same particles stood in a medium
of half the permittivity, and only a few trajectories are given. All quantities are dimensionless.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from segnn import SEGNN, SEGNNConfig
from simulate import dataset
from torch import Tensor
from torch.nn import functional

from surgeon.errors import ShapeError, UsageError
from surgeon.plan import Split

Batch = Mapping[str, Tensor]

# The sizes of the shipped checkpoint, segnn_nbody.safetensors.
CONFIG = SEGNNConfig()
EVALUATION_BATCH = 100
SAMPLE = 20
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class NBodyTask:
    """N-body task: see the attributes for its settings; data are simulated on first use and kept in memory.

    Attributes:
        train_samples: number of training trajectories.
        validation_samples: number of validation trajectories.
        test_samples: number of test trajectories; the errors are heavy-tailed, so take thousands.
        strength: factor of the interaction.
        batch_size: trajectories per training batch.
        data_seed: seed of the initial conditions of all three splits.
        dtype: dtype of the batches; the simulation is always float64.
    """

    train_samples: int = 200
    validation_samples: int = 500
    test_samples: int = 3000
    strength: float = 2.0
    batch_size: int = 50
    data_seed: int = 0
    dtype: torch.dtype = torch.float32
    _cache: dict[str, dict[str, Tensor]] = field(default_factory=dict, init=False, repr=False, compare=False)

    primary_metric: ClassVar[str] = "mse"
    primary_direction: ClassVar[str] = "min"
    input_names: ClassVar[tuple[str, ...]] = ("positions", "velocities", "charges")
    output_names: ClassVar[tuple[str, ...]] = ("positions",)
    units: ClassVar[Mapping[str, str]] = {"mse": "dimensionless", "mae": "dimensionless", "log10_mse": "dimensionless"}

    def model(self) -> SEGNN:
        """Return a network of the shipped checkpoint's architecture with fresh weights."""
        return SEGNN(CONFIG)

    def batches(self, split: Split, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches: ``positions``, ``velocities``, ``targets`` of shape (b, 5, 3) and ``charges`` of shape (b, 5).

        Args:
            split: which trajectories.
            seed: order of the training trajectories; the other splits keep theirs.

        Returns:
            Fresh tensors at each call.

        Raises:
            UsageError: if the split is unknown.
        """
        data = self._data(split)
        count = len(data["charges"])
        order = torch.arange(count)
        if split == "train":
            order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        for rows in torch.split(order, self.batch_size if split == "train" else EVALUATION_BATCH):
            yield {name: values[rows] for name, values in data.items()}

    def sample(self) -> dict[str, Tensor]:
        """Return a few validation trajectories as a batch: enough to see how features transform."""
        return {name: values[:SAMPLE] for name, values in self._data("validation").items()}

    def forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """Return predicted positions at frame 40, shape (b, 5, 3)."""
        predicted: Tensor = model(batch["positions"], batch["velocities"], batch["charges"])
        return predicted

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error per coordinate."""
        return functional.mse_loss(outputs, batch["targets"])

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        """Return sums and counts: squared and absolute error over coordinates, log10 of the squared over trajectories.

        A few chaotic encounters make up most of the mean squared error; the mean of its logarithm shows the bulk.
        """
        error = (outputs - batch["targets"]).detach().double()
        count = float(error.numel())
        per_trajectory = error.square().mean(dim=(1, 2)).clamp(min=1e-30)
        return {
            "mse": (float(error.square().sum()), count),
            "mae": (float(error.abs().sum()), count),
            "log10_mse": (float(per_trajectory.log10().sum()), float(len(per_trajectory))),
        }

    def act(self, g: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Turn and move positions and targets, turn velocities, leave charges.

        Args:
            g: a rotation or reflection, shape (3, 3), or one with a translation, homogeneous, shape (4, 4); float64.
            batch: as from :meth:`batches`.

        Returns:
            A new batch.

        Raises:
            ShapeError: if g has another shape.
        """
        turn, _ = _parts(g)
        acted = {name: _move(g, batch[name]) for name in ("positions", "targets") if name in batch}
        return {**batch, **acted, "velocities": _move(turn, batch["velocities"])}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Turn and move predicted positions of shape (b, 5, 3).

        Raises:
            ShapeError: if g is neither 3x3 nor 4x4.
        """
        return _move(g, outputs)

    def _data(self, split: Split) -> dict[str, Tensor]:
        if split not in SPLITS:
            raise UsageError(f"expected a split out of {', '.join(SPLITS)}, got {split!r}: choose one of these")
        if split not in self._cache:
            sizes = {"train": self.train_samples, "validation": self.validation_samples, "test": self.test_samples}
            pairs = dataset(sizes[split], (self.data_seed, SPLITS.index(split)), self.strength)
            arrays = {
                "positions": pairs.positions,
                "velocities": pairs.velocities,
                "charges": pairs.charges,
                "targets": pairs.targets,
            }
            self._cache[split] = {name: torch.tensor(values, dtype=self.dtype) for name, values in arrays.items()}
        return self._cache[split]


def make_task(
    train_samples: int = 200,
    validation_samples: int = 500,
    test_samples: int = 3000,
    strength: float = 2.0,
    batch_size: int = 50,
    data_seed: int = 0,
    dtype: str = "float32",
) -> NBodyTask:
    """Return the task; the arguments are the attributes of :class:`NBodyTask`.

    Raises:
        UsageError: if a number is not positive or the dtype is unknown.

    Example:
        >>> task = make_task(train_samples=8, batch_size=4)
        >>> [tuple(batch["positions"].shape) for batch in task.batches("train", seed=0)]
        [(4, 5, 3), (4, 5, 3)]
    """
    smallest = min(train_samples, validation_samples, test_samples, batch_size)
    if smallest < 1:
        raise UsageError(f"expected sample counts and a batch size of at least 1, got {smallest}: give larger ones")
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    if dtype not in dtypes:
        raise UsageError(f"expected dtype float32 or float64, got {dtype!r}: choose one of these")
    return NBodyTask(train_samples, validation_samples, test_samples, strength, batch_size, data_seed, dtypes[dtype])


def _parts(g: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (3, 3) matrix and the translation of a group element."""
    if g.shape == (3, 3):
        return g, g.new_zeros(3)
    if g.shape == (4, 4):
        return g[:3, :3], g[:3, 3]
    raise ShapeError(
        f"expected a group element of shape (3, 3) or (4, 4), got {tuple(g.shape)} in the N-body task: "
        "use SO3, O3, SE3 or E3"
    )


def _move(g: Tensor, points: Tensor) -> Tensor:
    """Apply x -> R x + t to the last axis, computed in float64."""
    turn, shift = (part.to(points.device, torch.float64) for part in _parts(g))
    return (points.double() @ turn.T + shift).to(points.dtype)
