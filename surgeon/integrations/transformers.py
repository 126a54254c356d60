"""The Trainer of transformers, for a network that is relaxed while it trains."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.editing.relaxation import Relaxation
from surgeon.errors import CheckpointError, UsageError
from surgeon.integrations.session import TrainerSession
from surgeon.integrations.settings import RelaxationSettings, base_class, require_library
from surgeon.plan import SiteRecord
from surgeon.training.state import randomness_kept

_Trainer: Any = base_class("transformers", "Trainer")
STATE_FILE = "relaxation_state.pt"
"""What a resume needs besides the clean weights, in every checkpoint folder."""


class RelaxedTrainer(_Trainer):  # type: ignore[misc]  # a library that may be missing
    """A Trainer that relaxes its model: give it ``relaxation=`` and change nothing else.

    Branches come in before the optimiser is made and go when ``train`` returns. In between theta follows the schedule
    by optimiser steps, the penalty's gradient is added to that of the loss, evaluation and every saved file are of the
    clean model, and a checkpoint folder holds what a resume needs besides. ``theta`` and ``penalty`` are logged.

    Args:
        relaxation: how to relax; ``module`` is the path of the network inside the model, "" for the model itself.
        *args: those of the Trainer.
        **kwargs: those of the Trainer.

    Attributes:
        records: what was stripped from each site; empty before.
    """

    def __init__(self, *args: Any, relaxation: RelaxationSettings, **kwargs: Any) -> None:
        require_library(_Trainer, "transformers")
        self.settings = relaxation
        self.records: tuple[SiteRecord, ...] = ()
        self._session: TrainerSession | None = None
        self._theta = 0.0
        super().__init__(*args, **kwargs)
        self._require_whole_weights()

    def _require_whole_weights(self) -> None:
        for name, used in {
            "DeepSpeed": self.is_deepspeed_enabled,
            "FSDP": self.is_fsdp_enabled or self.args.fsdp,
        }.items():
            if used:
                raise UsageError(
                    f"expected the whole network in every process, but the arguments ask for {name}: leave it out, or "
                    "use `surgeon finetune`, which trains with FSDP"
                )

    @property
    def relaxation(self) -> Relaxation | None:
        """The handle on the branches, while there are any."""
        return None if self._session is None else self._session.relaxation

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does, then strip the branches, also if the training was interrupted."""
        failed = True
        try:
            result = super().train(*args, **kwargs)
            failed = False
        finally:
            if self._session is not None:
                self.records = self._session.finish(failed)
                self._session = None
                self.optimizer: Any = None  # it would go on with weights that are gone
                self.lr_scheduler: Any = None
        return result

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Insert the branches, then make the optimiser; the model is not wrapped yet, and its weights are loaded."""
        if self.args.n_gpu > 1:
            raise UsageError(
                "expected one process per GPU, got one for several, where copies of the model do the work: start with "
                "torchrun or accelerate launch"
            )
        if self._session is None:
            self._session = TrainerSession(self.model, self.settings, self._first_step, self._forward)
        optimizer = super().create_optimizer(*args, **kwargs)
        self._session.attend([self.optimizer])
        return optimizer

    def _first_step(self) -> None:
        """Compute the loss of the first batch; the training itself gets the batches that it would have got."""
        with randomness_kept():
            batch = next(iter(self.get_train_dataloader()))
        super().compute_loss(self.model, self._prepare_inputs(batch))

    def _forward(self, model: nn.Module, batch: Any) -> Any:
        return self.compute_loss(model, self._prepare_inputs(batch))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Set theta, then take the step; where an optimiser step ends with it, add the gradient of the penalty."""
        if self._session is None:
            return super().training_step(model, inputs, *args, **kwargs)
        self._set_step()
        self._theta = self._session.relaxation.theta[0]
        self._session.keep_batch(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            scaler = getattr(self.accelerator, "scaler", None)
            self._session.finish_step(1.0 if scaler is None else scaler.get_scale())
        return loss

    def _set_step(self) -> None:
        if self._session is not None:
            self._session.set_step(self.state.global_step, self.state.max_steps)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss, and take it up in training, for the size of lambda."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self._session is not None and model.training:
            self._session.add_loss(loss / self._divisor(num_items_in_batch))
        return (loss, outputs) if return_outputs else loss

    def _divisor(self, num_items_in_batch: Tensor | int | None) -> int:
        """Return what the Trainer is going to divide the loss of a micro-batch by."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if scaled is None:
            counted = self.model_accepts_loss_kwargs and num_items_in_batch is not None
            scaled = counted or self.compute_loss_func is not None
        return 1 if scaled else self.current_gradient_accumulation_steps

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip base and branches by themselves; the norm of the base's gradient is returned and logged."""
        if self._session is None:
            return super()._clip_grad_norm(model)
        self.accelerator.unscale_gradients()  # all at once: a scaler allows it once per step
        norms = []
        for branches in (False, True):
            with self._session.gradients_of(branches):
                norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), self.args.max_grad_norm))
        return norms[0]

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._set_step()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, theta and penalty of the last step beside the training loss."""
        if self._session is not None and "loss" in logs:
            logs = {**logs, "theta": self._theta, "penalty": self._session.penalty}
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the clean model."""
        with ExitStack() as stack:
            if self._session is not None:
                stack.enter_context(self._session.evaluation())
            return super().evaluation_loop(*args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._session is not None and self.args.should_save:
            torch.save(self._session.state_dict(), Path(output_dir) / STATE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self._session is not None:
            path = Path(checkpoint) / STATE_FILE
            if not path.exists():
                raise CheckpointError(
                    f"expected {STATE_FILE} in {checkpoint}, found none: resume from a checkpoint that a "
                    "RelaxedTrainer wrote while it trained"
                )
            self._session.load_state_dict(torch.load(path, map_location=self.args.device, weights_only=True))
        super()._load_optimizer_and_scheduler(checkpoint)
