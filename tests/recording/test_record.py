"""The recorder sees every op of one real run, and nobody notices that it was there."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from surgeon.recording.record import Recording, computed_bytes, record

Pair = namedtuple("Pair", ["left", "right"])


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(torch.relu(self.first(self.first(x))))
        return result


def ops(recording: Recording, name: str) -> list[fx.Node]:
    return [node for node in recording.graph.nodes if node.op == "call_function" and f".{name}." in str(node.target)]


def owners(recording: Recording, name: str) -> list[tuple[str, int]]:
    return [(node.meta["owner"], node.meta["call_index"]) for node in ops(recording, name)]


def test_owner_and_call_index() -> None:
    recording = record(Two(), torch.randn(4, 3))
    assert owners(recording, "addmm") == [("first", 0), ("first", 1), ("second", 0)]
    assert owners(recording, "relu") == [("", 0)]
    assert recording.calls == {"": 1, "first": 2, "second": 1}
    assert [node.meta["shape"] for node in ops(recording, "addmm")] == [(4, 3), (4, 3), (4, 2)]
    assert {node.meta["dtype"] for node in ops(recording, "addmm")} == {torch.float32}


def test_edges_follow_the_data() -> None:
    recording = record(Two(), torch.randn(4, 3))
    first, again, second = ops(recording, "addmm")
    assert first in again.all_input_nodes
    assert first not in second.all_input_nodes
    assert next(iter(recording.graph.output_node().all_input_nodes)) is second
    recording.graph.lint()


def test_outputs_are_those_of_the_model() -> None:
    model, x = Two(), torch.randn(4, 3)
    recording = record(model, x)
    assert torch.equal(recording.outputs, model(x))
    assert not recording.outputs.requires_grad


def test_a_module_under_two_names_goes_by_the_first() -> None:
    model = Two()
    model.second = nn.Sequential(model.first, nn.Linear(3, 2))  # type: ignore[assignment]
    recording = record(model, torch.randn(4, 3))
    assert owners(recording, "addmm") == [("first", 0), ("first", 1), ("first", 2), ("second.1", 0)]


def test_a_module_that_is_made_in_the_forward_belongs_to_its_caller() -> None:
    class Making(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = nn.Linear(3, 2)(x)
            return result

    assert owners(record(nn.Sequential(Making()), torch.randn(4, 3)), "addmm") == [("0", 0)]


def test_an_exception_that_the_model_catches_does_not_shift_the_owners() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    class Trying(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bad, self.good = Failing(), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            try:
                x = self.bad(x)
            except ValueError:
                x = x + 1
            result: Tensor = self.good(x)
            return result

    recording = record(Trying(), torch.randn(4, 3))
    assert owners(recording, "add") == [("", 0)]
    assert owners(recording, "addmm") == [("good", 0)]


class Branching(nn.Module):
    """The path depends on the numbers."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum().item() > 0:
            return x.sin()
        return x[x[:, 0] < 0].cos()


@pytest.mark.parametrize(("sign", "taken", "other"), [(1.0, "sin", "cos"), (-1.0, "cos", "sin")])
def test_the_path_that_the_data_take(sign: float, taken: str, other: str) -> None:
    recording = record(Branching(), sign * torch.ones(4, 3))
    assert len(ops(recording, taken)) == 1
    assert not ops(recording, other)


@dataclass(frozen=True)
class Batch:
    x: Tensor
    more: dict[str, Any]


class Taking(nn.Module):
    def __init__(self, reach: Callable[[Any], list[Tensor]]) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, batch: Any) -> Any:
        left, right = self.reach(batch)
        left.add_(1)
        return {"sum": (left * right, [right])}


X, Y = torch.full((2, 3), 2.0), torch.full((2, 3), 5.0)


@pytest.mark.parametrize(
    ("batch", "reach"),
    [
        ({"a": X, "b": {"c": Y}}, lambda b: [b["a"], b["b"]["c"]]),
        ((X, [Y, "name"]), lambda b: [b[0], b[1][0]]),
        (Pair(X, Y), lambda b: [b.left, b.right]),
        (Batch(X, {"y": Y}), lambda b: [b.x, b.more["y"]]),
    ],
    ids=["dict", "tuple", "named tuple", "dataclass"],
)
def test_nests_of_inputs_and_outputs(batch: Any, reach: Callable[[Any], list[Tensor]]) -> None:
    recording = record(Taking(reach), batch)
    placeholders = [node for node in recording.graph.nodes if node.op == "placeholder"]
    assert len(placeholders) == 2
    assert torch.equal(recording.outputs["sum"][0], torch.full((2, 3), 15.0))
    assert float(X[0, 0]) == 2.0  # the in-place write went to a copy
    (product,) = ops(recording, "mul")
    assert product.args == (ops(recording, "add_")[0], placeholders[1])


class Energy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        (force,) = torch.autograd.grad(torch.tanh(self.net(x)).sum(), x, create_graph=True)
        return -force


def test_ops_of_a_gradient_inside_the_forward_are_flagged() -> None:
    recording = record(Energy(), torch.randn(4, 3))
    flagged = {str(node.target) for node in recording.graph.nodes if node.meta.get("backward")}
    plain = {str(node.target) for node in recording.graph.nodes if not node.meta.get("backward")}
    assert "aten.tanh_backward.default" in flagged
    assert {"aten.tanh.default", "aten.addmm.default", "aten.neg.default"} <= plain
    assert not {"aten.tanh.default", "aten.addmm.default"} & flagged


