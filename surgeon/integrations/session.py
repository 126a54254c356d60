"""The session of a trainer that saves and loads by itself: clean files, a learning rate for W, and a way back."""

from __future__ import annotations

import copy
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.moments import processes
from surgeon.editing.branch import branches_of
from surgeon.editing.insert import relax
from surgeon.editing.recalibration import running_statistics
from surgeon.editing.strip import strip
from surgeon.errors import CheckpointError, UsageError
from surgeon.integrations.settings import RelaxationSettings, network_of, plan_of_step
from surgeon.plan import CHILD, SiteRecord
from surgeon.support.modes import each_with
from surgeon.support.trees import map_tensors
from surgeon.training.session import TrainingSession, flat

AVERAGING_METHODS = ("update_parameters", "swap_parameters")
"""Methods by which averages of weights, torch's own ``AveragedModel`` among them, take a model's parameters."""


class TrainerSession(TrainingSession):
    """The session of a network inside a trainer's module, from the insertion of the branches to stripping.

    While it is there, the state dict of the trainer's module is that of the clean model: it has the original's keys and
    the values that stripping would give. What a resume needs besides is in :meth:`state_dict`.

    Args:
        owner: the module whose state dict the trainer saves.
        step: runs one training step, from which the inputs of the network are taken if a plan has to be found.
        forward: ``forward(owner, batch)``, of a training batch through the network, for clean evaluation.
    """

    def __init__(
        self,
        owner: nn.Module,
        settings: RelaxationSettings,
        step: Callable[[], Any],
        forward: Callable[[nn.Module, Any], Any],
    ) -> None:
        path, network = network_of(owner, settings.module)
        plan, call = plan_of_step(network, settings, step)
        relaxation = relax(
            network,
            plan,
            dense=settings.dense,
            mode=settings.mode,
            schedule=settings.schedule,
            penalty_form=settings.penalty_form,
        )
        super().__init__(relaxation, settings.penalty, settings.penalty_scale, settings.recalibrate, owner)
        if call is not None:
            self.record_source(*call[0], **call[1])
        relaxation.set_progress(0.0)
        self._owner, self._prefix, self._factor = owner, f"{path}." if path else "", settings.branch_factor
        self._forward = forward
        self._loss: Tensor | None = None
        self._batches: list[Any] = []
        self._clean: dict[str, Tensor] = {}
        self._undo: list[Callable[[], None]] = []
        self._keep_out_of_averages()
        self._clean_files()

    def set_step(self, step: float, steps: int, scale: float = 1.0) -> None:
        """Set theta for an optimiser step of so many; see :meth:`TrainingSession.set_step`."""
        if step > steps:
            warnings.warn(
                f"the training goes on after the {steps} steps that its trainer has announced, by which theta went: "
                "the rest runs at the last theta; give data of one length in all epochs",
                stacklevel=2,
            )
        super().set_step(min(step, steps), steps, scale)

    def add_loss(self, loss: Tensor) -> None:
        """Take up a task loss: all of an optimiser step, or the share of one micro-batch; shape ()."""
        self._clean = {}
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss

    def finish_step(self, scale: float = 1.0) -> None:
        """Add the penalty's gradient to those of an optimiser step, for the losses that were taken up."""
        loss, self._loss = self._loss, None
        # a tensor in any case: processes average it, and one may have had a step without a loss
        theta = next(iter(self.relaxation.branches.values())).theta
        self.add_penalty_gradient(theta.new_full((), math.nan) if loss is None else loss, scale)

    def keep_batch(self, batch: Any) -> None:
        """Keep a training batch for clean evaluation, as long as more are needed; on the CPU."""
        if self.start and len(self._batches) < self.recalibrate:
            self._batches.append(map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), batch))

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Let the owner compute what it would after stripping, with statistics taken anew from the kept batches.

        Files that are written before the next step get these statistics, too.
        """
        if not self._batches:  # before the first step
            with self.relaxation.clean():
                yield
            return
        with self.clean_evaluation(self._batches, self._forward):
            self._clean = flat(running_statistics(self._owner), ".")
            yield

    def gradients_of(self, branches: bool) -> AbstractContextManager[None]:
        """While the context is open only the branches, or only all other weights of the owner, have gradients.

        Whatever clips gradients in it treats the two as groups of their own: a large gradient of W then does not
        shorten the step of the base.
        """
        added = {id(parameter) for parameter in self.relaxation.branch_parameters()}
        return each_with([p for p in self._owner.parameters() if (id(p) in added) != branches], "grad", None)

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
        outer = prefix.removesuffix(self._prefix)
        for key, value in self._clean_statistics().items():
            state[outer + key] = value

    def _clean_statistics(self) -> dict[str, Tensor]:
        """Return running statistics as clean evaluation uses them, by their names in the owner."""
        if not self._clean and processes() == 1:  # of several perhaps only one is asked for a state dict
            with self.evaluation():
                pass
        return self._clean

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
            "gathered": flat(running_statistics(self._owner), "."),
            **super().state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, after the clean state dict was loaded.

        Raises:
            CheckpointError: if it belongs to other branches, or to a network of other code.
        """
        own, expected, got = dict(self.relaxation.model.named_parameters()), self._branch_weights(), state["branches"]
        if {name: value.shape for name, value in got.items()} != {name: v.shape for name, v in expected.items()}:
            odd = sorted(got.keys() ^ expected.keys()) or sorted(expected)
            raise CheckpointError(
                f"expected a checkpoint of a training with these branches, but it differs at {odd[0]!r}: resume with "
                "the settings that it was started with"
            )
        super().load_state_dict(state)
        with torch.no_grad():
            for name, value in {**got, **state["unfolded"]}.items():
                own[name].copy_(value)
            for name, value in dict(self._owner.named_buffers()).items():
                if name in state["gathered"]:
                    value.copy_(state["gathered"][name])
        self._clean = {}

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

    def finish(self, failed: bool = False) -> tuple[SiteRecord, ...]:
        """Strip the network, unless that was done, and leave nothing behind; returns what was stripped from each site.

        Running statistics become those of clean evaluation.

        Args:
            failed: the training did not come to its end; statistics stay what it has gathered.

        Raises:
            SurgeryError: if a branch holds a non-finite number; everything is as it was.
        """
        records: tuple[SiteRecord, ...] = ()
        if branches_of(self.relaxation.model):
            if not failed:
                with self.evaluation():
                    pass
            records = strip(self.relaxation)
            for name, value in self._owner.named_buffers():
                if name in self._clean and not failed:
                    value.copy_(self._clean[name])
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
