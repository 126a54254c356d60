"""Replay: the original model's own outputs on other inputs as a further target, so that fine-tuning forgets less."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.opening.evaluation import fitted, outputs_on
from surgeon.opening.task_calls import count_batches, task_batches, task_forward, task_loss
from surgeon.opening.tasks import named_task
from surgeon.plan import Task
from surgeon.support.modes import set_training
from surgeon.support.trees import Place, map_tensors, tensor_leaves, tensors_in
from surgeon.training.batches import epoch_seed

if TYPE_CHECKING:
    from surgeon.training.settings import FinetuneSettings

PERTURB = "perturb"
"""In place of a task: the inputs are the training batches themselves, with noise."""


@dataclass(frozen=True)
class Teacher:
    """The original, whose outputs are the target.

    Attributes:
        model: frozen, in eval mode; not the model that is trained.
        task: whose forward is run; of other data, whose batches are the inputs.
        perturbs: whether the inputs are the training batches with noise.
    """

    model: nn.Module
    task: Task
    perturbs: bool

    def outputs(self, batch: Any) -> Any:
        """Return its outputs, detached."""
        return outputs_on(self.model, self.task, [batch])[0]


def teacher_of(settings: FinetuneSettings, original: Callable[[], nn.Module], task: Task) -> Teacher | None:
    """Return the teacher that a training asks for; None if it asks for none.

    Args:
        settings: its ``replay`` is "perturb", or a task on other inputs, whose labels are not looked at.
        original: returns a new model with the weights that the training starts from.

    Raises:
        TaskError: if the task on other inputs cannot be loaded, or is for other models.
    """
    if settings.replay is None:
        return None
    model = original().requires_grad_(False)
    set_training(model, False)
    if settings.replay == PERTURB:
        return Teacher(model, task, True)
    return Teacher(model, named_task(settings.replay).for_model(model).task, False)


class Replay:
    """Which inputs a training batch is accompanied by, and how far the trained model's outputs on them are off.

    Training batch number k of a run, counted over all processes, is accompanied by replay batch ``floor(k share)`` if
    that is a new one. What it holds depends on its number and the seed alone, so that a resumed run, and one of
    several processes, sees the same.
    """

    def __init__(self, teacher: Teacher, settings: FinetuneSettings, device: torch.device) -> None:
        self._teacher, self._settings = teacher, settings
        teacher.model.to(device)
        self._batches: Iterator[Any] = iter(())
        self._pass, self._place = -1, 0
        own = getattr(teacher.task, "perturbed", None)
        self._perturb: Callable[[Any, Callable[[Tensor], Tensor]], Any] | None = own
        if not teacher.perturbs:
            self._count = count_batches(teacher.task, "train", settings.seed)
            self.words = f"{self._count} batches of {settings.replay}"
        elif own is not None:
            self.words = f"the training batches, moved by {settings.replay_noise:g} as the task says"
        else:
            first = next(task_batches(teacher.task, "train", settings.seed))
            self._leaves = input_leaves(teacher, fitted(first, teacher.model))
            names = ", ".join(".".join(map(str, leaf)) or "the batch" for leaf in self._leaves)
            self.words = f"the training batches with noise, {settings.replay_noise:g} of its spread, on {names}"

    @property
    def sentence(self) -> str:
        """What is replayed, for the screen."""
        settings = self._settings
        return (
            f"replay: outputs of the original on {self.words}; weight {settings.replay_weight:g}, beside "
            f"{settings.replay_share:.0%} of the training batches"
        )

    def inputs(self, batch: Any, number: int) -> Any:
        """Return the inputs that accompany a training batch, where the model is; None if there are none.

        Args:
            batch: the training batch, where the model is.
            number: of the training batch, from 0.
        """
        share = self._settings.replay_share
        index = int(number * share + 1e-9)
        if int((number + 1) * share + 1e-9) == index:
            return None
        return (
            self._perturbed(batch, index) if self._teacher.perturbs else fitted(self._drawn(index), self._teacher.model)
        )

    def distance(self, model: nn.Module, inputs: Any) -> Tensor:
        """Return how far a model's outputs are from the original's: shape (), differentiable.

        A task that says how outputs become labels, ``relabelled(batch, outputs)``, judges by its own loss; otherwise it
        is the mean square difference of each floating output, summed over outputs.
        """
        task, target = self._teacher.task, self._teacher.outputs(inputs)
        found, relabelled = task_forward(task, model, inputs), getattr(task, "relabelled", None)
        if relabelled is not None:
            return task_loss(task, found, relabelled(inputs, target))
        pairs = zip(tensors_in(found), tensors_in(target), strict=True)
        parts = [(a - b).abs().square().mean() for a, b in pairs if a.is_floating_point() or a.is_complex()]
        if not parts:
            raise TaskError("expected floating outputs for --replay, got none: leave it out")
        return torch.stack([part.float() for part in parts]).sum()

    def _perturbed(self, batch: Any, index: int) -> Any:
        generator = torch.Generator().manual_seed(epoch_seed(self._settings.seed, index))
        noise = functools.partial(_noise, generator, self._settings.replay_noise)
        if self._perturb is not None:
            return self._perturb(batch, noise)
        found = tensor_leaves(batch)
        moved = {id(found[leaf]): found[leaf] + deviation(found[leaf]) * noise(found[leaf]) for leaf in self._leaves}
        return _replaced(batch, moved)

    def _drawn(self, index: int) -> Any:
        """Return the batch of other data with a number; those before it in its pass are drawn and forgotten."""
        number, place = divmod(index, self._count)
        if number != self._pass or place < self._place:
            self._pass, self._place, self._batches = number, 0, self._cycle(number)
        batch = next(islice(self._batches, place - self._place, None))
        self._place = place + 1
        return batch

    def _cycle(self, number: int) -> Iterator[Any]:
        yield from task_batches(self._teacher.task, "train", epoch_seed(self._settings.seed, number))
        raise TaskError(
            f"expected {self._count} batches of the task for --replay in every pass, got fewer in pass {number + 1}: "
            "let batches('train', seed) give equally many for every seed"
        )


def _replaced(batch: Any, others: Mapping[int, Tensor]) -> Any:
    """Return a batch with other tensors in place of some, by their ids."""
    return map_tensors(lambda tensor: others.get(id(tensor), tensor), batch)


def _noise(generator: torch.Generator, size: float, like: Tensor) -> Tensor:
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64)  # on the CPU: the same everywhere
    return size * drawn.to(like)


def deviation(tensor: Tensor) -> Tensor:
    """Return the root mean square deviation of all entries from their mean; 0 for a single one."""
    return tensor.double().std(correction=0).to(tensor.dtype)


def input_leaves(teacher: Teacher, batch: Any) -> list[Place]:
    """Return the floating tensors of a batch that the original's outputs depend on; no masks and one-hot codes.

    Raises:
        TaskError: if there are none.
    """
    generator, result = torch.Generator().manual_seed(0), []
    before = tensors_in(teacher.outputs(batch))
    for leaf, tensor in tensor_leaves(batch).items():
        if not tensor.is_floating_point() or bool(((tensor == 0) | (tensor == 1)).all()):
            continue
        moved = tensor + deviation(tensor) * _noise(generator, 0.1, tensor)
        after = tensors_in(teacher.outputs(_replaced(batch, {id(tensor): moved})))
        if any(not torch.equal(left, right) for left, right in zip(before, after, strict=True)):
            result.append(leaf)
    if not result:
        raise TaskError(
            "expected floating inputs to put noise on for --replay perturb, found none that the outputs depend on: "
            "give the task a method perturbed(batch, noise), or --replay TASK"
        )
    return result
