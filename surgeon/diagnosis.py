"""Will relaxation change anything? The curvature of the loss in the directions that break the symmetry.

docs/method.md, "Will relaxation change anything?", says what is computed and why.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon.curvature import (
    FEWEST,
    BranchLoss,
    Coordinates,
    Method,
    measure_sizes,
    smallest_eigenvalue,
    transverse_projection,
)
from surgeon.errors import PlanError, TaskError, UsageError
from surgeon.evaluation import device_of
from surgeon.graph.record import fresh_copy, unchanged
from surgeon.groups import parse_group
from surgeon.modes import set_training
from surgeon.recalibration import layers_with_statistics
from surgeon.surgery import Relaxation, relax, strip
from surgeon.tasks import task_batches, task_forward, task_loss
from surgeon.trees import map_tensors, tensors_in, to_device, to_dtype
from surgeon.types import Plan, Split, Task

Verdict = Literal["real", "noise", "none", "undecided"]

TOLERANCE = 0.05
"""Residual, relative to the eigenvalue, below which it has converged."""

NEGLIGIBLE = 1e-3
"""A curvature above -NEGLIGIBLE counts as not negative: outputs moved by 100 % lower the loss by less than 0.1 %."""

SAME_LOSS = 1e-5
"""Relative difference of the losses in two modes of a model that counts as none."""


@dataclass(frozen=True)
class DiagnosisSettings:
    """How much is computed.

    Attributes:
        products: Hessian-vector products at most, each over all training batches.
        train_batches: batches on which the direction is sought; all there are, if fewer.
        held_out_batches: validation batches on which it is judged.
        per_site: also seek a direction for every site alone.
        seed: of the order of the training batches and of the first direction.

    Raises:
        UsageError: if a number is too small.
    """

    products: int = 30
    train_batches: int = 4
    held_out_batches: int = 16
    per_site: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.products < FEWEST or min(self.train_batches, self.held_out_batches) < 1:
            raise UsageError(
                f"expected at least {FEWEST} products and 1 batch of each split, got {self.products} products, "
                f"{self.train_batches} training and {self.held_out_batches} held-out batches: give more"
            )


@dataclass(frozen=True)
class Estimate:
    """A mean over batches.

    Attributes:
        mean: over batches.
        standard_error: of the mean; NaN for one batch.
        half_width: of its 95 % interval (Student's t); NaN for one batch.
        values: one number per batch.
    """

    mean: float
    standard_error: float
    half_width: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Estimate the mean of what the values are a sample of."""
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, math.nan, math.nan, tuple(values))
        from scipy.stats import t

        error = statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, error, float(t.ppf(0.975, len(values) - 1)) * error, tuple(values))

    @property
    def low(self) -> float:
        """Lower end of the interval."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end of the interval."""
        return self.mean + self.half_width


@dataclass(frozen=True)
class Curvature:
    """The most favourable direction that was found, and how the loss bends along it.

    All curvatures are ``v^T H v / (2 m^2 |L|)``, dimensionless: the second-order change of the loss, relative to the
    loss L of the same split, by a branch in this direction that moves the ops' outputs by 100 %. The direction v has
    norm 1 and moves them by m.

    Attributes:
        train: on the batches on which the direction was sought: the smallest Ritz value.
        residual: of the eigenvalue, in the same unit.
        converged: whether it is small.
        largest: the largest Ritz value, in the same unit.
        products: Hessian-vector products used.
        held_out: on validation batches.
        movement: m, relative change of the ops' outputs by a direction of norm 1.
        shares: of every site in the direction's squared norm; they sum up to 1.
    """

    train: float
    residual: float
    converged: bool
    largest: float
    products: int
    held_out: Estimate
    movement: float
    shares: Mapping[str, float]

    @property
    def verdict(self) -> Verdict:
        """Whether the loss really bends down.

        "real": on training batches and, with its whole 95 % interval, on held-out ones. "noise": on training batches,
        but the held-out mean is not negative and its interval excludes the training value. "none": not even on training
        batches, within the residual. "undecided": the search has not converged, or the interval is too wide.
        """
        if self.train >= -NEGLIGIBLE:
            return "none" if self.train - self.residual >= -NEGLIGIBLE else "undecided"
        if self.held_out.high < 0:
            return "real"
        return "noise" if self.held_out.mean >= 0 and self.held_out.low > self.train else "undecided"


