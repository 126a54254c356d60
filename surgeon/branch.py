"""The added map theta * W x, and the tap that records what its input looks like.

The branches of one op live in a child module named ``_relaxation`` of that op, attached by a forward hook that is a
bound method of the child: the op keeps its class, attributes, keys and their order, and stripping leaves nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon.errors import PlanError
from surgeon.forms import Form, LinearForm
from surgeon.intertwiners import FoldMap
from surgeon.moments import SecondMoment
from surgeon.trees import tensor_at, with_tensor
from surgeon.types import Path, StripMode

CHILD = "_relaxation"
"""Name of the child module that holds the branches of an op."""

Tapping = Literal["nothing", "moments", "rows"]


class Branch(nn.Module):
    """An unconstrained linear map W beside an equivariant one (eq. 2 of the paper), with its coefficients.

    With ``mode="drop"`` the branch adds ``theta_perp W x``. With ``mode="fold"`` it adds
    ``theta_perp (W - P_op(W)) x + theta_par P_op(W) x`` (docs/method.md, "Split theta"), where P_op(W) is the part
    that can be folded into the op's own weights.

    Attributes:
        weight: W, shape (d_out, d_in), or (d_out, d_in, *kernel) for a convolution.
        form: how W is applied.
        theta: buffer of shape (2,): theta_perp, theta_par; not part of the state dict.
        theta_was_set: False until somebody sets theta, which is not part of the state dict.
        missed: True if a forward with gradients ran unrecorded, so that the penalty does not see this branch.
        clean: while True, the forward is that of the stripped model.
        tapping: what a training forward records of its input.
    """

    theta: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        like: Tensor,
        mode: StripMode,
        fold_map: FoldMap | None,
        form: Form | None = None,
    ) -> None:
        super().__init__()
        self.form: Form = LinearForm() if form is None else form
        self.weight = nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))
        self.register_buffer("theta", torch.zeros(2, dtype=like.dtype, device=like.device), persistent=False)
        self.mode = mode
        self.fold_map = fold_map
        self.theta_was_set = False
        self.missed = False
        self._recorded = 0
        self.clean = False
        self.tapping: Tapping = "nothing"
        self._row_size = math.prod(shape[1:])
        self._moments = SecondMoment(self._row_size)
        self._rows: list[Tensor] = []
        self._row_count = 0

    @property
    def matrix(self) -> Tensor:
        """W as a matrix on the rows of its form; shape (d_out, row size)."""
        return self.weight.flatten(1)

    def foldable_part(self) -> Tensor:
        """Return P_op(W), shaped as W; zero if nothing can be folded."""
        return torch.zeros_like(self.weight) if self.fold_map is None else self.fold_map.project(self.weight)

    def effective_weight(self) -> Tensor:
        """Return the matrix that the branch applies at the present coefficients; shaped as W."""
        perpendicular, parallel = self.theta[0], self.theta[1]
        if self.mode == "drop":
            return perpendicular * self.weight
        foldable = self.foldable_part()
        return perpendicular * (self.weight - foldable) + parallel * foldable

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` plus what the branch adds for features ``x``; the output itself if that is nothing."""
        if self.clean:
            if self.mode == "drop" or self.fold_map is None:
                return output
            return output + self.form.apply(self.theta[1] * self.foldable_part(), x, output)
        if self._records():
            self._tap(x.detach())
        return output + self.form.apply(self.effective_weight(), x, output)

    def _records(self) -> bool:
        # Activation checkpointing runs the forward again during backward, when the penalty has been taken already.
        if self.tapping == "nothing" or not self.training or not torch.is_grad_enabled():
            return False
        if torch._C._current_graph_task_id() == -1:
            self._recorded += 1
            return True
        # Reentrant checkpointing runs the first forward without gradients: then nothing was recorded for this one.
        self.missed = self.missed or self._recorded == 0
        self._recorded = max(0, self._recorded - 1)
        return False

    def _tap(self, x: Tensor) -> None:
        rows = self.form.rows(x)
        self._row_count += len(rows)
        if self.tapping == "rows":
            self._rows.append(rows)
            return
        self._moments.add(rows.to(self.weight.dtype))

    @property
    def row_count(self) -> int:
        """Number of rows recorded since the last :meth:`clear_tap`."""
        return self._row_count

    @property
    def second_moment(self) -> SecondMoment:
        """What was recorded since the last :meth:`clear_tap`."""
        return self._moments

    def moments(self) -> Tensor:
        """Return the mean of x x^T over the recorded rows; shape (row size, row size)."""
        if not self._moments.count:
            return self.weight.new_zeros((self._row_size,) * 2)
        return self._moments.matrix()

    def rows(self) -> Tensor:
        """Return the recorded rows; shape (n, row size)."""
        return torch.cat(self._rows) if self._rows else self.weight.new_zeros((1, self._row_size))

    def clear_tap(self) -> None:
        """Forget what was recorded."""
        self._moments, self._rows, self._row_count = SecondMoment(self._row_size), [], 0

    def extra_repr(self) -> str:
        """Show the shape and the mode in the module's printout."""
        return f"W {' x '.join(map(str, self.weight.shape))}, mode={self.mode}"


