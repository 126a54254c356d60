"""A traced forward computes what eager does, or says why there is none; tracing leaves the module as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.finding.own_forward import NotTraceableError
from surgeon.finding.raw_ops import (
    Traced,
    raw_ops,
    trace_complaint,
    trace_forward,
)


class Raw(nn.Module):
    """One contraction with a raw parameter, and something that is not linear behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3))
        self.child = nn.Linear(3, 3)
        self.register_buffer("count", torch.zeros(()))
        self.log: list[Any] = []
        self.kept = torch.randn(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w)


class SwitchesGradientsOff(Raw):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.norm()
        return x @ self.w / scale


class SwitchesGradientsOn(Raw):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return x @ self.w


class SwitchesAutocastOff(Raw):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return x @ self.w


class AsksForGradients(Raw):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w if torch.is_grad_enabled() else x


class Assigns(Raw):
    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        return x @ self.w


class Counts(Raw):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x @ self.w


class FillsAList(Raw):
    def forward(self, x: Tensor) -> Tensor:
        self.log.append(x)
        return x @ self.w


class FillsAListAndFails(Raw):
    def forward(self, x: Tensor) -> Tensor:
        self.log.append(x)
        return x @ self.w if x.sum() > 0 else x


class KeywordOnly(Raw):
    def forward(self, x: Tensor, *more: Tensor, shift: float = 0.5) -> Tensor:
        return torch.tanh(x @ self.w) + shift


class ReadsKeywords(Raw):
    def forward(self, **features: Tensor) -> Tensor:
        return features["x"] @ self.w


REFUSED = {
    ReadsKeywords: "reads ..features",
    KeywordOnly: "keyword-only arguments",
    SwitchesGradientsOff: "switches gradients or autocast",
    SwitchesGradientsOn: "switches gradients or autocast",
    SwitchesAutocastOff: "switches gradients or autocast",
    AsksForGradients: "asks whether gradients",
    Assigns: "assigns self.last",
    Counts: "assigns self.calls",
    FillsAList: "fills a list",
    FillsAListAndFails: "torch.fx cannot trace the forward of FillsAListAndFails",
}


def snapshot(net: nn.Module) -> tuple[Any, ...]:
    values = {name: id(value) for name, value in vars(net).items()}
    return values, list(net.log), {key: value.clone() for key, value in net.state_dict().items()}, torch.get_rng_state()


def same(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    states = all(torch.equal(left[2][key], right[2][key]) for key in left[2])
    return left[:2] == right[:2] and left[2].keys() == right[2].keys() and states and torch.equal(left[3], right[3])


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("gradients", [True, False])
def test_what_a_trace_would_lose_is_refused(kind: type[Raw], gradients: bool) -> None:
    net = kind()
    before = snapshot(net)
    with torch.set_grad_enabled(gradients), pytest.raises(NotTraceableError, match=REFUSED[kind]):
        trace_forward(net)
    assert same(before, snapshot(net))
    assert not torch.is_autocast_enabled("cpu")


class WritesABuffer(Raw):
    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return torch.tanh(x @ self.w)


class MakesConstants(Raw):
    def forward(self, x: Tensor) -> Tensor:
        mix = torch.eye(3) + torch.from_numpy(np.ones((3, 3), dtype=np.float32))
        return torch.tanh(x @ self.w) @ mix + self.kept


class Noise(Raw):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.w) + torch.randn(3)


class ChangesItsInput(Raw):
    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        return torch.tanh(x @ self.w)


class Keywords(Raw):
    def forward(self, x: Tensor, shift: float = 0.5, *more: Tensor, **named: Tensor) -> Tensor:
        return torch.tanh(x @ self.w) + more[0] + shift


CALLS: dict[type[Raw], dict[str, Any]] = {
    Keywords: {"shift": 0.25, "more": (torch.ones(3),), "named": {"scale": torch.full((3,), 2.0)}},
}


@pytest.mark.parametrize("kind", [Raw, WritesABuffer, MakesConstants, Noise, ChangesItsInput, Keywords])
def test_a_trace_computes_what_eager_does_and_leaves_nothing(kind: type[Raw]) -> None:
    net, x = kind(), torch.randn(4, 3)
    before, given = snapshot(net), x.clone()
    graph = trace_forward(net)
    assert trace_complaint(net, graph, [{"x": x, **CALLS.get(kind, {})}]) == ""
    assert same(before, snapshot(net))
    assert torch.equal(x, given)
    assert raw_ops(graph, net)[0].parameters == ("w",)