@dataclass(frozen=True)
class Slope:
    """First-order change of the loss against the transverse gradient of the training batches.

    Both numbers are ``g v / (m |L|)``, dimensionless: the first-order change of the loss, relative to the loss of the
    same split, by a branch along ``v = -g_train / |g_train|`` that moves the ops' outputs by 100 %.

    Attributes:
        train: never positive.
        held_out: 0 in expectation if data and loss have the symmetry.
    """

    train: float
    held_out: Estimate

    @property
    def real(self) -> bool:
        """Whether the slope is negative on held-out batches with its whole 95 % interval."""
        return self.held_out.high < 0


@dataclass(frozen=True)
class Diagnosis:
    """What a model's loss does near W = 0 in the directions that break the symmetry.

    Attributes:
        group: the symmetry.
        curvature: over all sites together.
        slope: over all sites together.
        per_site: for each site alone, if it was asked for.
        losses: mean loss of the batches, by split.
        method: how products with the Hessian were computed.
        parameters: entries of all W.
        settings: what was asked for.
        seconds: all of it took.
        notes: what the user should know.
    """

    group: str
    curvature: Curvature
    slope: Slope
    losses: Mapping[str, float]
    method: Method
    parameters: int
    settings: DiagnosisSettings
    seconds: float
    per_site: Mapping[str, Curvature] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """That of the curvature over all sites."""
        return self.curvature.verdict

    def to_data(self) -> dict[str, Any]:
        """Return everything as JSON-compatible data, with verdicts and sentences."""
        data = dataclasses.asdict(self)
        per_site = {key: {**data["per_site"][key], "verdict": self.per_site[key].verdict} for key in self.per_site}
        slope = {**data["slope"], "real": self.slope.real}
        return {"verdict": self.verdict, "sentences": self.sentences(), **data, "slope": slope, "per_site": per_site}

    def sentences(self) -> list[str]:
        """Say in words what was found, and no more than that."""
        curvature, said = self.curvature, [_words(self.curvature)]
        if not curvature.converged:
            said.append(
                f"The eigenvalue has not converged after {curvature.products} products (residual "
                f"{curvature.residual:.2g}): there may be a more favourable direction; more products look further."
            )
        if self.slope.real:
            said.append(
                "The gradient in the directions that break the symmetry is real: training and held-out batches agree "
                f"on it beyond noise ({_percent(self.slope.held_out)} to first order). Data or loss break the symmetry, "
                "and the relaxed model can use that; dropping the branches loses it again."
            )
        else:
            said.append(
                f"The gradient in these directions is not distinguishable from 0 on held-out batches "
                f"({_percent(self.slope.held_out)} to first order), as it is for data and a loss with the symmetry."
            )
        return said


def _words(curvature: Curvature) -> str:
    train, held_out = f"{100 * curvature.train:+.2g} %", _percent(curvature.held_out)
    match curvature.verdict:
        case "real":
            return (
                f"Relaxation opens a direction that lowers the loss, on held-out batches too ({held_out}, training "
                f"batches {train}): it can be expected to change the result."
            )
        case "noise":
            return (
                f"The most favourable direction lowers the loss of the training batches ({train}), not that of held-out "
                f"batches ({held_out}): what a branch would learn first is noise of the training batches."
            )
        case "none":
            return (
                f"No direction lowers the loss ({train} on training batches at best): the weights are at a minimum in "
                "the directions that break the symmetry, too, and no change is to be expected from second order."
            )
        case _ if curvature.train >= -NEGLIGIBLE:
            return (
                f"Undecided: no direction that lowers the loss was found ({train}), but the search has not converged."
            )
        case _ if math.isnan(curvature.held_out.half_width):
            return (
                f"Undecided: training batches {train}, a single held-out batch {held_out}; it has no interval, "
                "more or smaller validation batches have."
            )
        case _:
            return (
                f"Undecided: the direction lowers the loss of the training batches ({train}), and the interval of the "
                f"held-out batches ({held_out}) is too wide to tell; more of these narrow it."
            )


