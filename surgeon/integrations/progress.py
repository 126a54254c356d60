"""How far a training by Lightning has come, also where a module takes the steps of several optimisers by itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def length(trainer: Any) -> float:
    """Return the length of a training in optimiser steps, or in batches where the module takes its steps by itself.

    There Lightning counts the steps of all optimisers together, and nobody knows how many a batch brings.
    """
    if trainer.lightning_module.automatic_optimization:
        return float(trainer.estimated_stepping_batches)
    batches = _batches(trainer)
    return batches if math.isfinite(batches) else float(trainer.max_steps)


def _batches(trainer: Any) -> float:
    return math.inf if trainer.max_epochs == -1 else float(trainer.num_training_batches * max(trainer.max_epochs, 1))


def done(trainer: Any, steps: int) -> float:
    """Return how much of :func:`length` is done."""
    if trainer.lightning_module.automatic_optimization or not math.isfinite(_batches(trainer)):
        return float(trainer.global_step)
    batches = float(trainer.fit_loop.epoch_loop.batch_progress.total.processed)
    # the training ends by whichever limit it reaches first
    return batches if trainer.max_steps == -1 else max(batches, steps * trainer.global_step / trainer.max_steps)


def reaches(loss: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Tell whether the backward of a loss comes to one of the parameters."""
    wanted = {id(parameter) for parameter in parameters}
    waiting = [loss.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if id(getattr(node, "variable", None)) in wanted:
            return True
        following = {each for each, _ in node.next_functions} - seen if node is not None else set()
        seen |= following
        waiting.extend(following)
    return False


class _Idle:
    """Answers every call of an optimiser or scheduler, and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@contextmanager
def idle_optimizers(pl_module: Any) -> Iterator[None]:
    """While the context is open a module that takes its steps by itself takes none.

    Its training step is then run up to the network's call only, and may train something else before that.
    """
    if pl_module.automatic_optimization:
        yield
        return
    from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers

    trainer = pl_module.trainer
    made = (trainer.optimizers, trainer.lr_scheduler_configs)
    if not trainer.optimizers:  # before there are any: as many as there are going to be
        made = _init_optimizers_and_lr_schedulers(pl_module)
    optimizers, schedulers = ([_Idle() for _ in each] for each in made)
    answers: dict[str, Any] = {
        "optimizers": optimizers if len(optimizers) > 1 else _Idle(),
        "lr_schedulers": schedulers if len(schedulers) > 1 else _Idle(),
        **dict.fromkeys(("manual_backward", "toggle_optimizer", "untoggle_optimizer", "clip_gradients")),
    }
    own = {name: value for name, value in vars(pl_module).items() if name in answers}
    for name, answer in answers.items():
        vars(pl_module)[name] = functools.partial(_answer, answer)
    try:
        yield
    finally:
        for name in answers:
            del vars(pl_module)[name]
        vars(pl_module).update(own)


def _answer(answer: Any, *_: Any, **__: Any) -> Any:
    return answer