def test_noise_is_drawn_at_every_run() -> None:
    net, x = Noise(), torch.randn(4, 3)
    graph = trace_forward(net)
    (op,) = raw_ops(graph, net)
    assert torch.equal(Traced(net, graph).result(op, {"x": x}), x @ net.w)
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(code.src, space)
    assert not torch.equal(space["forward"](net, x), space["forward"](net, x))


@pytest.mark.parametrize("kind", [WritesABuffer, ChangesItsInput])
def test_a_side_effect_that_the_trace_lacks_is_noticed(kind: type[Raw]) -> None:
    net = kind()
    graph = trace_forward(net)
    lost = next(node for node in graph.nodes if str(node.target) in ("add_", "mul_"))
    # The output is kept as it is: only what is written elsewhere differs.
    if kind is ChangesItsInput:
        with graph.inserting_before(lost):
            doubled = graph.call_function(torch.mul, lost.args)
        lost.args[0].replace_all_uses_with(doubled, delete_user_cb=lambda user: user is not doubled)
    graph.erase_node(lost)
    assert (
        trace_complaint(net, graph, [{"x": torch.randn(4, 3)}]) == "its traced form differs from eager in training mode"
    )


@pytest.mark.parametrize(("training", "other"), [(True, "eval"), (False, "training")])
def test_another_path_in_the_other_mode_is_noticed(training: bool, other: str) -> None:
    class ByMode(Raw):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x @ self.w) if self.training else torch.relu(x @ self.w)

    net = ByMode().train(training)
    complaint = trace_complaint(net, trace_forward(net), [{"x": torch.randn(4, 3)}])
    assert complaint == f"its traced form differs from eager in {other} mode"


def test_a_forward_that_fails_in_eval_mode_is_a_complaint() -> None:
    class TrainingOnly(Raw):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise RuntimeError("train me")
            return torch.tanh(x @ self.w)

    net = TrainingOnly()
    assert "fails with RuntimeError in eval mode" in trace_complaint(net, trace_forward(net), [{"x": torch.ones(2, 3)}])
    assert net.training
    assert net.child.training


def test_an_instance_forward_is_refused() -> None:
    net = Raw()
    net.forward = lambda x: x  # type: ignore[method-assign]
    with pytest.raises(NotTraceableError, match="attribute of the instance"):
        trace_forward(net)


class Contractions(Raw):
    def forward(self, x: Tensor) -> Tensor:
        x = torch.addmm(self.b, x, self.w)
        x = functional.linear(x, bias=self.b, weight=self.w)
        x = torch.addmm(x, x.tanh(), self.w.T * 2.0)
        x = torch.einsum("ni,io->no", x, torch.stack([self.b, self.b, self.b]))
        x = x @ x.T @ x
        x = x * self.b + self.b
        return torch.matmul(x, self.w, out=torch.empty(4, 3))


def test_added_operands_are_not_factors() -> None:
    net = Contractions()
    graph = trace_forward(net)
    nodes = {node.name: node for node in graph.nodes}
    found = [(op.node, nodes[op.node].all_input_nodes[op.operand].name, op.parameters) for op in raw_ops(graph, net)]
    assert found == [
        ("addmm", "x", ("w", "b")),
        ("linear", "addmm", ("w", "b")),
        ("addmm_1", "tanh", ("w",)),
        ("einsum", "addmm_1", ("b",)),
    ]


def test_exported_contractions_are_listed_too() -> None:
    class Convolves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k, self.w = nn.Parameter(torch.randn(2, 1, 3, 3)), nn.Parameter(torch.randn(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            y = functional.conv2d(x, torch.rot90(self.k, 1, (-2, -1)), padding="same").tanh()
            return torch.einsum("bcij,cd->bdij", y, self.w).tanh()

    module = torch.export.export(Convolves(), (torch.randn(1, 1, 5, 5),)).module()
    assert [op.parameters for op in raw_ops(trace_forward(module), module)] == [("k",), ("w",)]


def test_one_op_is_run_on_other_features() -> None:
    net, x, other = Raw(), torch.randn(4, 3), torch.randn(4, 3)
    graph = trace_forward(net)
    (op,) = raw_ops(graph, net)
    assert torch.equal(Traced(net, graph).operand(op, {"x": x}), x)
    assert torch.equal(Traced(net, graph).run(op, {"x": x}, other), other @ net.w)
    assert not torch.equal(Traced(net, graph).run(op, {"x": x}, x), other @ net.w)