@dataclass(frozen=True)
class Target:
    """Where a branch reads and where it writes.

    Attributes:
        position: of the argument among the forward's parameters.
        argument: its name.
        path_in: where the features are inside it.
        path_out: where the branch's result goes inside the output.
    """

    position: int
    argument: str
    path_in: Path
    path_out: Path


class Branches(nn.Module):
    """The child module ``_relaxation``: the branches of one op by slot, ``argument[.path]``.

    Attributes:
        targets: slot to where a branch reads and writes; None for one that the op's rewritten forward calls itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.targets: dict[str, Target | None] = {}

    def add(self, slot: str, branch: Branch, target: Target | None) -> None:
        """Add a branch; a slot with dots makes modules inside modules."""
        self.targets[slot] = target
        holder: nn.Module = self
        *above, last = slot.split(".")
        for name in above:
            if name not in holder._modules:
                holder.add_module(name, nn.Module())
            holder = holder.get_submodule(name)
        holder.add_module(last, branch)

    def items(self) -> Iterator[tuple[str, Branch]]:
        """Yield slots and branches."""
        for slot in self.targets:
            branch = self.get_submodule(slot)
            assert isinstance(branch, Branch)
            yield slot, branch

    def add_to_output(self, op: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Forward hook of the op: return its output plus that of the branches."""
        for slot, branch in self.items():
            target = self.targets[slot]
            if target is None:
                continue
            given = args[target.position] if target.position < len(args) else kwargs[target.argument]
            if not target.path_in and not target.path_out:
                output = branch(given, output)
                continue
            added = branch(tensor_at(given, target.path_in), tensor_at(output, target.path_out))
            output = with_tensor(output, target.path_out, added)
        return output


def argument_position(op: nn.Module, argument: str) -> int:
    """Return the position of a forward parameter of ``op``, not counting ``self``.

    Raises:
        PlanError: if the forward has no such parameter; the message lists those it has.
    """
    names = list(inspect.signature(op.forward).parameters)
    if argument not in names:
        raise PlanError(
            f"expected an argument {argument!r} of {type(op).__name__}.forward, but it has {', '.join(names)}: "
            "correct the plan"
        )
    return names.index(argument)


def branches_child(op: nn.Module) -> Branches | None:
    """Return the child module that holds the branches of ``op``, or None; also works on TorchScript modules."""
    child = getattr(op, CHILD, None)
    return child if isinstance(child, Branches) else None


def branches_of(model: nn.Module) -> dict[str, Branch]:
    """Return all branches in ``model``: ``module.slot`` to branch, in the order of the modules."""
    found: dict[str, Branch] = {}
    for name, module in model.named_modules():
        child = branches_child(module)
        if child is not None:
            for slot, branch in child.items():
                found[f"{name}.{slot}" if name else slot] = branch
    return found