def test_a_scripted_submodule() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch deprecate TorchScript, libraries still ship it
        scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
        model, x = nn.Sequential(scripted, nn.Linear(3, 2)), torch.randn(4, 3)
        recording = record(model, x)
        assert torch.equal(recording.outputs, model(x))
    assert len(ops(recording, "tanh")) == 1
    assert all(owner.split(".")[0] == "0" for owner, _ in owners(recording, "tanh"))
    assert any("0.0.weight" in node.meta["parameters"] for node in recording.graph.nodes if node.op == "get_attr")


def test_the_model_its_buffers_and_the_random_state_are_as_before() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    attributes = [set(vars(module)) for module in model.modules()]
    recording = record(model, torch.randn(8, 3, generator=torch.Generator().manual_seed(0)))
    assert ops(recording, "native_batch_norm") or ops(recording, "_native_batch_norm_legit")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model(torch.randn(8, 3))
    assert not torch.equal(model.state_dict()["0.running_mean"], before["0.running_mean"])  # it would have changed


class Rebinding(nn.Module):
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return x * self.count[0]


def test_a_buffer_that_is_bound_anew_has_its_value_back() -> None:
    model = Rebinding()
    assert torch.equal(record(model, torch.ones(2)).outputs, torch.ones(2))
    assert torch.equal(model.count, torch.zeros(2))


def test_a_failing_forward_leaves_no_hook_and_no_trace() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            raise ValueError("half-way")

    model = Half()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="half-way"):
        record(model, torch.randn(8, 3))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks_always_called


def test_gradients_of_the_users_tensors_are_not_touched() -> None:
    model, x = Two(), torch.randn(4, 3, requires_grad=True)
    record(model, x)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x).sum().backward()
    assert x.grad is not None


def test_another_forward() -> None:
    recording = record(Two(), {"x": torch.randn(4, 3)}, forward=lambda model, batch: 2 * model(batch["x"]))
    assert owners(recording, "mul") == [("", 0)]


def test_constants_are_named_one_by_one() -> None:
    constant = torch.ones(3)

    class Adding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + constant + constant

    recording = record(Adding(), torch.randn(3))
    assert [node.target for node in recording.graph.nodes if node.op == "get_attr"] == ["_constant_0"]


class Remembering(nn.Module):
    """Changes everything that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("grows", torch.zeros(0))
        self.register_buffer("empty", None)
        self.register_buffer("counted", torch.zeros(1))
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        self.grows = torch.ones(3)
        self.empty = torch.ones(2)
        self.counted += 1
        self.step += 1
        self.seen = self.linear(x)
        return self.seen


def test_nothing_that_a_forward_changes_stays_changed() -> None:
    net = Remembering()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    record(net, torch.randn(2, 3))
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.step == 0
    assert not hasattr(net, "seen")
    net(torch.randn(2, 3))  # the twin: an ordinary call does change all of it
    assert net.step == 1
    assert "empty" in net.state_dict()


class Passing(nn.Module):
    """Makes activations that nobody keeps, and constants of which the recorder sees no op."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.made: list[weakref.ref[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        for step in range(20):
            y = x * self.weight
            self.made.append(weakref.ref(y))
            x = y.detach()
            del y  # its identity is free now
            x = x + torch.from_numpy(np.full(3, float(step)))
        return x


def test_no_activation_outlives_its_use_and_none_is_taken_for_another() -> None:
    model, x = Passing(), torch.randn(3, dtype=torch.float64)
    recording = record(model, x)
    assert not any(ref() is not None for ref in model.made)
    assert {str(node.target) for node in recording.values} > {"weight"}
    assert not any(node.meta["activation"] for node in recording.values if node.op != "get_attr")
    assert sum(str(node.target).startswith("_constant") for node in recording.graph.nodes) == 20
    lifted = [node.args[0] for node in ops(recording, "lift_fresh")]
    assert [node.target for node in lifted] == [f"_constant_{step}" for step in range(20)]
    assert [tuple(value.shape) for value in record(model, x, copies=True).values.values()].count((3,)) > 60


def test_what_is_given_to_weights_is_looked_at() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    products = [
        node for node in record(model, torch.rand(4, 3)).graph.nodes if node.target is torch.ops.aten.addmm.default
    ]
    assert [node.meta["silent"] for node in products] == [False, True]


def test_the_bytes_that_a_run_computes_leave_out_weights_and_views() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Unflatten(1, (2, 1)), nn.ReLU())
    assert computed_bytes(record(model, torch.randn(5, 3))) == 2 * 5 * 2 * 4
    assert computed_bytes(record(model.double(), torch.randn(5, 3).double())) == 2 * 5 * 2 * 8


class OfWeights(nn.Module):
    """Scales its input by a derivative of a convolution by its weights alone."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Conv1d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        (change,) = torch.autograd.grad(self.kernel(x).sin().sum(), self.kernel.weight)
        return x * change.sum()


def test_ops_may_return_none_first() -> None:
    recording = record(OfWeights(), torch.randn(3, 2, 7))
    (backward,) = (node for node in recording.graph.nodes if "convolution_backward" in str(node.target))
    assert [part.args for part in backward.users] == [(backward, 1)]
