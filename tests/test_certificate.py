"""Every check of the certificate can fail, and only for its own reason."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.branch import Branch
from surgeon.certificate import HOOKS, Architecture, buffers_written_by_training, certify, versions
from surgeon.surgery.insert import attach
from surgeon.types import Site
from tests import nets


class Net(nn.Module):
    """Two layers, a normalisation with running statistics, and a buffer that no forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.tensor([2.0, float("nan")]))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.activation = torch.relu

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.activation(self.norm(self.first(x)))) * self.scale[0]


class OtherLinear(nn.Linear):
    pass


def run(model: nn.Module) -> Any:
    return model(torch.linspace(-1, 1, 15).reshape(5, 3))


def two() -> tuple[Net, Net]:
    net = Net()
    return net, copy.deepcopy(net)


def test_other_weights_are_no_difference() -> None:
    before, after = two()
    with torch.no_grad():
        for parameter in after.parameters():
            parameter.normal_()
    certificate = certify(before, after, run)
    assert certificate.identical
    assert all(certificate.checks.values())
    assert certificate.differences == ()
    assert certificate.buffers_written == {}
    assert len(set(certificate.details["graph_sha256"])) == 1
    json.dumps(certificate.to_data())


def reorder(net: Any) -> None:
    net._modules = OrderedDict([("second", net.second), ("first", net.first), ("norm", net.norm)])


def add_key(net: Any) -> None:
    net.second.register_parameter("extra", nn.Parameter(torch.ones(1)))


def remove_key(net: Any) -> None:
    net.second.bias = None


def widen(net: Any) -> None:
    net.first.weight = nn.Parameter(torch.zeros(4, 5))


def halve(net: Any) -> None:
    net.first.weight = nn.Parameter(net.first.weight.detach().half())


def other_class(net: Any) -> None:
    net.first.__class__ = OtherLinear


def freeze(net: Any) -> None:
    net.first.weight.requires_grad_(False)


def hook(net: Any) -> None:
    net.first.register_forward_hook(lambda *_: None)


def change_buffer(net: Any) -> None:
    net.scale[0] = 3.0


def remove_hidden(net: Any) -> None:
    del net.hidden


def add_hidden(net: Any) -> None:
    net.register_buffer("another", torch.ones(1), persistent=False)


def branch(net: Any) -> None:
    site = Site("first", "input", "linear", "", {"trivial": 3}, {"trivial": 4}, (4, 3))
    attach(net.first, site, Branch((4, 3), net.first.weight, "drop", None))


def other_activation(net: Any) -> None:
    net.activation = torch.tanh


@pytest.mark.parametrize(
    ("change", "check", "words"),
    [
        (add_key, "state-dict keys and order", "key second.extra was added"),
        (remove_key, "state-dict keys and order", "key second.bias is missing"),
        (reorder, "state-dict keys and order", "the same keys in another order"),
        (widen, "shapes", r"shape of first.weight: expected (4, 3), got (4, 5)"),
        (halve, "dtypes", "expected torch.float32, got torch.float16"),
        (other_class, "module classes", "OtherLinear"),
        (freeze, "trainable flags", "first.weight: expected True, got False"),
        (hook, "forward hooks", "number of hooks of first: expected 0, got 1"),
        (change_buffer, "buffers", "buffer scale changed"),
        (remove_hidden, "buffers", "presence of buffer hidden"),
        (add_hidden, "buffers", "presence of buffer another"),
        (branch, "no branch left", "branch at first.input"),
    ],
)
def test_each_check_can_fail(change: Callable[[Any], None], check: str, words: str) -> None:
    before, after = two()
    change(after)
    certificate = certify(before, after)
    assert not certificate.identical
    assert not certificate.checks[check]
    assert any(words in difference for difference in certificate.differences)
    related = {"state-dict keys and order": {"shapes", "dtypes", "trainable flags"}}
    if change is not branch:
        others = {name for name, holds in certificate.checks.items() if not holds} - {check}
        assert others <= related.get(check, set())


def test_another_computation_is_seen_by_the_graph_alone() -> None:
    before, after = two()
    other_activation(after)
    assert certify(before, after).identical
    certificate = certify(before, after, run)
    assert [name for name, holds in certificate.checks.items() if not holds] == ["recorded graph"]
    assert "relu" in certificate.differences[0]
    assert len(set(certificate.details["graph_sha256"])) == 2


