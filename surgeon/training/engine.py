"""The fine-tuning loop, driven by accelerate."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.penalty_settings import PenaltySettings
from surgeon.editing.merge import merge, unmerge
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import refold
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.errors import TrainingError
from surgeon.opening.evaluation import fitted
from surgeon.opening.task_calls import task_forward, task_loss
from surgeon.optim.adam import MatrixOptimizer
from surgeon.optim.blocks import WeightBlocks
from surgeon.plan import Plan, Task
from surgeon.support.modes import set_training
from surgeon.support.sharding import is_sharded, whole
from surgeon.training.accelerator import (
    SharedBuffers,
    as_tracked,
    average_gradients,
    broken_gradient,
    broken_term,
    deterministic,
    keep_whole,
    make_accelerator,
    prepared,
    shards,
    with_advice,
)
from surgeon.training.arms import Arm, require_trainable
from surgeon.training.batches import Sharing, count_steps, epoch_seed, training_steps
from surgeon.training.ema import Ema
from surgeon.training.groups import freeze_base, optimised_matrices, parameter_groups, theta_group
from surgeon.training.optimizers import make_optimizer, rate_scale
from surgeon.training.progress import StepEvent
from surgeon.training.replay import Replay, Teacher
from surgeon.training.selection import BestWeights
from surgeon.training.session import TrainingSession
from surgeon.training.settings import FinetuneSettings
from surgeon.training.state import FinetuneResult, TrainingState
from surgeon.training.weighting import PenaltyWeight

LOG_EVERY = 10
"""Steps between records of single steps."""

_PREPARED = ("_is_accelerate_prepared", "_original_forward", "forward")
"""What accelerate puts on a model."""


class Finetuner:
    """One run: model, task, arm and settings, with the state that a resume restores.

    Where FSDP shards the weights, a copy is trained, and the network itself gets the best weights at the end; branches,
    or updates, stay whole in every process.

    Args:
        model: the network, with branches or updates if the arm has any; trained in place.
        arm: how the branches take part.
        added: handle on the branches, or on the low-rank updates; None for arms that have neither.
        trackers: where records go besides the run folder.
        folder: for the trackers' files.
        plan: of the network, for optimisers of matrices; the one of the branches if there are any.
        teacher: whose outputs are a further target; None for none.

    Attributes:
        weights: the matrices inside the trainable weights, if the optimiser asks for them.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        settings: FinetuneSettings,
        arm: Arm,
        added: Relaxation | WeightUpdates | None = None,
        trackers: Sequence[str] = (),
        folder: Path | None = None,
        plan: Plan | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        from accelerate.utils import set_seed

        require_trainable(arm, added, settings.freeze_base)
        self.task, self.settings, self.arm = task, settings, arm
        self.accelerator = make_accelerator(settings.precision, trackers, folder)
        self.sharing = Sharing(settings.accumulate, self.accelerator.num_processes, self.accelerator.process_index)
        self._sharded = shards(self.accelerator)
        self.replay = None if teacher is None else Replay(teacher, settings, self.accelerator.device)
        self.given_model, self.given_added, given = model, added, added
        if self._sharded:
            model, added = copy.deepcopy((model, added))
        self.relaxation = added if isinstance(added, Relaxation) else None
        self.plain_model = model
        self._own_forward = {name: value for name, value in vars(model).items() if name == "forward"}
        weight = arm.penalty_weight if settings.penalty_weight is None else settings.penalty_weight
        self.session = None
        if self.relaxation is not None:
            self.session = TrainingSession(self.relaxation, weight, settings.penalty_scale, settings.recalibrate)
        self.penalty_weight = PenaltyWeight(0.0) if self.session is None else self.session.weight
        self.state = TrainingState()
        set_seed(settings.seed)
        self._start_branches()
        self._frozen = freeze_base(model, added) if settings.freeze_base and added is not None else []
        optimizer = make_optimizer(parameter_groups(model, added, arm, settings), settings)
        self.weights: list[WeightBlocks] = []
        if isinstance(optimizer, MatrixOptimizer):
            self.weights = optimised_matrices(model, self.relaxation, plan, self._sharded)
            optimizer.use_blocks(self.weights)
        if self._sharded:
            keep_whole(self.accelerator, [] if added is None else list(added.modules()))
        set_seed(settings.seed, device_specific=True)
        self.model, self.optimizer = prepared(self.accelerator, model, optimizer)
        self._prepared = {name: vars(model)[name] for name in _PREPARED if name in vars(model)}
        self._learn_theta()
        self._buffers = SharedBuffers(model) if self.sharing.processes > 1 else None
        self.ema = None if settings.ema is None else Ema(model, settings.ema)
        back = self.given_model, given if isinstance(given, Relaxation) else None
        self.selection = BestWeights(model, task, settings, self.session, self.ema, self.accelerator, back)
        if trackers:
            self.accelerator.init_trackers("equisurgeon", {"arm": arm.name, **as_tracked(settings.to_data())})

    def _learn_theta(self) -> None:
        if self.relaxation is not None and self.arm.learns_theta:  # buffers: not moved and sharded like parameters
            self.relaxation.learn_theta(True)
            self.optimizer.add_param_group(theta_group(self.relaxation, self.settings))

    def _start_branches(self) -> None:
        if self.relaxation is None:
            return
        settings = self.settings
        if self.arm.refolds:
            self.relaxation.find_folds()
        penalty = PenaltySettings(settings.penalty_form, settings.penalty_rows, settings.penalty_every)
        self.relaxation.set_penalty(penalty if self.penalty_weight.value > 0 else None)
        if self.arm.learns_theta:
            self.state.duals = dict.fromkeys(self.relaxation.branches, 0.0)
            generator = torch.Generator().manual_seed(settings.seed)
            for branch in self.relaxation.branches.values():
                if not branch.weight.any():  # W = 0 and theta = 0 would be a saddle point that nothing leaves
                    branch.initialise(1.0, generator)

    def run(
        self,
        on_step: Callable[[StepEvent], None] | None = None,
        on_save: Callable[[Finetuner], None] | None = None,
        save_every: int | None = None,
        until: int | None = None,
    ) -> FinetuneResult:
        """Train to the end, or on from the restored state, and load the weights of the best epoch.

        Args:
            on_step: called after every optimiser step.
            on_save: called after every epoch that ends with an evaluation, and every ``save_every`` steps: the place to
                save the state. It is called on every process.
            save_every: optimiser steps between further saves; None for none.
            until: the epoch after which it pauses with the weights that it has then; None for the end.

        Raises:
            TrainingError: if a loss, penalty or gradient is not finite, or the memory does not suffice; the model then
                holds the best weights so far.
            TaskError: if the task returns something unusable.
        """
        with self._running():
            state, settings = self.state, self.settings
            if not state.history:
                self._finish_epoch(time.perf_counter(), on_save)
            last = settings.epochs if until is None else min(until, settings.epochs)
            while (state.epoch < last or state.epoch_step) and not state.stopped:
                started = time.perf_counter()
                for loss, penalty in self._epoch():
                    state.losses += loss
                    state.penalties += penalty
                    self._tell(loss, penalty, on_step)
                    if save_every and state.step % save_every == 0 and on_save and not self._is_last_step():
                        state.seconds, started = state.seconds + time.perf_counter() - started, time.perf_counter()
                        on_save(self)
                self._set_step()  # exactly 0 after the last epoch
                self._finish_epoch(started, on_save)
            if until is None or state.epoch >= settings.epochs or state.stopped:
                self.selection.load_best(state)
            for tracker in self.accelerator.trackers:
                tracker.finish()
            return state.result()

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Take off the model, when the context closes, what accelerate and this run put on it."""
        try:
            vars(self.plain_model).update(self._prepared)
            if self.relaxation is not None:
                merge(self.relaxation)
            with deterministic(self.settings.deterministic), with_advice(self.settings.precision, "a training step"):
                yield
        finally:
            for name in _PREPARED:
                vars(self.plain_model).pop(name, None)
            vars(self.plain_model).update(self._own_forward)
            if self.relaxation is not None:
                unmerge(self.relaxation)
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            if self.relaxation is not None and self.arm.learns_theta:
                self.relaxation.learn_theta(False)

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training; 0 until it is known."""
        return self.settings.epochs * self.state.steps_per_epoch

    def _is_last_step(self) -> bool:
        return self.state.epoch_step == self.state.steps_per_epoch

    def _epoch(self) -> Iterator[tuple[float, float]]:
        """Run one epoch, or the rest of one, and yield task loss and penalty of every step."""
        state, settings = self.state, self.settings
        if not state.epoch_step:
            state.epoch, state.losses, state.penalties = state.epoch + 1, 0.0, 0.0
            state.replays, state.replayed = 0.0, 0
        seed = epoch_seed(settings.seed, state.epoch)
        if not state.steps_per_epoch:
            state.steps_per_epoch = count_steps(self.task, self.sharing, seed)
        steps = training_steps(self.task, self.sharing, seed, state.epoch_step)
        set_training(self.model, True)
        for batches in steps:
            moved = [fitted(batch, self.model, self.accelerator.device) for batch in batches]
            progress = min(state.step / self.steps, 1.0)  # an epoch may be longer than the first
            loss, penalty = self._step(moved, progress)
            state.step += 1
            state.epoch_step += 1
            self._after_step()
            yield loss, penalty

    def _step(self, batches: Sequence[Any], progress: float) -> tuple[float, float]:
        self._set_rates(progress)
        self._set_step()
        losses: list[Tensor] = []
        self._replay(batches)
        for number, batch in enumerate(batches, start=1):
            last = number == len(batches)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    loss = task_loss(self.task, task_forward(self.task, self.model, batch), batch)
                losses.append(loss.detach())
                if last:
                    mean = self._mean_loss(losses)
                self.accelerator.backward(loss / len(batches))
        penalty = self._add_penalty_gradient(mean)
        self._finish_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return mean, penalty

    def _replay(self, batches: Sequence[Any]) -> None:
        """Add the gradients of what accompanies the batches of a step; the penalty is that of the batches alone."""
        if self.replay is None:
            return
        found = torch.zeros(2, device=self.accelerator.device)
        for own, batch in enumerate(batches):
            inputs = self.replay.inputs(batch, self.sharing.number(self.state.step, own))
            if inputs is None:
                continue
            unseen = nullcontext() if self.relaxation is None else self.relaxation.unseen()
            with unseen, self.accelerator.no_sync(self.model):  # the last of the training batches synchronises
                with self.accelerator.autocast():
                    distance = self.replay.distance(self.model, inputs)
                self.accelerator.backward(self.settings.replay_weight * distance / len(batches))
            found += torch.stack([distance.detach().float(), torch.ones_like(found[1])])
        if self.sharing.processes > 1:
            found = self.accelerator.reduce(found, "sum")
        self.state.replays += float(found[0])
        self.state.replayed += int(found[1])
        if not math.isfinite(self.state.replays):
            self._stop("the distance from the original's outputs became non-finite")

    def _add_penalty_gradient(self, loss: float) -> float:
        """Add the gradient of the weighted penalty and return the penalty itself."""
        if self.session is None or self.penalty_weight.value == 0:
            return 0.0
        scaler = getattr(self.accelerator, "scaler", None)
        self.session.add_penalty_gradient(loss, 1.0 if scaler is None else scaler.get_scale())
        if not math.isfinite(self.session.penalty):
            where = broken_term(self.session.relaxation)
            self._stop(f"the penalty of the branch at {where!r} became non-finite")
        return self.session.penalty

    def _mean_loss(self, losses: Sequence[Tensor]) -> float:
        """Return the mean task loss of a step over batches and processes."""
        mean = torch.stack([loss.float() for loss in losses]).mean()
        if self.sharing.processes > 1:
            mean = self.accelerator.reduce(mean, "mean")
        value = float(mean)
        if not math.isfinite(value):
            self._stop(f"the task loss became {value}")
        return value

    def _finish_gradients(self) -> None:
        """Clip each group by itself: the gradient of W must not shorten the base's step in some arms only."""
        scaler = getattr(self.accelerator, "scaler", None)
        average_gradients(self._not_averaged())
        self.accelerator.unscale_gradients()  # all at once: a loss scaler allows it once per step
        if self.relaxation is not None and self.arm.learns_theta:
            for key, branch in self.relaxation.branches.items():
                if branch.theta.grad is not None:
                    branch.theta.grad[0] += self.state.duals[key]
        for group in self.optimizer.param_groups:
            norm = torch.nn.utils.clip_grad_norm_(group["params"], self.settings.clip or math.inf)
            # With a loss scaler an overflow is normal: it lowers the scale and skips the step.
            if scaler is None and not math.isfinite(float(whole(norm))):
                name = broken_gradient(self.plain_model, group["params"])
                self._stop(f"the gradient of {name} became NaN or infinite")

    def _not_averaged(self) -> list[Tensor]:
        """Return what neither DDP nor FSDP averages: coefficients, which are buffers, and what FSDP leaves whole."""
        groups = [group for group in self.optimizer.param_groups if self._sharded or group["name"] == "theta"]
        return [parameter for group in groups for parameter in group["params"] if not is_sharded(parameter)]

    def _set_rates(self, progress: float) -> None:
        state = self.state
        scale = rate_scale(self.settings, state.step, self.steps, state.epoch - 1)
        bump = 1 + self.settings.schedule.perpendicular(progress) if self.arm.bumps_rate else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_rate"] * scale * bump

    def _set_step(self) -> None:
        if self.session is not None and not self.arm.learns_theta:
            done = min(self.state.step, self.steps)  # an epoch may be longer than the first
            self.session.set_step(done, self.steps, self.state.theta_scale)

    def _after_step(self) -> None:
        state, relaxation = self.state, self.relaxation
        if self._buffers is not None:
            self._buffers.share()
        if self.ema is not None:
            self.ema.update(state.step)
        # before an evaluation, too: what is in W then would not be counted
        due = state.step % self.settings.refold_every == 0 or self._is_last_step()
        if relaxation is not None and self.arm.refolds and due:
            self._refold(relaxation)
        if relaxation is not None and self.arm.learns_theta:
            for key, (theta, _) in relaxation.thetas.items():
                state.duals[key] += self.settings.dual_rate * theta

    def _refold(self, relaxation: Relaxation) -> None:
        refold(relaxation)
        if self.ema is not None:
            with self.ema.swapped():
                refold(relaxation)

    def _stop(self, what: str) -> None:
        best = self.state.best_epoch
        if self.selection.best_weights:
            self.selection.load_best(self.state)
        raise TrainingError(
            f"{what} at step {self.state.step + 1} (epoch {self.state.epoch}); the best weights so far, of epoch "
            f"{best}, were kept: lower the learning rate, clip gradients, or look for broken samples"
        )

    def _tell(self, loss: float, penalty: float, on_step: Callable[[StepEvent], None] | None) -> None:
        state = self.state
        theta = self.relaxation.theta if self.relaxation is not None else (0.0, 0.0)
        if state.step % LOG_EVERY == 0:
            rate = self.optimizer.param_groups[0]["lr"]
            entry = {"step": state.step, "theta": theta, "loss": loss, "penalty": penalty, "learning_rate": rate}
            state.steps.append(entry)
            if self.accelerator.trackers:
                self.accelerator.log({**entry, "theta": theta[0]}, step=state.step)
        if on_step:
            on_step(state.event(self.steps, None if self.relaxation is None else theta[0], loss, penalty))

    def _finish_epoch(self, started: float, on_save: Callable[[Finetuner], None] | None) -> None:
        """Evaluate if it is time, and append the epoch to the history."""
        state = self.state
        due = state.epoch % self.settings.evaluate_every == 0 or state.epoch == self.settings.epochs
        found = self.selection.evaluate(state) if due else None
        state.seconds += time.perf_counter() - started
        theta = self.relaxation.theta if self.relaxation is not None else (0.0, 0.0)
        state.close_epoch(theta, found, self.replay is not None)
        patience = self.settings.patience
        if patience is not None and state.since_best >= patience:
            state.stopped = f"no better {self.selection.metric} in {patience} evaluation{'s' * (patience > 1)}"
        if found is not None and self.accelerator.trackers:
            self.accelerator.log({f"validation/{name}": value for name, value in found.clean.items()}, step=state.step)
        if due and on_save:
            on_save(self)