def _percent(estimate: Estimate) -> str:
    if math.isnan(estimate.half_width):
        return f"{100 * estimate.mean:+.2g} %"
    return f"{100 * estimate.mean:+.2g} ± {100 * estimate.half_width:.1g} %"


def diagnose(
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
        split: _batches(model, task, split, count, settings.seed)
        for split, count in (("train", settings.train_batches), ("validation", settings.held_out_batches))
    }
    dense = dataclasses.replace(plan, sites=tuple(dataclasses.replace(site, rank=None) for site in plan.sites))
    with unchanged(model), _relaxed(model, dense) as relaxation, _differentiable(model, task, batches["train"][0]):
        work = _Work(relaxation, task, batches, settings, on_product)
        curvature, slope = work.curvature(work.loss), work.slope()
        per_site = work.per_site() if settings.per_site else {}
        if work.loss.reason:
            work.notes.append(f"central differences of the gradient were used: {work.loss.reason}")
        return Diagnosis(
            plan.group,
            curvature,
            slope,
            work.losses,
            work.loss.method,
            sum(parameter.numel() for parameter in work.loss.coordinates.parameters),
            settings,
            time.perf_counter() - started,
            per_site,
            tuple(work.notes),
        )


def _batches(model: nn.Module, task: Task, split: Split, count: int, seed: int) -> list[Any]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    taken = itertools.islice(task_batches(task, split, seed if split == "train" else 0), count)
    return [to_device(to_dtype(batch, dtype), device_of(model)) for batch in taken]


@contextmanager
def _relaxed(model: nn.Module, plan: Plan) -> Iterator[Relaxation]:
    """Insert branches with W = 0 and theta = 1, alone trainable; put everything back afterwards."""
    relaxation = relax(model, plan)
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
    modes = {module: module.training for module in model.modules()}
    still = [*layers_with_statistics(model).values()]
    still += [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]

    def look() -> tuple[int, Tensor]:
        outputs = task_forward(task, model, map_tensors(fresh_copy, batch))
        leaves = sum(leaf.requires_grad for leaf in tensors_in(outputs))
        return leaves, task_loss(task, outputs, batch)

    try:
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
    finally:
        with torch.no_grad():
            set_training(model, modes[model])
        for module, mode in modes.items():
            module.training = mode


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
        self.loss = BranchLoss(self._run, self._coordinates())
        found = {split: [self.loss.gradient(batch) for batch in some] for split, some in batches.items()}
        self.losses = {split: statistics.fmean(loss for loss, _ in pairs) for split, pairs in found.items()}
        self.gradients = {split: [gradient for _, gradient in pairs] for split, pairs in found.items()}
        for split, loss in self.losses.items():
            if not loss or not math.isfinite(loss):
                raise TaskError(
                    f"expected a finite loss other than 0 on the {split} split, to which curvatures are relative, got "
                    f"{loss}: check the loss of the task"
                )

    def _run(self, batch: Any) -> Tensor:
        fresh = map_tensors(fresh_copy, batch)
        return task_loss(self.task, task_forward(self.task, self.relaxation.model, fresh), fresh)

    def _run_train(self) -> None:
        for batch in self.batches["train"]:
            self._run(batch)

    def _coordinates(self) -> Coordinates:
        group, plan = parse_group(self.relaxation.plan.group), self.relaxation.plan
        branches = {site.key: self.relaxation.branches[site.key] for site in plan.sites}
        sizes = measure_sizes(branches, self._run_train)
        projections = {}
        for site in plan.sites:
            projections[site.key], note = transverse_projection(site, group)
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
        found = smallest_eigenvalue(lambda v: self._product(loss, v), start, self.settings.products, TOLERANCE)
        movement = loss.coordinates.movement(found.vector, self._run_train)
        units = {split: _unit(movement) ** 2 / (2 * abs(value)) for split, value in self.losses.items()}
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
        )

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
    """Return what brings a direction to a movement of 100 %; one that moves nothing has no curvature either."""
    return 1 / movement if movement else 1.0
