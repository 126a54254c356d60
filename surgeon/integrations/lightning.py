"""A callback for Lightning."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from surgeon.editing.relaxation import Relaxation
from surgeon.errors import UsageError
from surgeon.integrations.progress import done, idle_optimizers, length, reaches
from surgeon.integrations.session import TrainerSession
from surgeon.integrations.settings import RelaxationSettings, base_class, first_call, require_library
from surgeon.optim.adam import MatrixOptimizer
from surgeon.optim.blocks import find_blocks
from surgeon.plan import Plan, SiteRecord

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
        group: the symmetry ("O3"); needed unless there is a plan.
        **settings: those of :class:`surgeon.integrations.settings.RelaxationSettings`; ``module`` is the path of the
            network inside the LightningModule.

    Attributes:
        relaxation: the handle on the branches; None before and after ``fit``.
        records: what was stripped from each site; empty before.
    """

    def __init__(self, group: str | None = None, **settings: Any) -> None:
        require_library(_Callback, "lightning")
        self.settings = RelaxationSettings(group, **settings)
        self.records: tuple[SiteRecord, ...] = ()
        self._session: TrainerSession | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0
        self._evaluation = ExitStack()

    @property
    def relaxation(self) -> Relaxation | None:
        """The handle on the branches, while there are any."""
        return None if self._session is None else self._session.relaxation

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Have the branches inserted at the end of ``configure_model``.

        By then the network is there, whichever hook builds it; its weights, its place on devices and its optimisers
        come later.
        """
        if stage != "fit":
            return
        _require_no_averaging(trainer)
        _require_whole_weights(trainer)
        if self._session is not None:  # an earlier training was interrupted
            self._session.finish(failed=True)
        vars(pl_module).pop("configure_model", None)
        configure = pl_module.configure_model

        def configure_and_relax() -> None:
            vars(pl_module).pop("configure_model", None)
            configure()
            self._insert(trainer, pl_module)

        pl_module.configure_model = configure_and_relax

    def _insert(self, trainer: Any, pl_module: Any) -> None:
        device = next((parameter.device for parameter in pl_module.parameters()), torch.device("cpu"))

        def step() -> None:
            batch = trainer.strategy.batch_to_device(_first_batch(trainer), device)
            with idle_optimizers(pl_module):
                pl_module.training_step(*_accepted(pl_module.training_step, batch, 0))

        with device:  # not the one on which the strategy creates new modules
            self._session = TrainerSession(pl_module, self.settings, step, self._forward)

    def _forward(self, pl_module: Any, batch: Any) -> Any:
        """Call the network with what a training step calls it with first; the step itself would log and count."""
        assert self._session is not None
        network = self._session.relaxation.model
        with idle_optimizers(pl_module):
            args, kwargs = first_call(
                network, lambda: pl_module.training_step(*_accepted(pl_module.training_step, batch, 0))
            )
        return network(*args, **kwargs)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the optimiser of the branches, give them their learning rate, and have them clipped by themselves."""
        assert self._session is not None
        self._optimizer = self._session.attend(trainer.optimizers)
        _clip_apart(pl_module, self._session)

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
        assert self._session is not None
        self._session.set_step(done(trainer, self._steps), self._steps)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the batch for clean evaluation."""
        assert self._session is not None
        self._session.keep_batch(batch)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Take up the loss for the size of lambda; of several optimisers' losses those that reach a branch."""
        assert self._session is not None
        trained = len(trainer.optimizers) < 2 or reaches(loss, self._session.relaxation.branch_parameters())
        if trained:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self._session.add_loss(loss if scaler is None else loss / scaler.get_scale())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add the penalty's gradient, once per optimiser step and in the units of the loss."""
        assert self._session is not None
        if optimizer is not self._optimizer:
            return
        self._session.finish_step()
        theta = self._session.relaxation.theta[0]
        pl_module.log_dict({"relaxation/theta": theta, "relaxation/penalty": self._session.penalty})

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Set theta for what comes next, be it a step, an evaluation or a checkpoint."""
        self._set_step(trainer)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Evaluate the clean model."""
        if self._session is not None:
            self._evaluation.enter_context(self._session.evaluation())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Go back to the relaxed model."""
        self._evaluation.close()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Strip the branches."""
        if self._session is not None:
            self.records = self._session.finish()
            self._session = self._optimizer = None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs; part of every checkpoint."""
        return {} if self._session is None else self._session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint of a training; there is nothing to do for an evaluation."""
        if self._session is not None:
            self._session.load_state_dict(state_dict)


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


class MatrixBlocks(_Callback):  # type: ignore[misc]  # a library that may be missing
    """Tells ``surgeon.optim.Soap`` and ``Muon``, which a module or its configuration makes, of the matrices.

    Args:
        plan: as :func:`surgeon.find` made it, of the whole module; None where adapters know all layers.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        require_library(_Callback, "lightning")
        self.plan = plan

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Find the matrices.

        Raises:
            UsageError: if no optimiser of the trainer asks for them.
        """
        asking = [optimizer for optimizer in trainer.optimizers if isinstance(optimizer, MatrixOptimizer)]
        if not asking:
            raise UsageError(
                "expected an optimizer of surgeon.optim beside the callback MatrixBlocks, got "
                f"{', '.join(type(each).__name__ for each in trainer.optimizers) or 'none'}: choose Soap or Muon, or "
                "leave the callback out"
            )
        weights = find_blocks(pl_module, self.plan)
        for optimizer in asking:
            optimizer.use_blocks(weights)


def _clip_apart(pl_module: Any, session: TrainerSession) -> None:
    """Let the module's own way of clipping gradients treat branches and everything else as groups of their own."""
    original = pl_module.configure_gradient_clipping

    def clip(
        optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        for branches in (False, True):
            with session.gradients_of(branches):
                original(
                    optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
                )

    pl_module.configure_gradient_clipping = clip
    session.at_end(lambda: vars(pl_module).pop("configure_gradient_clipping"))


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
