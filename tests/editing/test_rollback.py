"""Whatever fails while branches are inserted or looked for, the model is as it was."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import surgeon
from surgeon.algebra.schedule import Schedule
from surgeon.editing import insert, relaxation, rewrite
from surgeon.editing.branch import branches_of
from surgeon.errors import PlanError, UsageError
from surgeon.plan import Plan
from tests import nets

INSERTION = frozenset(str(module.__file__) for module in (insert, relaxation, rewrite, surgeon.editing.branch))


class OutOfLuckError(BaseException):
    """Stops a process wherever it is."""


class Raw(nn.Module):
    """Weights used inside a forward, and a layer that has hooks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
        self.mix = nn.Linear(2, 2, bias=False, dtype=torch.float64)
        self.mix.register_forward_hook(lambda module, inputs, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        """Mix channels; x (rows, 3, 2)."""
        return self.mix(x) @ self.weight


def prepared(kind: str) -> tuple[nn.Module, Plan]:
    if kind == "annotated":
        return nets.build("linears")[0], nets.plan_of("linears")
    torch.manual_seed(0)
    net = fx.symbolic_trace(Raw()) if kind == "graph" else Raw()
    x = torch.randn(6, 3, 2, dtype=torch.float64)
    action = {"act": lambda g, x: g @ x, "act_output": lambda g, y: g @ y, "adapters": {}}
    return net, surgeon.find(net, "SO3", x, **action)


def inserted(net: nn.Module, plan: Plan, visit: Callable[[int, tuple[str, int]], None]) -> None:
    """Insert the branches, and tell each line within the code of insertion that runs: its number and its place."""
    count = itertools.count(1)

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in INSERTION:
            return None
        if event == "line":
            visit(next(count), (frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with torch.enable_grad():  # a context that is left at its own line is not closed by Python
            surgeon.relax(net, plan, dense=True, mode="fold", init_scale=1.0)
    finally:
        sys.settrace(before)


def lines_of(net: nn.Module, plan: Plan) -> list[int]:
    """Return the number of the first and of the last run of every line of an insertion, which is undone."""
    runs: dict[tuple[str, int], list[int]] = {}
    inserted(net, plan, lambda number, place: runs.setdefault(place, []).append(number))
    surgeon.strip(net, "drop")
    return sorted({number for numbers in runs.values() for number in (numbers[0], numbers[-1])})


def fails(net: nn.Module, plan: Plan, number: int, error: type[BaseException]) -> bool:
    """Tell whether an insertion that is made to raise at a line does; False if it has fewer lines."""

    def visit(line: int, _: tuple[str, int]) -> None:
        if line == number:
            sys.settrace(None)
            raise error("out of luck")

    try:
        inserted(net, plan, visit)
    except (Exception, OutOfLuckError):
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "error"), [("annotated", RuntimeError), ("raw", OutOfLuckError), ("graph", RuntimeError)]
)
def test_every_line_of_an_insertion_may_fail(
    kind: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first and the last time that it runs; what weights can take in, which changes no model, is found out once."""
    net, plan = prepared(kind)
    found: dict[str, Any] = {}
    usual = insert.fold_map_at
    monkeypatch.setattr(insert, "fold_map_at", lambda op, site, wrap: found.get(site.key) or usual(op, site, wrap))
    branches = surgeon.relax(net, plan, dense=True, mode="fold").branches
    found |= {key: branch.fold_map for key, branch in branches.items()}
    surgeon.strip(net, "drop")
    net.train()
    next(net.children()).eval()
    before, marks, text = nets.state(net), nets.traces(net), str(getattr(net, "graph", ""))
    lines = lines_of(net, plan)
    assert len(lines) > 100
    for number in lines:
        assert fails(net, plan, number, error), number
        assert nets.state(net) == before, number
        assert nets.traces(net) == marks, number
        assert str(getattr(net, "graph", "")) == text, number
    assert not fails(net, plan, 0, error)
    assert len(branches_of(net)) == len(plan.sites)
    surgeon.strip(net, "drop")
    assert (nets.state(net), nets.traces(net)) == (before, marks)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"schedule": "square"}, UsageError),
        ({"schedule": Schedule(sites=(("nothing*", 0.5),))}, PlanError),
        ({"init_scale": float("nan")}, UsageError),
        ({"penalty_rows": 0}, UsageError),
    ],
)
def test_a_refused_setting_leaves_no_branch(settings: dict[str, Any], error: type[Exception]) -> None:
    net, plan = prepared("raw")
    before, marks = nets.state(net), nets.traces(net)
    with pytest.raises(error):
        surgeon.relax(net, plan, dense=True, **settings)
    assert (nets.state(net), nets.traces(net)) == (before, marks)
    assert surgeon.relax(net, plan, dense=True, schedule="cosine").schedule == Schedule("cosine")


class Caching(nn.Linear):
    """Keeps its kernel in eval mode alone, as layers of steerable networks do, and fails if it is in the other mode."""

    def train(self, mode: bool = True) -> nn.Module:
        """Build the kernel, or drop it."""
        super().train(mode)
        self._buffers.pop("kernel", None)
        if not mode:
            self.register_buffer("kernel", self.weight.detach().clone())
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Apply the weights of the present mode."""
        return x @ (self.weight if self.training else self.kernel).T


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_a_module_that_caches_by_mode_works_after_it_was_inspected(outer: bool, inner: bool) -> None:
    net = nn.Sequential(nn.Sequential(Caching(2, 2, bias=False).double()), nn.Dropout(0.0)).train(outer)
    net[0].train(inner)
    modes, keys = [part.training for part in net.modules()], list(net.state_dict())
    x = torch.randn(5, 3, 2, dtype=torch.float64)
    surgeon.find(net, "SO3", x, act=lambda g, x: g @ x, act_output=lambda g, y: g @ y, adapters={})
    assert [part.training for part in net.modules()] == modes
    assert list(net.state_dict()) == keys
    net(x)
