"""The added map theta * W x, and the tap that records what its input looks like.

The branches of one op live in a child module named ``_relaxation`` of that op, attached by a forward hook that is a
bound method of the child: the op keeps its class, attributes, keys and their order, and stripping leaves nothing.
"""

from __future__ import annotations

import inspect
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.errors import PlanError, ShapeError
from surgeon.intertwiners import FoldMap
from surgeon.moments import SecondMoment
from surgeon.types import StripMode

CHILD = "_relaxation"
"""Name of the child module that holds the branches of an op."""

Tapping = Literal["nothing", "moments", "rows"]


class Branch(nn.Module):
    """An unconstrained linear map W beside an equivariant one (eq. 2 of the paper), with its coefficients.

    With ``mode="drop"`` the branch adds ``theta_perp W x``. With ``mode="fold"`` it adds
    ``theta_perp (W - P_op(W)) x + theta_par P_op(W) x`` (docs/method.md, "Split theta"), where P_op(W) is the part
    that can be folded into the op's own weights.

    Attributes:
        weight: W, shape (d_out, d_in).
        theta: buffer of shape (2,): theta_perp, theta_par; not part of the state dict.
        theta_was_set: False until somebody sets theta, which is not part of the state dict.
        missed: True if a forward with gradients ran unrecorded, so that the penalty does not see this branch.
        clean: while True, the forward is that of the stripped model.
        tapping: what a training forward records of its input.
    """

    theta: Tensor

    def __init__(self, shape: tuple[int, int], like: Tensor, mode: StripMode, fold_map: FoldMap | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))
        self.register_buffer("theta", torch.zeros(2, dtype=like.dtype, device=like.device), persistent=False)
        self.mode = mode
        self.fold_map = fold_map
        self.theta_was_set = False
        self.missed = False
        self._recorded = 0
        self.clean = False
        self.tapping: Tapping = "nothing"
        self._moments = SecondMoment(shape[1])
        self._rows: list[Tensor] = []
        self._row_count = 0

    def foldable_part(self) -> Tensor:
        """Return P_op(W), shape (d_out, d_in); zero if nothing can be folded."""
        return torch.zeros_like(self.weight) if self.fold_map is None else self.fold_map.project(self.weight)

    def effective_weight(self) -> Tensor:
        """Return the matrix that the branch applies at the present coefficients; shape (d_out, d_in)."""
        perpendicular, parallel = self.theta[0], self.theta[1]
        if self.mode == "drop":
            return perpendicular * self.weight
        foldable = self.foldable_part()
        return perpendicular * (self.weight - foldable) + parallel * foldable

    def forward(self, x: Tensor) -> Tensor | None:
        """Return what the branch adds for features ``x`` (..., d_in): shape (..., d_out), or None for nothing."""
        if x.shape[-1] != self.weight.shape[1]:
            raise ShapeError(f"expected features of dimension {self.weight.shape[1]}, got shape {tuple(x.shape)}")
        if self.clean:
            if self.mode == "drop" or self.fold_map is None:
                return None
            return functional.linear(x, self.theta[1] * self.foldable_part())
        if self._records():
            self._tap(x.detach())
        return functional.linear(x, self.effective_weight())

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
        rows = x.reshape(-1, x.shape[-1])
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
        """Return the mean of x x^T over the recorded rows; shape (d_in, d_in)."""
        if not self._moments.count:
            return self.weight.new_zeros((self.weight.shape[1],) * 2)
        return self._moments.matrix()

    def rows(self) -> Tensor:
        """Return the recorded rows; shape (n, d_in)."""
        return torch.cat(self._rows) if self._rows else self.weight.new_zeros((1, self.weight.shape[1]))

    def clear_tap(self) -> None:
        """Forget what was recorded."""
        self._moments, self._rows, self._row_count = SecondMoment(self.weight.shape[1]), [], 0

    def extra_repr(self) -> str:
        """Show the shape and the mode in the module's printout."""
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]}, mode={self.mode}"


class Branches(nn.Module):
    """The child module ``_relaxation``: one :class:`Branch` per argument of its op."""

    def __init__(self) -> None:
        super().__init__()
        self.positions: dict[str, int] = {}

    def add(self, argument: str, branch: Branch, op: nn.Module) -> None:
        """Add the branch that reads the forward parameter ``argument`` of ``op``."""
        self.positions[argument] = argument_position(op, argument)
        self.add_module(argument, branch)

    def add_to_output(self, op: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        """Forward hook of the op: return its output plus that of the branches."""
        for argument, position in self.positions.items():
            x = args[position] if position < len(args) else kwargs[argument]
            added = self.get_submodule(argument)(x)
            if added is not None:
                output = output + added
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
    """Return all branches in ``model``: ``module.argument`` to branch, in the order of the modules."""
    found: dict[str, Branch] = {}
    for name, module in model.named_modules():
        child = branches_child(module)
        if child is not None:
            for argument in child.positions:
                branch = child.get_submodule(argument)
                assert isinstance(branch, Branch)
                found[f"{name}.{argument}" if name else argument] = branch
    return found
