"""One branch: what it adds, what its tap records, and how it hangs on its op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from surgeon.algebra.folding import FoldMap, Parts
from surgeon.algebra.representations.build import representation_from
from surgeon.editing.branch import Branch, Branches, Tap, argument_position, branches_child, branches_of
from surgeon.editing.insert import attach, detach
from surgeon.errors import PlanError, ShapeError
from surgeon.plan import CHILD, Site

DOUBLE = torch.float64


def diagonal_fold(size: int) -> FoldMap:
    """As many scalars on both sides, each weight on the diagonal: P_op(W) is the diagonal of W."""
    index, one = torch.arange(size)[:, None], torch.ones(1, 1, dtype=DOUBLE)
    return FoldMap((size, size), {"weight": (size,)}, [Parts(index * (size + 1), index, one, one, one)])


def branch(mode: str = "drop", fold: bool = True, size: int = 3) -> Branch:
    made = Branch((size, size), torch.zeros(1, dtype=DOUBLE), mode, diagonal_fold(size) if fold else None)  # type: ignore[arg-type]
    with torch.no_grad():
        made.weight.normal_()
        made.theta.copy_(torch.tensor([0.25, 0.75]))
    return made


class Scale(nn.Module):
    """An op with a keyword-capable forward of two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=DOUBLE))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return self.weight * x if y is None else self.weight * x + y


def added(made: Branch, x: Tensor) -> Tensor:
    """What a branch adds to an output of ones."""
    ones = torch.ones_like(x)
    return made(x, ones) - ones


def site(argument: str, shape: tuple[int, int] = (3, 3)) -> Site:
    return Site(
        "", argument, "linear", "", *(representation_from("O3", {"trivial": size}) for size in reversed(shape)), shape
    )


def test_drop_adds_theta_w_x() -> None:
    made, x = branch("drop"), torch.randn(4, 3, dtype=DOUBLE)
    assert torch.allclose(added(made, x), 0.25 * x @ made.weight.T)
    made.clean = True
    output = torch.ones_like(x)
    assert made(x, output) is output


def test_fold_splits_the_coefficient() -> None:
    made, x = branch("fold"), torch.randn(4, 3, dtype=DOUBLE)
    diagonal = torch.diag(made.weight.diagonal())
    assert torch.allclose(added(made, x), x @ (0.25 * (made.weight - diagonal) + 0.75 * diagonal).T)
    made.clean = True
    assert torch.allclose(added(made, x), 0.75 * x @ diagonal)


def test_fold_without_a_map_keeps_nothing() -> None:
    made, x = branch("fold", fold=False), torch.randn(4, 3, dtype=DOUBLE)
    assert torch.allclose(added(made, x), 0.25 * x @ made.weight.T)
    assert not made.foldable_part().any()
    made.clean = True
    assert not added(made, x).any()


def test_wrong_features_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"dimension 3, got shape \(4, 2\)"):
        branch()(torch.zeros(4, 2, dtype=DOUBLE), torch.zeros(4, 3, dtype=DOUBLE))


def recorded(made: Branch) -> int:
    made.record(made.tap)
    added(made, torch.randn(4, 3, dtype=DOUBLE))
    return made.recorded.count


@pytest.mark.parametrize("tap", [Tap(), Tap(keep_rows=True)])
def test_the_tap_records_training_forwards_only(tap: Tap) -> None:
    made = branch()
    assert recorded(made) == 0
    made.record(tap)
    assert recorded(made) == 4
    with torch.no_grad():
        assert recorded(made) == 0
    made.eval()
    assert recorded(made) == 0
    made.train().clean = True
    assert recorded(made) == 0


def test_moments_over_calls_are_those_of_the_concatenation() -> None:
    made = branch()
    made.record(Tap())
    parts = [torch.randn(*shape, dtype=DOUBLE, requires_grad=True) for shape in ((2, 3), (5, 2, 3), (1, 3))]
    for part in parts:
        added(made, part)
    rows = torch.cat([part.detach().reshape(-1, 3) for part in parts])
    assert made.recorded.count == len(rows) == 13
    assert torch.allclose(made.recorded.matrix(), rows.T @ rows / len(rows))
    assert not made.recorded.matrix().requires_grad
    made.record(made.tap)
    assert made.recorded.count == 0


def test_rows_over_calls_are_concatenated() -> None:
    made = branch()
    made.record(Tap(keep_rows=True))
    parts = [torch.randn(2, 3, dtype=DOUBLE), torch.randn(1, 4, 3, dtype=DOUBLE)]
    for part in parts:
        added(made, part)
    assert torch.equal(made.recorded.rows(), torch.cat([part.reshape(-1, 3) for part in parts]))  # type: ignore[arg-type]


