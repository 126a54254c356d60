"""Insert branches at W = 0, look at the loss around them, and take them out again."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.editing.insert import relax
from surgeon.editing.recalibration import layers_with_statistics
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import PlanError, TaskError
from surgeon.opening.task_calls import task_batches, task_forward, task_loss
from surgeon.plan import Plan, Split, Task
from surgeon.recording.record import unchanged
from surgeon.support.modes import device_of, modes_kept, set_training
from surgeon.support.trees import fresh_copy, map_tensors, tensors_in, to_device, to_dtype
from surgeon.training.diagnosis.budget import affordable
from surgeon.training.diagnosis.curvature import BranchLoss, Coordinates, measure_sizes, transverse_projection
from surgeon.training.diagnosis.lanczos import smallest_eigenvalue
from surgeon.training.diagnosis.result import MOVEMENT, Curvature, Diagnosis, DiagnosisSettings, Slope, Step
from surgeon.training.statistics import Estimate

TOLERANCE = 0.05
"""Residual, relative to the eigenvalue, below which it has converged."""

SAME_LOSS = 1e-5
"""Relative difference of the losses in two modes of a model that counts as none."""


def diagnose_model(
    model: nn.Module,
    plan: Plan,
    task: Task,
    settings: DiagnosisSettings | None = None,
    on_product: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Measure the curvature of the task loss in the directions that break the symmetry, at W = 0 and theta = 1.

    Branches are inserted in place and taken out again, also after an exception. The loss is that of eval mode; if its
    outputs can be differentiated in training mode only, that is used with dropout and statistics switched off, provided
    that the loss is the same. A site's rank is ignored: its W is dense here.

    Args:
        model: without branches.
        plan: at least one site.
        task: batches of the splits "train" and "validation", and the loss.
        settings: how much is computed.
        on_product: called after every Hessian-vector product with how many are done and how many there are at most.

    Returns:
        See :class:`Diagnosis`.

    Raises:
        TaskError: if a split is empty, or the loss is 0, not finite, or cannot be differentiated.
        PlanError: if there is no site, the plan does not fit, or no W of it breaks the symmetry.
    """
    started, settings = time.perf_counter(), settings or DiagnosisSettings()
    batches = {
        "train": _batches(model, task, "train", settings.train_batches, settings.seed),
        "validation": _batches(model, task, "validation", settings.held_out_batches, 0),
    }
    dense = dataclasses.replace(plan, sites=tuple(dataclasses.replace(site, rank=None) for site in plan.sites))
    with unchanged(model), _relaxed(model, dense) as relaxation, _differentiable(model, task, batches["train"][0]):
        work = _Work(relaxation, task, batches, settings, on_product)
        curvature, slope = work.curvature(work.loss), work.slope()
        per_site = work.per_site() if settings.per_site else {}
        if work.loss.reason:
            work.notes.append(f"central differences of the gradient were used: {work.loss.reason}")
        return Diagnosis(
            plan,
            type(model).__name__,
            curvature,
            slope,
            work.losses,
            work.loss.method,
            sum(parameter.numel() for parameter in work.loss.coordinates.parameters),
            work.settings,
            time.perf_counter() - started,
            per_site,
            tuple(work.notes),
        )


def _batches(model: nn.Module, task: Task, split: Split, count: int, seed: int) -> list[Any]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    taken = itertools.islice(task_batches(task, split, seed), count)
    return [to_device(to_dtype(batch, dtype), device_of(model)) for batch in taken]


@contextmanager
def _relaxed(model: nn.Module, plan: Plan) -> Iterator[Relaxation]:
    """Insert branches with W = 0 and theta = 1, alone trainable; put everything back afterwards."""
    relaxation = relax(model, plan, dense=True)
    base = [(parameter, parameter.requires_grad) for parameter in relaxation.base_parameters()]
    try:
        relaxation.enable_penalty(False)
        relaxation.set_theta(1.0)
        for parameter, _ in base:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield relaxation
    finally:
        for parameter, required in base:
            parameter.requires_grad_(required)
        strip(model, "drop")


@contextmanager
def _differentiable(model: nn.Module, task: Task, batch: Any) -> Iterator[None]:
    """Put the model into eval mode, or into a mode with the same loss in which more outputs can be differentiated.

    Some models build the graph of their forces in training mode only.
    """
    still = [*layers_with_statistics(model).values()]
    still += [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]

    def look() -> tuple[int, Tensor]:
        outputs = task_forward(task, model, map_tensors(fresh_copy, batch))
        leaves = sum(leaf.requires_grad for leaf in tensors_in(outputs))
        return leaves, task_loss(task, outputs, batch)

    with modes_kept(model):
        set_training(model, False)
        leaves, loss = look()
        set_training(model, True)
        for module in still:
            module.eval()
        more, other = look()
        same = abs(float(other.detach()) - float(loss.detach())) <= SAME_LOSS * abs(float(loss.detach()))
        if more <= leaves or not same:
            set_training(model, False)
            if not loss.requires_grad:
                raise TaskError(
                    "expected a loss that can be differentiated by the branches, got one that cannot in eval mode"
                    f"{'' if same else ' (in training mode it is another loss)'}: let the model build its graph in "
                    "eval mode"
                )
        yield


