"""A callback for Lightning, and a mixin for those who want the penalty in the loss."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.penalty import PenaltyForm
from surgeon.algebra.schedule import Schedule
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import UsageError
from surgeon.integrations.driver import RelaxationDriver
from surgeon.integrations.progress import done, idle_optimizers, length, reaches
from surgeon.integrations.settings import RelaxationSettings, base_class, first_call, require_library
from surgeon.plan import Plan, SiteRecord, StripMode
from surgeon.training.session import RECALIBRATION_BATCHES
from surgeon.training.weighting import PenaltyScale

_Callback: Any = base_class("lightning.pytorch", "Callback")
_SHARDING_STRATEGIES = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")
_AVERAGING_CALLBACKS = ("WeightAveraging", "StochasticWeightAveraging")


class RelaxationCallback(_Callback):  # type: ignore[misc]  # a library that may be missing
    """Relaxes a network while Lightning trains it: nothing else has to change.

    Branches come in when the module is set up, before its optimisers are made, and go at the end of ``fit``. In
    between theta follows the schedule by optimiser steps (by batches where the module takes its steps by itself, since
    these may be those of several optimisers), the penalty's gradient is added to that of the loss before
    gradients are clipped, validation sees the clean model, and every checkpoint is one of the clean model with the
    original's keys; what a resume needs besides is in the callback's own state. ``relaxation/theta`` and
    ``relaxation/penalty`` are logged.

    Args:
        group: see :class:`surgeon.integrations.settings.RelaxationSettings`, as for all arguments.
        plan: a plan, or its file.
        module: dotted path of the network inside the LightningModule.
        mode: "drop" or "fold".
        include: shell patterns of sites.
        exclude: shell patterns of sites.
        schedule: theta(t).
        penalty_weight: lambda.
        penalty_scale: "relative" or "absolute".
        penalty_form: "gram", "rows" or "square".
        branch_factor: learning rate of W as a multiple of the base's.
        recalibrate: training batches from which clean evaluation takes statistics anew.

    Attributes:
        relaxation: the handle on the branches; None before and after ``fit``.
        records: what was stripped from each site; empty before.
    """

    def __init__(
        self,
        group: str | None = None,
        *,
        plan: Plan | str | Path | None = None,
        module: str | None = None,
        mode: StripMode = "drop",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        schedule: Schedule | None = None,
        penalty_weight: float | None = None,
        penalty_scale: PenaltyScale = "relative",
        penalty_form: PenaltyForm = "gram",
        branch_factor: float = 0.1,
        recalibrate: int = RECALIBRATION_BATCHES,
    ) -> None:
        require_library(_Callback, "lightning")
        self.settings = RelaxationSettings(
            group,
            plan,
            module,
            mode,
            include,
            exclude,
            schedule,
            penalty_weight,
            penalty_scale,
            penalty_form,
            branch_factor,
            recalibrate,
        )
        self.records: tuple[SiteRecord, ...] = ()
        self._driver: RelaxationDriver | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0
        self._ends_step = False
        self._evaluation = ExitStack()

    @property
    def relaxation(self) -> Relaxation | None:
        """The handle on the branches, while there are any."""
        return None if self._driver is None else self._driver.relaxation

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have the branches inserted at the end of ``configure_model``.

        By then the network is there, whichever hook builds it; its weights, its place on devices and its optimisers
        come later.
        """
        if stage != "fit":
            return
        _require_no_averaging(trainer)
        _require_whole_weights(trainer)
        if self._driver is not None:  # an earlier training was interrupted
            self._driver.finish(failed=True)
        vars(pl_module).pop("configure_model", None)
        configure = pl_module.configure_model

        def configure_and_relax() -> None:
            vars(pl_module).pop("configure_model", None)
            configure()
            self._insert(trainer, pl_module)

        pl_module.configure_model = configure_and_relax

    def _insert(self, trainer: Any, pl_module: Any) -> None:
        if _has_penalty_in_loss(pl_module) and not pl_module.automatic_optimization:
            raise UsageError("expected automatic optimisation of a RelaxedModule: use the callback without the mixin")
        device = next((parameter.device for parameter in pl_module.parameters()), torch.device("cpu"))

        def step() -> None:
            batch = trainer.strategy.batch_to_device(_first_batch(trainer), device)
            with idle_optimizers(pl_module):
                pl_module.training_step(*_accepted(pl_module.training_step, batch, 0))

        with device:  # not the one on which the strategy creates new modules
            self._driver = RelaxationDriver(pl_module, self.settings, step, self._forward)

    def _forward(self, pl_module: Any, batch: Any) -> Any:
        """Call the network with what a training step calls it with first; the step itself would log and count."""
        assert self._driver is not None
        network = self._driver.relaxation.model
        with idle_optimizers(pl_module):
            args, kwargs = first_call(
                network, lambda: pl_module.training_step(*_accepted(pl_module.training_step, batch, 0))
            )
        return network(*args, **kwargs)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the optimiser of the branches, give them their learning rate, and have them clipped by themselves."""
        assert self._driver is not None
        self._optimizer = self._driver.attend(trainer.optimizers)
        _clip_apart(pl_module, self._driver)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count the steps of the training and set theta."""
        steps = length(trainer)
        if not (math.isfinite(steps) and steps > 0):
            raise UsageError(
                f"expected a training of known length for the schedule of theta, got {steps:g} steps: give the Trainer "
                "max_steps, or max_epochs and data of known length"
            )
        self._steps = int(steps)
        self._set_step(trainer)

    def _set_step(self, trainer: Any) -> None:
        assert self._driver is not None
        self._driver.set_step(done(trainer, self._steps), self._steps)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Find out whether an optimiser step ends with this micro-batch, and keep it for clean evaluation."""
        assert self._driver is not None
        self._driver.keep_batch(batch)
        self._ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Take up the loss for the size of lambda; of several optimisers' losses those that reach a branch."""
        assert self._driver is not None
        trained = len(trainer.optimizers) < 2 or reaches(loss, self._driver.relaxation.branch_parameters())
        if trained and not _has_penalty_in_loss(pl_module):
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._driver.add_loss(loss if scaler is None else loss / scaler.get_scale())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add the penalty's gradient, once per optimiser step and in the units of the loss."""
        assert self._driver is not None
        if optimizer is not self._optimizer:
            return
        if not _has_penalty_in_loss(pl_module):
            self._driver.add_penalty_gradient()
        theta = self._driver.relaxation.theta[0]
        pl_module.log_dict({"relaxation/theta": theta, "relaxation/penalty": self._driver.penalty})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Set theta for what comes next, be it a step, an evaluation or a checkpoint."""
        self._set_step(trainer)

    def loss_with_penalty(self, trainer: Any, output: Any) -> Any:
        """Return what a training step returned with the penalty in its loss, if an optimiser step ends with it.

        Lightning divides losses by the number of micro-batches of an optimiser step; the penalty is not a mean of them.
        """
        loss = output["loss"] if isinstance(output, Mapping) else output
        if self._driver is None or not isinstance(loss, Tensor):
            return output
        parts = trainer.accumulate_grad_batches
        self._driver.add_loss(loss / parts)
        if self._ends_step:
            loss = loss + parts * self._driver.weighted_penalty()
        return {**output, "loss": loss} if isinstance(output, Mapping) else loss

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate the clean model."""
        if self._driver is not None:
            self._evaluation.enter_context(self._driver.clean_evaluation())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Go back to the relaxed model."""
        self._evaluation.close()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Strip the branches."""
        if self._driver is not None:
            self.records = self._driver.finish()
            self._driver = self._optimizer = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs; part of every checkpoint."""
        return {} if self._driver is None else self._driver.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint of a training; there is nothing to do for an evaluation."""
        if self._driver is not None:
            self._driver.load_state_dict(state_dict)


