"""Task on N-body files: from positions, velocities and charges at one frame, the positions at a later one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.errors import ShapeError, TaskError
from surgeon.plan import Split
from surgeon.support.e3nn_compat import import_e3nn
from surgeon_adapters.zoo.segnn.models import PARTICLES
from surgeon_adapters.zoo.segnn.particles import CONSTANTS, Motions, Normalization, graph_of, read_motions

Batch = Mapping[str, Tensor]
NAMES: Mapping[Split, str] = {"train": "train", "validation": "valid", "test": "test"}
"""What stands in the files' names for each split."""


@dataclass(frozen=True)
class NBodyTask:
    """Charged particles in the files that the published generator writes; all quantities are dimensionless.

    Attributes:
        data: positions of the training trajectories, ``loc_train_*.npy``; those of the other splits,
            ``loc_valid_*.npy`` and ``loc_test_*.npy``, and velocities and charges lie beside it.
        start: frame that is given; the published settings for "small" files are 30 and 40, for others 6 and 8.
        end: frame that is asked for.
        samples: largest number of training trajectories, the first ones; of the other splits all are taken.
        batch_size: trajectories per batch.
        normalization: of the spherical harmonics: "integral" as in the published code, or "component".
        motions: of each split; read by :meth:`for_model`.
        degrees: highest degrees of the attributes of edges and nodes; read off the model.
    """

    data: Path
    start: int = 30
    end: int = 40
    samples: int = 3000
    batch_size: int = 100
    normalization: Normalization = "integral"
    motions: Mapping[Split, Motions] = field(default_factory=dict, repr=False)
    degrees: tuple[int, int] = (1, 1)

    primary_metric: ClassVar[str] = "mse"
    primary_direction: ClassVar[str] = "min"
    input_names: ClassVar[tuple[str, ...]] = ("positions", "velocities", "charges")
    output_names: ClassVar[tuple[str, ...]] = ("positions",)
    units: ClassVar[Mapping[str, str]] = {"mse": "dimensionless", "mae": "dimensionless"}

    def for_model(self, model: nn.Module) -> NBodyTask:
        """Read the files for a model.

        Raises:
            TaskError: if it is no SEGNN for particles, an argument is unusable, or a file is.
        """
        settings: Any = getattr(model, "settings", None)
        found = [getattr(settings, f"{name}_irreps", None) for name in ("input", "output", "additional_message")]
        if found != [PARTICLES, "1x1o", "2x0e"] or settings.task != "node":
            raise TaskError(
                f"expected a SEGNN of inputs {PARTICLES}, outputs 1x1o and messages with 2x0e for the task of segnn, "
                f"got {type(model).__name__} with {', '.join(map(str, found))}: give a task file of your own"
            )
        if (
            self.normalization not in CONSTANTS
            or min(self.samples, self.batch_size) < 1
            or "train" not in self.data.name
        ):
            raise TaskError(
                f"expected normalization {' or '.join(CONSTANTS)}, samples and batch_size of at least 1, and a file "
                f"loc_train_*.npy, got {self.normalization!r}, {self.samples}, {self.batch_size} and "
                f"{self.data.name!r}: correct --task or --task-args"
            )
        dtype = next(model.parameters()).dtype
        paths = {split: self.data.with_name(self.data.name.replace("train", name)) for split, name in NAMES.items()}
        motions = {
            split: read_motions(path, self.start, self.end, self.samples if split == "train" else None, dtype)
            for split, path in paths.items()
        }
        o3: Any = import_e3nn()
        degrees = tuple(o3.Irreps(irreps).lmax for irreps in (settings.edge_attr_irreps, settings.node_attr_irreps))
        return replace(self, motions=motions, degrees=(degrees[0], degrees[1]))

    def batches(self, split: Split, seed: int) -> MotionBatches:
        """Return batches of ``positions``, ``velocities``, ``targets`` (b, n, 3) and ``charges`` (b, n).

        Raises:
            TaskError: if the task has not seen its model.
        """
        if split not in self.motions:
            raise TaskError("the task of segnn has not seen its model yet: call for_model(model) first")
        return MotionBatches(self.motions[split], self.batch_size, seed if split == "train" else None)

    def forward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return predicted positions, shape (b, n, 3)."""
        positions = batch["positions"]
        graph = graph_of(positions, batch["velocities"], batch["charges"], self.degrees, self.normalization)
        moved: Tensor = model(**graph)
        return positions + moved.view_as(positions)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error per coordinate."""
        return functional.mse_loss(outputs, batch["targets"])

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[float, float]]:
        """Return sums of squared and absolute errors over coordinates, and their number."""
        error = (outputs - batch["targets"]).detach().double()
        count = float(error.numel())
        return {"mse": (float(error.square().sum()), count), "mae": (float(error.abs().sum()), count)}

    def act(self, g: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Turn positions, targets and velocities by a matrix (3, 3); one of shape (4, 4) also moves the positions.

        Raises:
            ShapeError: if g has another shape.
        """
        acted = {name: _moved(g, batch[name]) for name in ("positions", "targets") if name in batch}
        return {**batch, **acted, "velocities": _moved(g[:3, :3], batch["velocities"])}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Turn and move predicted positions.

        Raises:
            ShapeError: if g is neither (3, 3) nor (4, 4).
        """
        return _moved(g, outputs)


def _moved(g: Tensor, points: Tensor) -> Tensor:
    if g.shape not in ((3, 3), (4, 4)):
        raise ShapeError(
            f"expected a group element of shape (3, 3) or (4, 4), got {tuple(g.shape)}: use SO3, O3, SE3 or E3"
        )
    matrix = g.to(points.device, torch.float64)
    moved = points.double() @ matrix[:3, :3].T
    return (moved + matrix[:3, 3] if len(matrix) == 4 else moved).to(points.dtype)


@dataclass(frozen=True)
class MotionBatches:
    """Batches made while they are drawn, in an order that the seed decides; None keeps that of the files."""

    motions: Motions
    size: int
    seed: int | None

    def __len__(self) -> int:
        return -(-len(self.motions) // self.size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        order = torch.arange(len(self.motions))
        if self.seed is not None:
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(self.seed))
        for rows in torch.split(order, self.size):
            names = ("positions", "velocities", "charges", "targets")
            yield {name: getattr(self.motions, name)[rows] for name in names}
