"""What every training of a relaxed network does besides its own: theta, the weighted penalty, clean evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.moments import mean_of_each, processes, weighted_mean_of_each
from surgeon.editing.recalibration import (
    StatisticsChange,
    gathered_since,
    layers_with_statistics,
    recalibrated,
    running_statistics,
    statistics_of,
)
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import CheckpointError, TrainingError, UsageError
from surgeon.files.relaxed import RecordedGraph
from surgeon.opening.description import not_comparable, recorded_graph
from surgeon.support.copies import copied
from surgeon.support.modes import device_of
from surgeon.support.trees import to_device
from surgeon.training.settings import RECALIBRATION_BATCHES
from surgeon.training.state import randomness_kept
from surgeon.training.weighting import PenaltyScale, PenaltyWeight


def flat(statistics: Mapping[str, Mapping[str, Tensor]], between: str) -> dict[str, Tensor]:
    """Return statistics by one name instead of two."""
    return {f"{name}{between}{key}": value for name, own in statistics.items() for key, value in own.items()}


def _call(model: nn.Module, batch: Any) -> Any:
    """Return ``model(batch)``."""
    return model(batch)


class TrainingSession:
    """A relaxed network in a training, whatever loop runs it; make it before the first step.

    Args:
        relaxation: the handle on the branches.
        penalty_weight: lambda of eq. 5; 0 switches the penalty off.
        penalty_scale: "relative" multiplies lambda by a running mean of the task loss, "absolute" is the paper's.
        recalibrate: training batches, at most, from which clean evaluation takes statistics anew; 0 for none.
        model: what holds layers with running statistics, if that is more than the relaxed network.

    Attributes:
        relaxation: the handle on the branches.
        weight: lambda, with the running mean of the task loss.
        penalty: value of the last penalty.
        source: what :meth:`record_source` recorded; None before.

    Example::

        session = surgeon.TrainingSession(relaxation)
        for step, batch in enumerate(batches):
            session.set_step(step, steps)
            loss = task_loss(model(batch))
            (loss + session.weighted_penalty(loss)).backward()
            ...
        with session.clean_evaluation(batches):
            validate(model)
    """

    def __init__(
        self,
        relaxation: Relaxation,
        penalty_weight: float = 0.01,
        penalty_scale: PenaltyScale = "relative",
        recalibrate: int = RECALIBRATION_BATCHES,
        model: nn.Module | None = None,
    ) -> None:
        self.relaxation = relaxation
        self.weight = PenaltyWeight(penalty_weight, penalty_scale)
        self.penalty = 0.0
        self.recalibrate = recalibrate
        self.model = relaxation.model if model is None else model
        self.steps: int | None = None
        self.start = running_statistics(self.model)
        self.source: RecordedGraph | None = None
        relaxation.enable_penalty(penalty_weight > 0)

    def record_source(self, *args: Any, **kwargs: Any) -> None:
        """Record which graph the network's code computes without branches; a resume refuses one that has changed since.

        Args:
            *args: inputs of the network, best those that the plan was found on: only on the same ones is it compared.
            **kwargs: the same by name.
        """
        network = copied(self.relaxation.model)
        strip(network, "drop")
        self.source = recorded_graph(network, lambda model: model(*args, **kwargs), (args, kwargs))

    def set_step(self, step: float, steps: int, scale: float = 1.0) -> None:
        """Set theta for an optimiser step.

        Args:
            step: steps that are done, at most ``steps``.
            steps: of the whole training, the same at every call.
            scale: multiplies theta of what will be dropped.

        Raises:
            UsageError: if there are none, more than all are done, or their number is another than before, also in the
                training that is resumed.
        """
        if self.steps is not None and steps != self.steps:
            raise UsageError(
                f"expected a training of {self.steps} optimiser steps, as it was started with, got one of {steps}: "
                "theta follows the share of the steps that is done and would jump, so resume with the same number of "
                "epochs, steps and batches, or start a new training from the clean weights"
            )
        if not 0 <= step <= steps or not steps:
            raise UsageError(
                f"expected from 0 to all of the optimiser steps of a training to be done, got {step} of {steps}: count "
                "those of the whole training, all epochs together"
            )
        self.steps = steps
        self.relaxation.set_progress(step / steps, scale)

    def weighted_penalty(self, loss: Tensor | float) -> Tensor:
        """Return lambda times the penalty of an optimiser step, shape (); call it once, after all its forwards.

        It is the same in all processes of torch.distributed, all of which have to call it.

        Args:
            loss: the task loss of the step, the mean over its micro-batches; a tensor is averaged over processes. With
                one that is not finite, for which a gradient scaler skips the step, the penalty is 0.

        Raises:
            TrainingError: if a branch saw nothing in this step.
        """
        like = next(iter(self.relaxation.branches.values())).theta
        if self.relaxation.penalty_settings is None:
            return like.new_zeros(())
        with torch.enable_grad():
            penalty = self.relaxation.penalty(may_be_empty=True)
        if isinstance(loss, Tensor):
            loss = float(mean_of_each([loss.double()])[0])
        if not math.isfinite(loss):
            return like.new_zeros(())
        self._require_seen()
        self.penalty = float(penalty.detach())
        return self.weight(loss) * penalty

    def _require_seen(self) -> None:
        missed = [key for key, branch in self.relaxation.branches.items() if branch.missed]
        if missed or not self.relaxation.penalty_terms():
            where = (missed or list(self.relaxation.branches))[0]
            raise TrainingError(
                f"expected the branch at {where!r} to see features in a training step, but none were recorded: let "
                "the step call the network in training mode with gradients, activation checkpointing with "
                "use_reentrant=False, or switch the penalty off with penalty_weight=0"
            )

    def add_penalty_gradient(self, loss: Tensor | float, scale: float = 1.0) -> None:
        """Add the gradient of :meth:`weighted_penalty` to those of the branches, averaged over processes.

        Call it after the backward of the task loss. Hooks on gradients, such as those by which data-parallel training
        averages them, do not run: they would fail for branches that the batches of this process did not use.

        Args:
            loss: see :meth:`weighted_penalty`.
            scale: what the other gradients are multiplied by, as a gradient scaler does.
        """
        penalty = self.weighted_penalty(loss)
        if not penalty.requires_grad:
            return
        parameters = self.relaxation.branch_parameters()
        found = torch.autograd.grad(penalty, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        for parameter, gradient, mean in zip(parameters, found, mean_of_each(gradients), strict=True):
            if gradient is not None:  # no step of an optimiser for what nothing has reached
                added = scale * mean
                parameter.grad = added if parameter.grad is None else parameter.grad.add_(added)

    @contextmanager
    def clean_evaluation(
        self, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] = _call
    ) -> Iterator[tuple[StatisticsChange, ...]]:
        """While the context is open the model computes what it would after stripping, with the statistics of then.

        Running statistics that the relaxed forward has gathered since the start (BatchNorm) are taken anew from
        batches, and put back at the end; so is the random state. In several processes they are the mean over all.

        Args:
            batches: training batches, of which the first few are read, and none if there is nothing to take anew.
            forward: ``forward(model, batch)``; default ``model(batch)``.

        Yields:
            What was done to each layer; empty if nothing was.

        Raises:
            UsageError: if there is no batch.
            SurgeryError: if a statistic becomes NaN or infinite.
        """
        with ExitStack() as stack:
            stack.enter_context(self.relaxation.clean())
            changes: tuple[StatisticsChange, ...] = ()
            gathered = gathered_since(self.model, self.start) if self.recalibrate else []
            if self.start and self._any(bool(gathered)):
                device = device_of(self.model)
                moved = (to_device(batch, device) for batch in islice(batches, self.recalibrate))
                with randomness_kept():
                    changes = stack.enter_context(recalibrated(self.model, moved, forward, gathered))
                if processes() > 1:
                    self._average_statistics({change.name: change.calls for change in changes})
            yield changes

    @staticmethod
    def _any(here: bool) -> bool:
        """Tell whether something holds in any process."""
        return bool(mean_of_each([torch.tensor(float(here))])[0])

    @torch.no_grad()
    def _average_statistics(self, calls: Mapping[str, int]) -> None:
        """Set statistics to their mean over the calls in all processes; what a process did not call counts as 0."""
        layers = layers_with_statistics(self.model)
        values = [(name, value) for name, layer in layers.items() for value in statistics_of(layer).values()]
        means = weighted_mean_of_each([value for _, value in values], [calls.get(name, 0) for name, _ in values])
        for (_, value), mean in zip(values, means, strict=True):
            if mean is not None:
                value.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs besides the weights; tensors and plain data."""
        return {
            "relaxation": self.relaxation.state_dict(),
            "penalty_weight": self.weight.state_dict(),
            "steps": self.steps,
            "source": self.source,
            "start": flat(self.start, ":"),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            CheckpointError: if on the same inputs the network's code computes another graph than when it was saved.
        """
        known, now = state["source"], self.source
        if known and now and not not_comparable(known, now) and known["sha256"] != now["sha256"]:
            raise CheckpointError(
                "expected the network that this training was started with, but on the same inputs its code now "
                f"computes another graph (sha256 {now['sha256'][:12]}, then {known['sha256'][:12]}), if it is not "
                "another build of this version of surgeon that records it otherwise: restore its source, or start a "
                "new training"
            )
        self.relaxation.load_state_dict(state["relaxation"])
        self.weight.load_state_dict(state["penalty_weight"])
        self.steps = state["steps"]
        for name, value in state["start"].items():
            layer, _, key = name.rpartition(":")
            self.start[layer][key] = value.to(self.start[layer][key])