class _Work:
    """One diagnosis under way, while the branches are in the model."""

    def __init__(
        self,
        relaxation: Relaxation,
        task: Task,
        batches: Mapping[str, Sequence[Any]],
        settings: DiagnosisSettings,
        on_product: Callable[[int, int], None] | None,
    ) -> None:
        self.relaxation, self.task, self.batches, self.settings = relaxation, task, batches, settings
        self.on_product, self.done = on_product, 0
        self.notes: list[str] = []
        if settings.seconds is not None:
            self._fit(settings.seconds)
        self.loss = BranchLoss(self._run, self._coordinates(self.batches["train"]))
        found = {split: [self.loss.gradient(batch) for batch in some] for split, some in self.batches.items()}
        self.losses = {split: statistics.fmean(loss for loss, _ in pairs) for split, pairs in found.items()}
        self.gradients = {split: [gradient for _, gradient in pairs] for split, pairs in found.items()}
        for split, loss in self.losses.items():
            if not loss or not math.isfinite(loss):
                raise TaskError(
                    f"expected a finite loss other than 0 on the {split} split, to which curvatures are relative, got "
                    f"{loss}: check the loss of the task"
                )

    def _fit(self, seconds: float) -> None:
        """Take fewer batches and products if all of them are expected to need more time."""
        batch = self.batches["train"][0]
        loss = BranchLoss(self._run, self._coordinates([batch]))
        start = time.perf_counter()
        loss.gradient(batch)
        middle = time.perf_counter()
        loss.curvature(batch, loss.coordinates.random(self.settings.seed))
        smaller = affordable(self.settings, seconds, middle - start, time.perf_counter() - middle)
        self.notes.clear()  # those of the first batch alone
        if smaller == self.settings:
            return
        self.settings = smaller
        counts = {"train": smaller.train_batches, "validation": smaller.held_out_batches}
        self.batches = {split: self.batches[split][:count] for split, count in counts.items()}
        self.notes.append(
            f"to take about {seconds:g} s, at most {smaller.products} products over {len(self.batches['train'])} "
            f"training batches and {len(self.batches['validation'])} held-out batches were used"
        )

    def _run(self, batch: Any) -> Tensor:
        fresh = map_tensors(fresh_copy, batch)
        return task_loss(self.task, task_forward(self.task, self.relaxation.model, fresh), fresh)

    def _run_all(self, batches: Sequence[Any]) -> None:
        for batch in batches:
            self._run(batch)

    def _run_train(self) -> None:
        self._run_all(self.batches["train"])

    def _coordinates(self, batches: Sequence[Any]) -> Coordinates:
        plan = self.relaxation.plan
        branches = {site.key: self.relaxation.branches[site.key] for site in plan.sites}
        sizes = measure_sizes(branches, lambda: self._run_all(batches))
        projections = {}
        for site in plan.sites:
            projections[site.key], note = transverse_projection(site)
            self.notes += [f"{site.key}: {words}" for words in (note, sizes[site.key].note) if words]
        return Coordinates(branches, sizes, projections)

    def curvature(self, loss: BranchLoss) -> Curvature:
        """Seek the direction of one loss, and judge it on held-out batches."""
        start = loss.coordinates.random(self.settings.seed)
        if not start.any():
            raise PlanError(
                f"expected W that can break {self.relaxation.plan.group}, but every W of the plan commutes with it: "
                "there is nothing to relax"
            )
        loss.check(self.batches["train"][0], start)
        found = smallest_eigenvalue(
            lambda v: self._product(loss, v), start, self.settings.products, TOLERANCE, loss.coordinates.transverse
        )
        movement = loss.coordinates.movement(found.vector, self._run_train)
        units = {split: _unit(movement) ** 2 / 2 / abs(value) for split, value in self.losses.items()}
        held_out = [units["validation"] * loss.curvature(b, found.vector) for b in self.batches["validation"]]
        unit = units["train"]
        return Curvature(
            unit * found.value,
            unit * found.residual,
            found.converged,
            unit * found.largest,
            found.products,
            Estimate.of(held_out),
            movement,
            loss.coordinates.shares(found.vector),
            self._steps(loss, found.vector / movement) if movement and loss is self.loss else (),
        )

    def _steps(self, loss: BranchLoss, direction: Tensor) -> tuple[Step, ...]:
        """Compute the loss along a direction that moves the outputs by 100 %."""
        steps = []
        for size in self.settings.movements:
            total = dict.fromkeys(self.batches, 0.0)
            for sign in (1, -1):
                with loss.moved(sign * size * direction):
                    for split, batches in self.batches.items():
                        total[split] += statistics.fmean(float(self._run(batch).detach()) for batch in batches) / 2
            change = {split: (total[split] - value) / abs(value) for split, value in self.losses.items()}
            steps.append(Step(size, change["train"], change["validation"]))
        return tuple(steps)

    def per_site(self) -> dict[str, Curvature]:
        """Repeat it for every site alone; one whose W cannot break the symmetry is left out."""
        alone = {key: self.loss.only(key) for key in self.loss.coordinates.branches}
        return {key: self.curvature(one) for key, one in alone.items() if one.coordinates.random(0).any()}

    def slope(self) -> Slope:
        """Follow the transverse gradient of the training batches on held-out ones."""
        mean = torch.stack(self.gradients["train"]).mean(0)
        down = -mean / mean.norm() if mean.any() else mean
        unit = _unit(self.loss.coordinates.movement(down, self._run_train))
        values = {
            split: [unit / abs(self.losses[split]) * float(gradient.double() @ down.double()) for gradient in gradients]
            for split, gradients in self.gradients.items()
        }
        return Slope(statistics.fmean(values["train"]), Estimate.of(values["validation"]))

    def _product(self, loss: BranchLoss, vector: Tensor) -> Tensor:
        result = loss.product(self.batches["train"], vector)
        self.done += 1
        if self.on_product is not None:
            sites = len(self.loss.coordinates.branches) if self.settings.per_site else 0
            self.on_product(self.done, self.settings.products * (1 + sites))
        return result


def _unit(movement: float) -> float:
    """Return what brings a direction to a movement of 1 %; one that moves nothing has no curvature either."""
    return MOVEMENT / movement if movement else 1.0