def test_running_statistics_are_listed_with_their_largest_change() -> None:
    before, after = two()
    with torch.no_grad():
        after.norm.running_mean[1] += 0.5
        after.norm.num_batches_tracked += 3
    certificate = certify(before, after, run)
    assert certificate.identical
    assert certificate.buffers_written["norm.running_mean"] == pytest.approx(0.5)
    assert certificate.buffers_written["norm.num_batches_tracked"] == 3.0
    assert not certify(before, after).checks["buffers"]


def test_the_probing_forward_changes_nothing() -> None:
    net = Net().eval()
    state, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    written = buffers_written_by_training(net, run)
    assert set(written) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert not net.training
    assert all(torch.equal(value.nan_to_num(), state[key].nan_to_num()) for key, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_architecture_copies_the_buffers() -> None:
    net = Net()
    architecture = Architecture.of(net)
    net.hidden.zero_()
    assert torch.equal(architecture.buffers["hidden"], torch.ones(2))


ADD_HOOK: dict[str, Callable[[nn.Module], Any]] = {
    "_forward_hooks": lambda m: m.register_forward_hook(lambda *_: None),
    "_forward_pre_hooks": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "_backward_hooks": lambda m: m.register_full_backward_hook(lambda *_: None),
    "_backward_pre_hooks": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
    "_state_dict_hooks": lambda m: m._register_state_dict_hook(lambda *_: None),
    "_state_dict_pre_hooks": lambda m: m.register_state_dict_pre_hook(lambda *_: None),
    "_load_state_dict_pre_hooks": lambda m: m.register_load_state_dict_pre_hook(lambda *_: None),
    "_load_state_dict_post_hooks": lambda m: m.register_load_state_dict_post_hook(lambda *_: None),
    "of a parameter": lambda m: next(m.parameters()).register_hook(lambda gradient: None),
}


@pytest.mark.parametrize("kind", ADD_HOOK)
def test_a_hook_of_any_kind_is_a_difference(kind: str) -> None:
    before, after = two()
    ADD_HOOK[kind](after.second)
    certificate = certify(before, after)
    assert [name for name, holds in certificate.checks.items() if not holds] == ["forward hooks"]
    assert certificate.differences == ("number of hooks of second: expected 0, got 1",)


def test_every_kind_of_hook_is_tried() -> None:
    assert {*HOOKS, "of a parameter"} == ADD_HOOK.keys()
    own = {name for name in vars(nn.Module()) if name.endswith("_hooks") and "non_persistent" not in name}
    assert own == set(HOOKS)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_became_non_finite_are_a_difference(bad: float) -> None:
    before, after = two()
    with torch.no_grad():
        after.first.bias[1] = bad
    certificate = certify(before, after, run)
    assert not certificate.checks["finite weights"]
    assert "parameter first.bias holds NaN or infinity" in certificate.differences
    assert certify(copy.deepcopy(after), after, run).checks["finite weights"]


def test_a_forward_that_fails_is_a_difference_and_no_exception() -> None:
    before, after = two()
    after.activation = None  # type: ignore[assignment]
    certificate = certify(before, after, run)
    assert [name for name, holds in certificate.checks.items() if not holds] == ["recorded graph"]
    assert certificate.differences[0].startswith("the forward of the result fails (TypeError: ")


@pytest.mark.e3nn
def test_a_deep_copy_of_tensor_products_equals_the_stripped_original() -> None:
    net = nets.Products()
    y = nets.attributes(6, torch.float32)
    inputs = torch.randn(6, net.full.irreps_in1.dim), y
    twin = copy.deepcopy(net)
    relaxation = surgeon.relax(net, surgeon.find(net, "O3", *inputs), init_scale=1.0)
    surgeon.strip(relaxation)
    certificate = surgeon.certify(twin, net, lambda model: model(*inputs))
    assert certificate.differences == ()
    assert certificate.identical
    net.register_buffer("_tensor_constant9", torch.ones(1))
    assert not surgeon.certify(twin, net).checks["state-dict keys and order"]


def test_versions_of_the_packages_that_define_a_model_are_recorded() -> None:
    from importlib.metadata import version

    from rich.text import Text  # any class of an installed package does

    class Foreign(nn.Module):
        pass

    Foreign.__module__ = Text.__module__
    assert "rich" not in versions()
    assert "rich" not in versions(nn.Linear(1, 1))
    assert versions(nn.Sequential(Foreign()))["rich"] == version("rich")
