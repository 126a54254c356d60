"""What every trainer needs of a relaxed network: theta, the penalty, clean files, and a way back."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.branch import CHILD, branches_of
from surgeon.errors import CheckpointError, TrainingError, UsageError
from surgeon.integrations.settings import RelaxationSettings, network_of, plan_for
from surgeon.surgery import relax, strip
from surgeon.training.weighting import PenaltyWeight
from surgeon.types import SiteRecord

AVERAGING_METHODS = ("update_parameters", "swap_parameters")
"""Methods by which averages of weights, torch's own ``AveragedModel`` among them, take a model's parameters."""


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


class RelaxationDriver:
    """A relaxed network inside a trainer's module, from the insertion of the branches to stripping.

    While it is there, the state dict of the trainer's module is that of the clean model: it has the original's keys and
    the values that stripping would give. What a resume needs besides is in :meth:`state_dict`.

    Args:
        owner: the module whose state dict the trainer saves.
        settings: what to do.
        step: runs one training step, from which the inputs of the network are taken if a plan has to be found.

    Attributes:
        relaxation: the handle on the branches.
        penalty: value of the last penalty.
    """

    def __init__(self, owner: nn.Module, settings: RelaxationSettings, step: Callable[[], Any]) -> None:
        path, network = network_of(owner, settings.module)
        plan = plan_for(network, settings, step)
        self.relaxation = relax(
            network, plan, mode=settings.mode, schedule=settings.schedule, penalty_form=settings.penalty_form
        )
        self.relaxation.enable_penalty(settings.penalty > 0)
        self.relaxation.set_progress(0.0)
        self.penalty = 0.0
        self._owner, self._prefix, self._factor = owner, f"{path}." if path else "", settings.branch_factor
        self._weight = PenaltyWeight(settings.penalty, settings.penalty_scale)
        self._loss: Tensor | None = None
        self._undo: list[Callable[[], None]] = []
        self._keep_out_of_averages()
        self._clean_files()

    def set_progress(self, progress: float) -> None:
        """Set theta for a share ``progress`` in [0, 1] of the training."""
        self.relaxation.set_progress(progress)

    def add_loss(self, loss: Tensor) -> None:
        """Take up a task loss: all of an optimiser step, or the share of one micro-batch; shape ()."""
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def weighted_penalty(self, average: Callable[[Tensor], Tensor] = _as_it_is) -> Tensor:
        """Return lambda times the penalty of an optimiser step, shape (); call it once, after all its forwards.

        Args:
            average: takes the mean of a tensor over processes.

        Raises:
            TrainingError: if a branch saw nothing in this step.
        """
        loss, self._loss = self._loss, None
        like = next(iter(self.relaxation.branches.values())).theta
        if self.relaxation.penalty_settings is None:
            return like.new_zeros(())
        with torch.enable_grad():
            penalty = self.relaxation.penalty()
        value = float(average(loss)) if loss is not None else math.nan
        if not math.isfinite(value):  # no task loss, or one that a gradient scaler skips the step for
            return like.new_zeros(())
        self._require_seen()
        self.penalty = float(penalty.detach())
        return self._weight(value) * penalty

    def _require_seen(self) -> None:
        missed = [key for key, branch in self.relaxation.branches.items() if branch.missed]
        if missed or not self.relaxation.penalty_terms():
            where = (missed or list(self.relaxation.branches))[0]
            raise TrainingError(
                f"expected the branch at {where!r} to see features in a training step, but none were recorded: let "
                "the step call the network in training mode with gradients, activation checkpointing with "
                "use_reentrant=False, or switch the penalty off with penalty_weight=0"
            )

    def add_penalty_gradient(self, average: Callable[[Tensor], Tensor] = _as_it_is) -> None:
        """Add the gradient of the weighted penalty to those of the branches, once per optimiser step.

        Hooks on gradients, such as those by which data-parallel training averages them, do not run.

        Args:
            average: takes the mean of a tensor over processes.
        """
        penalty = self.weighted_penalty(average)
        if not penalty.requires_grad:
            return
        parameters = self.relaxation.branch_parameters()
        found = torch.autograd.grad(penalty, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split_with_sizes(flat, [gradient.numel() for gradient in gradients])
        for parameter, part in zip(parameters, parts, strict=True):
            part = part.view_as(parameter)
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad.add_(part)

    @contextmanager
    def gradients_of(self, branches: bool) -> Iterator[None]:
        """While the context is open only the branches, or only all other weights of the owner, have gradients.

        Whatever clips gradients in it treats the two as groups of their own: a large gradient of W then does not
        shorten the step of the base.
        """
        added = {id(parameter) for parameter in self.relaxation.branch_parameters()}
        hidden = {p: p.grad for p in self._owner.parameters() if (id(p) in added) != branches}
        for parameter in hidden:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in hidden.items():
                parameter.grad = gradient

    def at_end(self, undo: Callable[[], None]) -> None:
        """Have something called by :meth:`finish`."""
        self._undo.append(undo)

    def attend(self, optimizers: list[torch.optim.Optimizer]) -> torch.optim.Optimizer:
        """Give W its own learning rate, and return the optimiser that holds it.

        Rates and groups stay as they are, which learning-rate schedulers rely on: the step that the optimiser makes on
        W is shortened instead. That is the same thing for every optimiser whose step is proportional to its rate.

        Raises:
            UsageError: if not all branches are in one and the same optimiser.
        """
        for optimizer in optimizers:
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if all(id(parameter) in held for parameter in self.relaxation.branch_parameters()):
                break
        else:
            raise UsageError(
                f"expected the weights of the branches in one optimiser, but none of {len(optimizers)} has all of "
                "them: give it the module's parameters() when the trainer asks for it, not a list made before"
            )
        if self._factor != 1:
            self._shorten_steps(optimizer)
        return optimizer

    def _shorten_steps(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = self.relaxation.branch_parameters()
        before: list[Tensor] = []

        def remember(*_: Any) -> None:
            before[:] = [parameter.detach().clone() for parameter in parameters]

        @torch.no_grad()
        def shorten(*_: Any) -> None:
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old + self._factor * (parameter - old))

        handles = (optimizer.register_step_pre_hook(remember), optimizer.register_step_post_hook(shorten))
        self._undo.extend(handle.remove for handle in handles)

    def _clean_files(self) -> None:
        """Make the owner write the clean model, and read it."""
        owner: Any = self._owner
        writing = owner.register_state_dict_post_hook(self._for_owner(self._write_clean))
        reading = owner.register_load_state_dict_pre_hook(self._for_owner(self._read_clean))
        self._undo += [writing.remove, reading.remove]

    def _for_owner(self, act: Callable[[dict[str, Any], str], None]) -> Callable[..., None]:
        """Return a hook that does nothing in copies of the owner, and after somebody else stripped the network."""

        def hook(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
            if module is self._owner and branches_of(self.relaxation.model):
                act(state, prefix + self._prefix)

        return hook

    def _write_clean(self, state: dict[str, Any], prefix: str) -> None:
        for key in [key for key in state if f".{CHILD}." in f".{key}"]:
            del state[key]
        if self.relaxation.mode == "fold":
            for key, value in self._stripped().items():
                state[prefix + key] = value

    def _read_clean(self, state: dict[str, Any], prefix: str) -> None:
        """A clean model has no W: it is put back to where the branches add nothing."""
        generator = torch.Generator().manual_seed(0)
        for branch in self.relaxation.branches.values():
            branch.initialise(0.0, generator)
        for name, value in self._branch_weights().items():
            state.setdefault(prefix + name, value)

    def _stripped(self) -> dict[str, Tensor]:
        """Return the state dict that stripping would leave."""
        model = copy.deepcopy(self.relaxation.model)
        strip(model, self.relaxation.mode)
        state: dict[str, Tensor] = model.state_dict()
        return state

    def _branch_weights(self) -> dict[str, Tensor]:
        added = {id(parameter) for parameter in self.relaxation.branch_parameters()}
        return {
            name: parameter.detach()
            for name, parameter in self.relaxation.model.named_parameters()
            if id(parameter) in added
        }

    def _unfolded(self) -> dict[str, Tensor]:
        """Return the model's own parameters that folding would change."""
        if self.relaxation.mode == "drop":
            return {}
        own, clean = dict(self.relaxation.model.named_parameters()), self._stripped()
        return {key: p.detach() for key, p in own.items() if key in clean and not torch.equal(p, clean[key])}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs besides the clean state dict; tensors and plain data."""
        return {
            "branches": {name: value.clone() for name, value in self._branch_weights().items()},
            "unfolded": {name: value.clone() for name, value in self._unfolded().items()},
            "relaxation": self.relaxation.state_dict(),
            "penalty_weight": self._weight.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, after the clean state dict was loaded.

        Raises:
            CheckpointError: if it belongs to other branches.
        """
        own, expected, got = dict(self.relaxation.model.named_parameters()), self._branch_weights(), state["branches"]
        if {name: value.shape for name, value in got.items()} != {name: v.shape for name, v in expected.items()}:
            odd = sorted(got.keys() ^ expected.keys()) or sorted(expected)
            raise CheckpointError(
                f"expected a checkpoint of a training with these branches, but it differs at {odd[0]!r}: resume with "
                "the settings that it was started with"
            )
        with torch.no_grad():
            for name, value in {**got, **state["unfolded"]}.items():
                own[name].copy_(value)
        self.relaxation.load_state_dict(state["relaxation"])
        self._weight.load_state_dict(state["penalty_weight"])

    def _keep_out_of_averages(self) -> None:
        """Let averages of the owner's weights that were made before see what they were made for."""
        inside = set(self.relaxation.model.modules())
        for module in self._owner.modules():
            for name in AVERAGING_METHODS:
                method = getattr(module, name, None)
                if module in inside or not callable(method):
                    continue
                if self.relaxation.mode == "fold":
                    raise UsageError(
                        f"expected no average of weights with mode 'fold', but {type(module).__name__} keeps one: the "
                        "average of a folded model is none of its parts, use mode 'drop'"
                    )
                setattr(module, name, _with_base_tensors(method, self.relaxation.branch_parameters()))
                self._undo.append(functools.partial(delattr, module, name))

    def finish(self) -> tuple[SiteRecord, ...]:
        """Strip the network, unless that was done, and leave nothing behind; returns what was stripped from each site.

        Raises:
            SurgeryError: if a branch holds a non-finite number; everything is as it was.
        """
        records = strip(self.relaxation) if branches_of(self.relaxation.model) else ()
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        return records


def _with_base_tensors(method: Callable[[Any], Any], added: list[nn.Parameter]) -> Callable[[nn.Module], Any]:
    hidden = {id(parameter) for parameter in added}
    return lambda model: method(_BaseTensors(model, hidden))


class _BaseTensors:
    """The tensors of a model without those of the branches, for those who only ask for tensors."""

    def __init__(self, model: nn.Module, hidden: set[int]) -> None:
        self._model, self._hidden = model, hidden

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the model's own parameters."""
        return (parameter for parameter in self._model.parameters() if id(parameter) not in self._hidden)

    def buffers(self) -> Iterator[Tensor]:
        """Yield the model's own buffers."""
        inside = {id(module) for name, module in self._model.named_modules() if CHILD in name.split(".")}
        for module in self._model.modules():
            if id(module) not in inside:
                yield from module.buffers(recurse=False)
