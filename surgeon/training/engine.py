"""The fine-tuning loop, driven by accelerate."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgeon.errors import SurgeonError, TaskError, TrainingError
from surgeon.evaluation import evaluate, is_better
from surgeon.imports import one_line
from surgeon.surgery import Relaxation
from surgeon.tasks import count_batches, primary_metric, task_batches, task_forward, task_loss
from surgeon.training.arms import Arm
from surgeon.training.settings import FinetuneSettings
from surgeon.trees import to_device
from surgeon.types import Task

if TYPE_CHECKING:
    from accelerate import Accelerator

LOSS_MEMORY = 0.98
"""Decay per step of the running mean of the task loss that scales lambda."""


@dataclass(frozen=True)
class StepEvent:
    """What a progress display needs after one optimiser step."""

    step: int
    steps: int
    epoch: int
    theta: float
    loss: float
    penalty: float
    validation: Mapping[str, float]


@dataclass
class TrainingState:
    """Everything that changes during a run, besides weights and optimiser; it is what a resume needs.

    Attributes:
        epoch: epochs finished.
        step: optimiser steps done.
        steps_per_epoch: number of training batches; 0 until it is known.
        loss_sum: decayed sum behind the running mean of the task loss.
        loss_weight: decayed sum of weights behind it.
        best_epoch: epoch with the best clean validation metric; 0 is the model as it came.
        best_value: that metric.
        best_validation: all clean metrics at that epoch.
        best_theta: coefficients at that epoch, which a fold needs.
        history: one record per finished epoch.
        seconds: training time so far, evaluation included.
    """

    epoch: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    loss_sum: float = 0.0
    loss_weight: float = 0.0
    best_epoch: int = 0
    best_value: float = math.nan
    best_validation: dict[str, float] = field(default_factory=dict)
    best_theta: tuple[float, float] = (0.0, 0.0)
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class FinetuneResult:
    """Outcome of a fine-tuning; the model holds the weights of the best epoch, branches still in place."""

    best_epoch: int
    validation: Mapping[str, float]
    theta: tuple[float, float]
    history: tuple[Mapping[str, Any], ...]
    seconds: float
    steps: int


class Finetuner:
    """One run: model, task, arm and settings, with the state that a resume restores.

    Args:
        model: the network, with branches if ``relaxation`` is given; trained in place.
        task: the user's task.
        settings: see :class:`FinetuneSettings`.
        arm: how the branches take part.
        relaxation: handle on the branches; None for the arm "plain".
    """

    def __init__(
        self, model: nn.Module, task: Task, settings: FinetuneSettings, arm: Arm, relaxation: Relaxation | None
    ) -> None:
        from accelerate.utils import set_seed

        if (relaxation is None) != (arm.mode is None):
            raise TrainingError(f"expected branches exactly if the arm has any, got arm {arm.name!r} and {relaxation}")
        set_seed(settings.seed)
        self.task, self.settings, self.arm, self.relaxation = task, settings, arm, relaxation
        self.accelerator: Accelerator = _accelerator(settings.precision)
        self.plain_model = model
        self._own_forward = {name: value for name, value in vars(model).items() if name == "forward"}
        self.optimizer = self._make_optimizer()
        self.model, self.optimizer = self.accelerator.prepare(model, self.optimizer)
        self.state = TrainingState()
        self.best_weights: dict[str, Tensor] = {}
        self.metric, self.direction = primary_metric(task)
        weight = arm.penalty_weight if settings.penalty_weight is None else settings.penalty_weight
        self.penalty_weight = weight if arm.relaxes else 0.0
        if relaxation is not None:
            relaxation.penalty_form = settings.penalty_form
            relaxation.enable_penalty(self.penalty_weight > 0)

    def _make_optimizer(self) -> torch.optim.Optimizer:
        base = self.relaxation.base_parameters() if self.relaxation else list(self.plain_model.parameters())
        rate = self.settings.learning_rate
        groups: list[dict[str, Any]] = [{"params": [p for p in base if p.requires_grad], "base_rate": rate}]
        if self.relaxation is not None:
            branch_rate = rate * self.settings.branch_factor
            groups.append({"params": self.relaxation.branch_parameters(), "base_rate": branch_rate})
        if not groups[0]["params"]:
            raise TrainingError("expected trainable parameters, but all of the model are frozen: unfreeze some")
        return torch.optim.AdamW(groups, lr=rate, weight_decay=self.settings.weight_decay)

    def _set_rates(self, progress: float) -> None:
        scale = (1 + math.cos(math.pi * min(progress, 1.0))) / 2 if self.settings.decay == "cosine" else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * scale

    def run(
        self,
        on_step: Callable[[StepEvent], None] | None = None,
        on_epoch: Callable[[Finetuner], None] | None = None,
    ) -> FinetuneResult:
        """Train to the end, or on from the restored state, and load the weights of the best epoch.

        Args:
            on_step: called after every optimiser step.
            on_epoch: called after every epoch that ends with an evaluation: the place to save the state.

        Raises:
            TrainingError: if a loss or penalty is not finite; the model then holds the best weights so far.
            TaskError: if the task returns something unusable.
        """
        try:
            return self._run(on_step, on_epoch)
        finally:
            self._release()

    def _run(
        self, on_step: Callable[[StepEvent], None] | None, on_epoch: Callable[[Finetuner], None] | None
    ) -> FinetuneResult:
        if not self.state.history:
            self._first_evaluation(on_epoch)
        while self.state.epoch < self.settings.epochs:
            started = time.perf_counter()
            self.state.epoch += 1
            loss, penalty = self._train_epoch(on_step)
            if self.relaxation is not None:  # the schedule's value at the end of the epoch; exactly 0 after the last
                self.arm.set_progress(self.relaxation, self.state.epoch / self.settings.epochs)
            self._finish_epoch(loss, penalty, started, on_epoch)
        self._load_best()
        state = self.state
        return FinetuneResult(
            state.best_epoch, state.best_validation, state.best_theta, tuple(state.history), state.seconds, state.step
        )

    def _first_evaluation(self, on_epoch: Callable[[Finetuner], None] | None) -> None:
        try:
            self._finish_epoch(math.nan, math.nan, time.perf_counter(), on_epoch)
        except RuntimeError as error:
            if self.settings.precision == "no" or isinstance(error, SurgeonError):
                raise
            raise TrainingError(
                f"expected a model that runs in mixed precision {self.settings.precision!r}, but it fails with "
                f"{one_line(error)}: its library needs one dtype throughout, choose precision 'no'"
            ) from error

    def _release(self) -> None:
        """Take off what accelerate puts on the model itself: a flag and, in mixed precision, another forward."""
        for name in ("_is_accelerate_prepared", "_original_forward", "forward"):
            vars(self.plain_model).pop(name, None)
        vars(self.plain_model).update(self._own_forward)

    def _train_epoch(self, on_step: Callable[[StepEvent], None] | None) -> tuple[float, float]:
        """Run one epoch and return the mean task loss and penalty."""
        seed = self.settings.seed * 100_003 + self.state.epoch
        if not self.state.steps_per_epoch:
            self.state.steps_per_epoch = count_batches(self.task, "train", seed)
        batches = task_batches(self.task, "train", seed)
        total = self.settings.epochs * self.state.steps_per_epoch
        self.model.train()
        losses, penalties = [], []
        for batch in batches:
            loss, penalty = self._step(to_device(batch, self.accelerator.device), self.state.step / total)
            self.state.step += 1
            losses.append(loss)
            penalties.append(penalty)
            if on_step:
                validation = self._last_validation()
                theta = self.relaxation.theta[0] if self.relaxation else 0.0
                on_step(StepEvent(self.state.step, total, self.state.epoch, theta, loss, penalty, validation))
        return sum(losses) / len(losses), sum(penalties) / len(penalties)

    def _step(self, batch: Any, progress: float) -> tuple[float, float]:
        self._set_rates(progress)
        if self.relaxation is not None:
            self.arm.set_progress(self.relaxation, progress)
        with self.accelerator.autocast():
            outputs = task_forward(self.task, self.model, batch)
            loss = task_loss(self.task, outputs, batch)
        penalty = loss.new_zeros(())
        terms: dict[str, tuple[Tensor, Tensor]] = {}
        if self.relaxation is not None and self.penalty_weight > 0:
            terms = self._penalty_terms(self.relaxation)
            penalty = torch.stack([term for pair in terms.values() for term in pair]).sum()
        loss_value, penalty_value = float(loss.detach()), float(penalty.detach())
        self._require_finite(loss_value, terms)
        self.accelerator.backward(loss + self._penalty_scale(loss_value) * penalty)
        self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss_value, penalty_value

    def _penalty_terms(self, relaxation: Relaxation) -> dict[str, tuple[Tensor, Tensor]]:
        terms = relaxation.penalty_terms()
        missed = [key for key, branch in relaxation.branches.items() if branch.missed]
        if missed or not terms:
            where = (missed or list(relaxation.branches))[0]
            raise TrainingError(
                f"expected the branch at {where!r} to see the features of a training step, but they were not recorded: "
                "run every relaxed op with gradients enabled, and activation checkpointing with use_reentrant=False"
            )
        return terms

    def _clip(self) -> None:
        """Clip base and branches apart: the gradient of W must not shorten the base's step in some arms only."""
        scaler = getattr(self.accelerator, "scaler", None)
        for group in self.optimizer.param_groups:
            norm = self.accelerator.clip_grad_norm_(group["params"], self.settings.clip or math.inf)
            # With a loss scaler an overflow is normal: it lowers the scale and skips the step.
            if scaler is None and norm is not None and not math.isfinite(float(norm)):
                self._stop("a gradient became NaN or infinite")

    def _penalty_scale(self, loss: float) -> float:
        if self.settings.penalty_scale == "absolute":
            return self.penalty_weight
        self.state.loss_sum = LOSS_MEMORY * self.state.loss_sum + (1 - LOSS_MEMORY) * abs(loss)
        self.state.loss_weight = LOSS_MEMORY * self.state.loss_weight + (1 - LOSS_MEMORY)
        return self.penalty_weight * self.state.loss_sum / self.state.loss_weight

    def _require_finite(self, loss: float, terms: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        if not math.isfinite(loss):
            self._stop(f"the task loss became {loss}")
        for key, pair in terms.items():
            if not all(bool(torch.isfinite(term)) for term in pair):
                self._stop(f"the penalty of the branch at {key!r} became non-finite")

    def _stop(self, what: str) -> None:
        best = self.state.best_epoch
        if self.best_weights:
            self._load_best()
        raise TrainingError(
            f"{what} at step {self.state.step + 1} (epoch {self.state.epoch}); the best weights so far, of epoch "
            f"{best}, were kept: lower the learning rate, clip gradients, or look for broken samples"
        )

    def _last_validation(self) -> Mapping[str, float]:
        """Return the clean metrics of the last evaluation."""
        evaluated = (entry["validation"] for entry in reversed(self.state.history) if entry["validation"])
        return next(evaluated, {})

    def _finish_epoch(
        self, loss: float, penalty: float, started: float, on_epoch: Callable[[Finetuner], None] | None
    ) -> None:
        """Evaluate if it is time, and append the epoch to the history."""
        state = self.state
        theta = self.relaxation.theta if self.relaxation is not None else (0.0, 0.0)
        due = state.epoch % self.settings.evaluate_every == 0 or state.epoch == self.settings.epochs
        clean, current = self._evaluate(theta) if due else (None, None)
        state.seconds += time.perf_counter() - started
        state.history.append(
            {
                "epoch": state.epoch,
                "step": state.step,
                "theta": theta,
                "loss": None if math.isnan(loss) else loss,
                "penalty": None if math.isnan(penalty) else penalty,
                "validation": clean,
                "validation_relaxed": current,
                "seconds": state.seconds,
            }
        )
        if due and on_epoch:
            on_epoch(self)

    def _evaluate(self, theta: tuple[float, float]) -> tuple[dict[str, float], dict[str, float]]:
        """Return clean metrics and those of the relaxed model, and keep the weights if the clean ones are the best."""
        state, relaxation = self.state, self.relaxation
        current = evaluate(self.model, self.task, "validation")
        clean = current
        if relaxation is not None:
            with relaxation.clean():
                clean = evaluate(self.model, self.task, "validation")
        if self.metric not in clean:
            raise TaskError(
                f"expected the primary metric {self.metric!r} among those that metrics() returns, "
                f"got {', '.join(clean)}: correct primary_metric of the task"
            )
        if not self.best_weights or is_better(clean[self.metric], state.best_value, self.direction):
            state.best_epoch, state.best_value, state.best_theta = state.epoch, clean[self.metric], theta
            state.best_validation = clean
            self.best_weights = copy.deepcopy({k: v.cpu() for k, v in self.plain_model.state_dict().items()})
        return clean, current

    def _load_best(self) -> None:
        self.plain_model.load_state_dict(self.best_weights)
        if self.relaxation is not None:
            self.relaxation.set_theta(*self.state.best_theta)


def _accelerator(precision: str) -> Accelerator:
    """Return accelerate's driver; its state is one per process, and an earlier run may have had another precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=precision)
        if precision == "fp16" and accelerator.device.type == "cpu":  # some versions would train without loss scaling
            raise ValueError("fp16 needs a GPU")
    except ValueError as error:
        AcceleratorState._reset_state()
        raise TrainingError(
            f"expected a machine that can train with precision {precision!r}, but {error}: choose 'no' or 'bf16'"
        ) from error
    return accelerator


def finetune(
    model: nn.Module,
    task: Task,
    settings: FinetuneSettings,
    arm: Arm,
    relaxation: Relaxation | None = None,
    on_step: Callable[[StepEvent], None] | None = None,
) -> FinetuneResult:
    """Fine-tune in place and leave the model with the weights of the best epoch; nothing is written.

    The best epoch is chosen at clean evaluation on the validation split: what stripping would give. The model as it
    came counts as epoch 0, so the result is never worse than it there.

    Args:
        model: the network, with branches if the arm has any.
        task: the user's task.
        settings: see :class:`FinetuneSettings`.
        arm: see ``surgeon.training.arms``.
        relaxation: handle on the branches; None for the arm "plain".
        on_step: called after every optimiser step.

    Raises:
        TrainingError: if a loss, penalty or gradient is not finite.
    """
    return Finetuner(model, task, settings, arm, relaxation).run(on_step)
