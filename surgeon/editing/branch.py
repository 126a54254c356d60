"""The added map theta * W x, and the tap that records what its input looks like.

The branches of one op live in a child module named ``_relaxation`` of that op, attached by a forward hook that is a
bound method of the child: the op keeps its class, attributes, keys and their order, and stripping leaves nothing.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.folding import FoldMap
from surgeon.algebra.moments import SecondMoment, gram_matrix
from surgeon.errors import PlanError, SurgeryError
from surgeon.finding.forms import Form, LinearForm, row_count, rows_of, some_rows
from surgeon.plan import CHILD, StripMode
from surgeon.support.compiler import not_compiled
from surgeon.support.transforms import no_transforms, outside
from surgeon.support.trees import Place, tensor_at, with_tensor


@dataclass(frozen=True)
class Tap:
    """What a branch records of the features that it sees in training.

    Attributes:
        keep_rows: keep the rows themselves, which the mean of norms needs, even where their moments are smaller.
        at_most: rows taken of each forward, spread evenly; None takes all.
        offset: in [0, 1), where the sequence of rows starts.
        grams: Gram matrices that other branches have made of the same features already, with these features.
    """

    keep_rows: bool = False
    at_most: int | None = None
    offset: float = 0.0
    grams: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)


FindFoldMap = Callable[[], FoldMap]


class Branch(nn.Module):
    """An unconstrained linear map W beside an equivariant one (eq. 2 of the paper), with its coefficients.

    With ``mode="drop"`` the branch adds ``theta_perp W x``. With ``mode="fold"`` it adds
    ``theta_perp (W - P_op(W)) x + theta_par P_op(W) x`` (docs/method.md, "Split theta"), where P_op(W) is the part
    that can be folded into the op's own weights.

    Attributes:
        shape: of W: (d_out, d_in), or (d_out, d_in, *kernel) for a convolution.
        form: how W is applied.
        mask: buffer of shape (d_out, d_in, 1, ...), not in the state dict: 1 where W may differ from 0; None for
            everywhere.
        theta: buffer of shape (2,): theta_perp, theta_par; not in the state dict.
        theta_was_set: False until somebody sets theta.
        missed: True if a forward with gradients ran unrecorded, so that the penalty does not see this branch.
        clean: while True, the forward is that of the stripped model.
        merged: while True, the op adds the branch itself in training mode.
    """

    weight: Tensor
    theta: Tensor
    mask: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        like: Tensor,
        mode: StripMode,
        fold_map: FoldMap | FindFoldMap | None,
        form: Form | None = None,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.form: Form = LinearForm() if form is None else form
        self.shape, self.mode, self._fold_map = shape, mode, fold_map
        self._make_weights(like)
        self.register_buffer("mask", None if mask is None else mask.to(like), persistent=False)
        self.register_buffer("theta", torch.zeros(2, dtype=like.dtype, device=like.device), persistent=False)
        self.theta_was_set = False
        self.missed = False
        self._recorded = 0
        self.clean = False
        self.merged = False
        self.record(None)

    @property
    def fold_map(self) -> FoldMap | None:
        """What of W the op's own weights can take in; where only ``strip`` may need it, it is found out when asked for.

        Raises:
            PlanError: if the op cannot be run as the plan says.
        """
        if callable(self._fold_map):
            self._fold_map = self._fold_map()
        return self._fold_map

    def _make_weights(self, like: Tensor) -> None:
        self.weight = nn.Parameter(torch.zeros(self.shape, dtype=like.dtype, device=like.device))

    def initialise(self, scale: float, generator: torch.Generator) -> None:
        """Draw W anew, in place: entries of standard deviation ``scale / sqrt(d_in)``; the function must not change.

        Args:
            scale: dimensionless; 0 for W = 0.
            generator: on the CPU.
        """
        with torch.no_grad():
            self._draw(self.weight, scale / self.shape[1] ** 0.5, generator)
            if self.mask is not None:
                self.weight.mul_(self.mask)

    @staticmethod
    def _draw(weight: Tensor, deviation: float, generator: torch.Generator) -> None:
        if deviation:
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64).mul_(deviation))
        else:
            weight.zero_()

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The matrices on the rows of the form whose product is W, in the order in which they are applied."""
        return (self.matrix,)

    @property
    def masked(self) -> Tensor:
        """W in the blocks to which it is restricted, 0 in the others; what all of the branch is about."""
        return self.weight if self.mask is None else self.weight * self.mask

    @property
    def matrix(self) -> Tensor:
        """W as a matrix on the rows of its form; shape (d_out, row size)."""
        return self.masked.flatten(1)

    def foldable_part(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return P_op(W), shaped as W; zero if nothing can be folded."""
        weight = self.masked.to(dtype)
        return torch.zeros_like(weight) if self.fold_map is None else self.fold_map.project(weight)

    def subtract(self, part: Tensor) -> None:
        """Take ``part``, shaped as W, off W, in place."""
        with torch.no_grad():
            self.weight.sub_(part)

    def effective_weight(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the matrix that the branch applies at the present coefficients; shaped as W."""
        weight = self.masked.to(dtype)
        if self.mode == "drop" or self.fold_map is None:
            return self.theta[0] * weight
        foldable = self.foldable_part(dtype)
        return self.theta[0] * (weight - foldable) + self.theta[1] * foldable

    def applied_weights(self) -> tuple[Tensor, ...]:
        """Return what the form applies, one after the other: the effective weight, or its factors."""
        return (self.effective_weight(),)

    def forward(self, x: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` plus what the branch adds for features ``x``; the output itself if that is nothing."""
        if self.clean:
            if self.mode == "drop" or self.fold_map is None:
                return output
            return self.form.add(output, (self.theta[1] * self.foldable_part(),), x)
        if self.merged and self.training:
            return output
        self.see(x)
        return self.form.add(output, self.applied_weights(), x)

    def see(self, x: Tensor) -> None:
        """Record the features of a training forward, if anything is to be recorded."""
        if self.tap is not None and self.training and torch.is_grad_enabled():
            self._see(x)

    @not_compiled  # it counts, and what counts would be compiled anew in every step
    def _see(self, x: Tensor) -> None:
        if self._records():
            with no_transforms():
                self._tap(outside(x).detach())

    def record(self, tap: Tap | None) -> None:
        """Forget what was recorded, and record this from now on; None for nothing."""
        self.tap = tap
        self._moments = SecondMoment(math.prod(self.shape[1:]), tap is not None and tap.keep_rows)

    def _records(self) -> bool:
        # Activation checkpointing runs the forward again during backward, when the penalty has been taken already.
        if torch._C._current_graph_task_id() == -1:
            self._recorded += 1
            return True
        # Reentrant checkpointing runs the first forward without gradients: then nothing was recorded for this one.
        self.missed = self.missed or self._recorded == 0
        self._recorded = max(0, self._recorded - 1)
        return False

    def _tap(self, x: Tensor) -> None:
        assert self.tap is not None
        if self.tap.at_most is not None:
            rows = some_rows(self.form, x, self.tap.at_most, self.tap.offset)
            self._moments.add(rows.to(self.theta.dtype))
            return
        count = row_count(self.form, x)
        if self.tap.keep_rows or count < self._moments.dimension:
            self._moments.add(rows_of(self.form, x).to(self.theta.dtype))
            return
        # layers side by side read the same tensor; it is kept alive, so that its address stays its own
        key = (x.data_ptr(), x.shape, x.stride(), x._version, self.form)
        if key not in self.tap.grams:
            self.tap.grams[key] = (x, gram_matrix(rows_of(self.form, x).to(self.theta.dtype)))
        self._moments.add_gram(self.tap.grams[key][1], count)

    @property
    def recorded(self) -> SecondMoment:
        """What was recorded since the last :meth:`record`."""
        return self._moments

    def extra_repr(self) -> str:
        """Show the shape and the mode in the module's printout."""
        return f"W {' x '.join(map(str, self.shape))}, mode={self.mode}"


class LowRankBranch(Branch):
    """A branch with ``W = B A``: A of shape (rank, d_in, *kernel) starts at random, B of shape (d_out, rank) at 0.

    Its foldable part P_op(W) is applied as a matrix of full rank, so that it saves less with ``mode="fold"``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        like: Tensor,
        mode: StripMode,
        fold_map: FoldMap | FindFoldMap | None,
        form: Form | None = None,
        *,
        rank: int,
    ) -> None:
        self.rank = rank
        super().__init__(shape, like, mode, fold_map, form)

    def _make_weights(self, like: Tensor) -> None:
        zeros = torch.zeros(0, dtype=like.dtype, device=like.device)
        self.weight_a = nn.Parameter(zeros.new_zeros((self.rank, *self.shape[1:])))
        self.weight_b = nn.Parameter(zeros.new_zeros((self.shape[0], self.rank)))

    def initialise(self, scale: float, generator: torch.Generator) -> None:
        """Draw A with entries of standard deviation ``1 / sqrt(d_in)`` and B with ``scale / sqrt(rank)``."""
        with torch.no_grad():
            self._draw(self.weight_a, self.shape[1] ** -0.5, generator)
            self._draw(self.weight_b, scale / self.rank**0.5, generator)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W = B A, shape (d_out, d_in, *kernel); a new tensor."""
        return (self.weight_b @ self.weight_a.flatten(1)).reshape(self.shape)

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """A and B as matrices on the rows of the form."""
        return self.weight_a.flatten(1), self.weight_b

    def subtract(self, part: Tensor) -> None:
        """Refuse: what is left of W would not have the rank any more."""
        raise SurgeryError(
            "expected a dense W to take its foldable part off, got one of low rank: re-fold branches without a rank"
        )

    def applied_weights(self) -> tuple[Tensor, ...]:
        """Return A and theta B; in mode "fold" the effective weight of full rank."""
        if self.mode == "drop" or self.fold_map is None:
            return self.weight_a, self.theta[0] * self.weight_b
        return (self.effective_weight(),)


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
    path_in: Place
    path_out: Place


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


def branched_ops(model: nn.Module) -> list[tuple[str, nn.Module, Branches]]:
    """Return the ops that have branches by qualified name, in the order of the modules."""
    children = ((name, op, branches_child(op)) for name, op in model.named_modules())
    return [(name, op, child) for name, op, child in children if child is not None]


def branches_of(model: nn.Module) -> dict[str, Branch]:
    """Return all branches in ``model``: ``module.slot`` to branch, in the order of the modules."""
    return {
        f"{name}.{slot}" if name else slot: branch
        for name, _, child in branched_ops(model)
        for slot, branch in child.items()
    }
