"""What the branches cost while they are there: parameters, and the work of a forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from surgeon.editing.relaxation import Relaxation
from surgeon.opening.evaluation import fitted
from surgeon.opening.task_calls import task_batches, task_forward
from surgeon.plan import Task
from surgeon.support.compiler import DispatchMode
from surgeon.support.modes import each_with, in_evaluation_mode


@dataclass(frozen=True)
class Costs:
    """What the branches add while they are in the network; after stripping nothing of it is left.

    Attributes:
        parameters: of the network itself.
        extra_parameters: of the branches.
        flops: floating-point operations of matrix products and convolutions in the forward of one batch, without
            branches.
        extra_flops: the same of the branches.
    """

    parameters: int
    extra_parameters: int
    flops: int
    extra_flops: int

    def sentence(self) -> str:
        """Say it in words."""
        work = f", {100 * self.extra_flops / self.flops:.0f} % more matrix work per forward" if self.flops else ""
        share = f" (+{100 * self.extra_parameters / self.parameters:.0f} %)" if self.parameters else ""
        return (
            f"training adds {self.extra_parameters:,} parameters to {self.parameters:,}{share}{work}; "
            "nothing of it remains after stripping"
        )


def training_costs(model: nn.Module, task: Task, relaxation: Relaxation) -> Costs:
    """Count parameters, and the work of one training batch with and without branches; the model is not changed."""
    batch = fitted(next(task_batches(task, "train", 0)), model)
    state = torch.get_rng_state()
    with in_evaluation_mode(model):
        whole = flops_of(model, task, batch)
        dropped = each_with(relaxation.branches.values(), "mode", "drop")  # else clean evaluation keeps what is folded
        with relaxation.clean(), dropped:
            own = flops_of(model, task, batch)
    torch.set_rng_state(state)
    extra = sum(parameter.numel() for parameter in relaxation.branch_parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    return Costs(total - extra, extra, own, whole - own)


class _Counter(DispatchMode):
    """Adds up the work of all ops that torch knows it of.

    Torch's own FlopCounterMode also asks which module each op belongs to, by hooks on the inputs' gradients, which fail
    in a forward that takes derivatives by a leaf that it hands to its children.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        count: Any = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += int(count(*args, **given, out_val=result))
        return result


def flops_of(model: nn.Module, task: Task, batch: object) -> int:
    """Return the floating-point operations of one forward, of all ops that torch knows them of."""
    counter = _Counter()
    with counter:
        task_forward(task, model, batch)
    return counter.total