class RelaxedModule:
    """Mixin for a LightningModule whose loss itself shall contain the penalty, as with manual logging of it.

    Put it before the module: ``class Relaxed(RelaxedModule, MyModule)``; the trainer needs a
    :class:`RelaxationCallback` all the same, which then leaves the penalty to the loss.
    """

    def training_step(self, *args: Any) -> Any:
        """Return what the module's own training step returns, with the penalty in its loss."""
        original: Callable[..., Any] = super().training_step  # type: ignore[misc]
        output = original(*_accepted(original, *args))
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        callbacks = [callback for callback in trainer.callbacks if isinstance(callback, RelaxationCallback)]
        if not callbacks:
            raise UsageError(
                f"expected a RelaxationCallback beside the RelaxedModule {type(self).__name__}, got none: give one to "
                "the Trainer"
            )
        return callbacks[0].loss_with_penalty(trainer, output)


def _has_penalty_in_loss(pl_module: Any) -> bool:
    return isinstance(pl_module, RelaxedModule)


def _accepted(function: Callable[..., Any], *values: Any) -> tuple[Any, ...]:
    """Return as many of the values as a function takes; training steps may take a batch and its number, or a batch."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return values
    return values[: len(parameters)]


def _first_batch(trainer: Any) -> Any:
    """Return the first training batch; the training itself gets the batches that it would have got."""
    from lightning.pytorch.utilities.seed import isolate_rng

    trainer.fit_loop.setup_data()
    loader: Any = trainer.train_dataloader
    held = [getattr(holder, "generator", None) for holder in (loader, getattr(loader, "sampler", None))]
    generators = [generator for generator in held if generator is not None]
    states = [generator.get_state() for generator in generators]
    with isolate_rng():
        batch = next(iter(loader))
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
    return batch


def _clip_apart(pl_module: Any, driver: RelaxationDriver) -> None:
    """Let the module's own way of clipping gradients treat branches and everything else as groups of their own."""
    original = pl_module.configure_gradient_clipping

    def clip(
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        for branches in (False, True):
            with driver.gradients_of(branches):
                original(
                    optimizer,
                    gradient_clip_val=gradient_clip_val,
                    gradient_clip_algorithm=gradient_clip_algorithm,
                )

    pl_module.configure_gradient_clipping = clip
    driver.at_end(lambda: vars(pl_module).pop("configure_gradient_clipping"))


def _require_whole_weights(trainer: Any) -> None:
    from lightning.pytorch import strategies

    kinds = tuple(getattr(strategies, name) for name in _SHARDING_STRATEGIES if hasattr(strategies, name))
    if isinstance(trainer.strategy, kinds):
        raise UsageError(
            "expected a strategy with the whole network in every process, but "
            f"{type(trainer.strategy).__name__} shards it: use 'ddp', or `surgeon finetune`, which trains with FSDP"
        )


def _require_no_averaging(trainer: Any) -> None:
    from lightning.pytorch import callbacks

    kinds = tuple(getattr(callbacks, name) for name in _AVERAGING_CALLBACKS if hasattr(callbacks, name))
    for callback in trainer.callbacks:
        if isinstance(callback, kinds):
            raise UsageError(
                f"expected no callback that averages copies of the module, but {type(callback).__name__} does, "
                "branches included: leave it out, or average the clean checkpoints"
            )