def test_some_rows_are_rows_and_differ_from_step_to_step() -> None:
    made, x = branch(), torch.arange(300, dtype=DOUBLE).reshape(20, 5, 3)
    seen = []
    for offset in (0.0, 0.4):
        made.record(Tap(keep_rows=True, at_most=7, offset=offset))
        added(made, x)
        rows = made.recorded.rows()
        assert rows is not None
        assert rows.shape == (7, 3)
        assert all((x == row).all(-1).any() for row in rows)
        assert len(rows.unique(dim=0)) == 7
        seen.append(rows)
    assert not torch.equal(*seen)
    made.record(Tap(keep_rows=True, at_most=100))
    added(made, x)
    assert torch.equal(made.recorded.rows(), x.reshape(-1, 3))  # type: ignore[arg-type]


def test_activation_checkpointing_does_not_record_twice() -> None:
    op, made = Scale(), branch()
    attach(op, site("x"), made)
    made.record(Tap())
    x = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    loss = checkpoint(op, x, use_reentrant=False).square().sum()
    assert made.recorded.count == 4
    made.record(made.tap)
    loss.backward()
    assert made.weight.grad is not None
    assert made.recorded.count == 0


@pytest.mark.parametrize("keyword", [False, True])
def test_the_hook_finds_its_argument(keyword: bool) -> None:
    op, made = Scale(), branch()
    attach(op, site("y"), made)
    x, y = torch.randn(2, 4, 3, dtype=DOUBLE)
    out = op(x, y=y) if keyword else op(x, y)
    assert torch.allclose(out, x + y + 0.25 * y @ made.weight.T)


def test_two_arguments_have_two_branches() -> None:
    op, first, second = Scale(), branch(), branch()
    attach(op, site("x"), first)
    attach(op, site("y"), second)
    x, y = torch.randn(2, 4, 3, dtype=DOUBLE)
    assert torch.allclose(op(x, y), x + y + 0.25 * (x @ first.weight.T + y @ second.weight.T))
    assert branches_of(op) == {"x": first, "y": second}
    assert list(op.state_dict()) == ["weight", f"{CHILD}.x.weight", f"{CHILD}.y.weight"]
    detach(op)
    assert list(op.state_dict()) == ["weight"]
    assert not op._forward_hooks
    assert not op._forward_hooks_with_kwargs
    assert torch.equal(op(x, y), x + y)


def test_detaching_leaves_other_hooks_alone() -> None:
    op = Scale()
    op.register_forward_hook(lambda module, args, output: 2 * output)
    attach(op, site("x"), branch())
    detach(op)
    detach(op)
    x = torch.randn(4, 3, dtype=DOUBLE)
    assert torch.equal(op(x), 2 * x)


def test_a_foreign_child_of_the_same_name_is_no_branch() -> None:
    op = Scale()
    op.add_module(CHILD, nn.Identity())
    assert branches_child(op) is None
    assert branches_of(op) == {}


def test_branches_are_found_beside_torchscript() -> None:
    model = nn.Module()
    model.scripted = torch.jit.script(nn.Linear(2, 2))
    model.op = Scale()
    attach(model.op, site("x"), branch())
    assert list(branches_of(model)) == ["op.x"]
    assert isinstance(branches_child(model.op), Branches)


def test_an_unknown_argument_is_refused_with_the_choices() -> None:
    with pytest.raises(PlanError, match="'z' of Scale.forward, but it has x, y"):
        argument_position(Scale(), "z")
    assert argument_position(Scale(), "y") == 1


def test_the_printout_shows_shape_and_mode() -> None:
    assert "W 3 x 3, mode=drop" in repr(branch())


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_that_was_not_recorded_is_noticed(reentrant: bool) -> None:
    branch = Branch((2, 3), torch.zeros(()), "drop", None).train()
    branch.record(Tap())
    x, zeros = torch.randn(4, 3, requires_grad=True), torch.zeros(4, 2)
    for _ in range(2):
        checkpoint(branch, x, zeros, use_reentrant=reentrant).sum().backward()
    assert branch.missed == reentrant
    assert branch.recorded.count == (0 if reentrant else 8)
    branch(x, zeros).sum().backward()
    assert branch.missed == reentrant


def test_a_compiled_branch_is_compiled_once_for_all_theta_and_rows() -> None:
    made, compiled = branch("drop").train(), []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    x, run = torch.randn(8, 3, dtype=DOUBLE), torch.compile(made, backend=backend)
    for step in range(4):
        made.record(Tap(at_most=2, offset=step / 7))
        made.theta.fill_(step / 4)
        assert torch.allclose(run(x, torch.ones_like(x)), 1 + step / 4 * x @ made.weight.T)
        assert (made.recorded.count, len(compiled)) == (2, 1)
