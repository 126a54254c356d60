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
from surgeon.algebra.representations.build import representation_from
from surgeon.editing.branch import Branch
from surgeon.editing.insert import attach
from surgeon.plan import FUNCTION_CHECK, GRAPH_CHECK, Certificate, Site
from surgeon.proof.architecture import CHECKS, CONSTANTS_CHECK, FORM_CHECKS, Architecture, written_by_running
from surgeon.proof.certify import certify
from surgeon.support.attributes import HOOKS
from surgeon.support.versions import versions
from tests import nets


class Net(nn.Module):
    """Two layers, a normalisation with running statistics, and a buffer that no forward writes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.tensor([2.0, float("nan")]))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.drop, self.cutoff, self.shift = nn.Dropout(0.1), 5.0, torch.tensor([0.5])
        self.sizes = {"hidden": (4, [2])}
        self._activation, self._units, self.calls, self.last = torch.relu, [torch.tensor(3.0)], 0, None

    def forward(self, x: Tensor) -> Tensor:
        self.calls, hidden = self.calls + 1, self.drop(self._activation(self.norm(self.first(x))))
        self.last = hidden.detach() * self._units[0]
        return self.second(self.last) * self.scale[0]


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
    assert certificate.passed
    assert all(certificate.checks.values())
    assert certificate.differences == ()
    assert certificate.buffers_written == {}
    assert len(set(certificate.details["graph_sha256"])) == 1
    json.dumps(certificate.to_data())


def reorder(net: Any) -> None:
    net._modules = OrderedDict(reversed(net._modules.items()))


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
    site = Site(
        "first", "input", "linear", "", *(representation_from("SO3", {"trivial": size}) for size in (3, 4)), (4, 3)
    )
    attach(net.first, site, Branch((4, 3), net.first.weight, "drop", None))


def nan_in_weight(net: Any) -> None:
    net.first.bias.data[1] = float("nan")


def nan_in_statistics(net: Any) -> None:
    net.norm.running_mean[0] = float("nan")


def negative_variance(net: Any) -> None:
    net.norm.running_var[2] = -0.5


def number(net: Any) -> None:
    net.cutoff = 1.0


def probability(net: Any) -> None:
    net.drop.p = 0.9


def plain_tensor(net: Any) -> None:
    net.shift = torch.tensor([0.75])


def nested(net: Any) -> None:
    net.sizes["hidden"][1][0] = 3


def removed_attribute(net: Any) -> None:
    del net.cutoff


def own_forward(net: Any) -> None:
    forward = net.first.forward
    net.first.forward = lambda x: forward(x)


def constant(net: Any) -> None:
    net._units = [torch.tensor(4.0)]


def other_activation(net: Any) -> None:
    net._activation = torch.tanh


EDITS: list[tuple[Callable[[Any], None], str, str]] = [
    (branch, "no branch left", "branch at first.input"),
    (add_key, "state-dict keys and order", "key second.extra was added"),
    (remove_key, "state-dict keys and order", "key second.bias is missing"),
    (reorder, "state-dict keys and order", "the same keys in another order"),
    (widen, "shapes", r"shape of first.weight: expected (4, 3), got (4, 5)"),
    (halve, "dtypes", "expected torch.float32, got torch.float16"),
    (other_class, "module classes", "OtherLinear"),
    (freeze, "trainable flags", "first.weight: expected True, got False"),
    (
        hook,
        "hooks",
        "hooks of first: expected none, got forward_hook tests.proof.test_architecture.hook.<locals>.<lambda>",
    ),
    (number, "attributes", "attribute cutoff: expected 5.0, got 1.0"),
    (probability, "attributes", "attribute drop.p: expected 0.1, got 0.9"),
    (plain_tensor, "attributes", "attribute shift: expected tensor((1,), torch.float32"),
    (nested, "attributes", "attribute sizes: expected dict(tuple('hidden', tuple(4, list(2)))), got"),
    (removed_attribute, "attributes", "attribute cutoff: expected 5.0, got nothing"),
    (own_forward, "attributes", "attribute first.forward: expected nothing, got"),
    (nan_in_weight, "finite weights and buffers", "first.bias holds NaN or infinity"),
    (nan_in_statistics, "finite weights and buffers", "norm.running_mean holds NaN or infinity"),
    (negative_variance, "running variances", "norm.running_var is a variance and negative"),
    (change_buffer, "buffers", "buffer scale changed"),
    (remove_hidden, "buffers", "presence of buffer hidden"),
    (add_hidden, "buffers", "presence of buffer another"),
    (other_activation, GRAPH_CHECK, "relu"),
    (constant, CONSTANTS_CHECK, "a constant that aten.mul.Tensor in the model reads has other values"),
]
ALSO: dict[str, set[str]] = {
    "no branch left": set(FORM_CHECKS),
    "state-dict keys and order": {"shapes", "dtypes", "trainable flags", "attributes"},
    "shapes": {"attributes"},
}
"""Checks that look at the same tensors: an added key has a shape, too."""


@pytest.mark.parametrize(("change", "check", "words"), EDITS, ids=[change.__name__ for change, _, _ in EDITS])
def test_each_check_can_fail_alone(change: Callable[[Any], None], check: str, words: str) -> None:
    before, after = two()
    change(after)
    with_run = check in (GRAPH_CHECK, CONSTANTS_CHECK) or "statistics" in change.__name__ or "variance" in words
    certificate = certify(before, after, run if with_run else None)
    assert not certificate.passed
    assert certificate.grade is None
    failed = {name for name, holds in certificate.checks.items() if not holds}
    assert check in failed
    assert failed <= {check} | ALSO.get(check, set())
    assert any(words in difference for difference in certificate.differences), certificate.differences


def test_every_check_is_made_to_fail() -> None:
    net = Net()
    assert {check for _, check, _ in EDITS} == set(CHECKS) == certify(net, net, run).checks.keys()
    assert certify(net, net).checks.keys() == set(FORM_CHECKS)


def test_the_grade_says_what_was_looked_at() -> None:
    before, after = two()
    assert certify(before, after).grade == "same form"
    assert certify(before, after, run).grade == "same graph"
    other_activation(after)
    assert certify(before, after).grade == "same form"
    assert certify(before, after, run).grade is None
    assert Certificate({}).grade is None
    assert Certificate({"shapes": True, GRAPH_CHECK: True, FUNCTION_CHECK: True}).grade == "same function"
    assert Certificate({"shapes": False, GRAPH_CHECK: True, FUNCTION_CHECK: True}).grade is None


def test_what_a_forward_writes_is_no_attribute_of_the_architecture() -> None:
    before, after = two()
    run(after)
    assert not certify(before, after).checks["attributes"]
    certificate = certify(before, after, run)
    assert certificate.passed, certificate.differences
    assert certificate.details["attributes_written"] == ["calls", "last"]
    number(after)
    assert not certify(before, after, run).passed


def test_inputs_drawn_at_random_are_no_constants_of_the_model() -> None:
    before, after = two()
    generator = torch.Generator().manual_seed(0)
    drawn = lambda model: model(torch.randn(5, 3, generator=generator))  # noqa: E731
    assert certify(before, after, drawn).passed
    constant(after)
    assert not certify(before, after, drawn).checks[CONSTANTS_CHECK]


def test_two_hooks_of_one_name_are_told_apart() -> None:
    def hooked(net: Any, factor: float) -> None:
        net.first.register_forward_hook(lambda module, inputs, output: output * factor if module.training else output)

    before, after = two()
    hooked(before, 1.0)
    hooked(after, 1.0)
    assert certify(before, after, run).passed
    before, after = two()
    hooked(before, 1.0)
    hooked(after, 3.0)
    assert [name for name, holds in certify(before, after, run).checks.items() if not holds] == ["hooks"]


def test_hooks_that_differ_by_a_number() -> None:
    before, after = two()
    before.first.register_forward_hook(lambda module, inputs, output: output if module.training else output * 1.0)
    after.first.register_forward_hook(lambda module, inputs, output: output if module.training else output * 2.0)
    assert not certify(before, after).checks["hooks"]


def test_running_statistics_are_listed_with_their_largest_change() -> None:
    before, after = two()
    with torch.no_grad():
        after.norm.running_mean[1] += 0.5
        after.norm.num_batches_tracked += 3
    certificate = certify(before, after, run)
    assert certificate.passed
    assert certificate.buffers_written["norm.running_mean"] == pytest.approx(0.5)
    assert certificate.buffers_written["norm.num_batches_tracked"] == 3.0
    assert not certify(before, after).checks["buffers"]


def test_the_probing_forward_changes_nothing() -> None:
    net = Net().eval()
    state, random_state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    written = written_by_running(net, run)
    assert set(written.buffers) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
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
    assert [name for name, holds in certificate.checks.items() if not holds] == ["hooks"]
    assert certificate.differences[0].startswith("hooks of second: expected none, got ")


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
    assert not certificate.checks["finite weights and buffers"]
    assert "first.bias holds NaN or infinity, unlike in the original" in certificate.differences
    assert certify(copy.deepcopy(after), after, run).checks["finite weights and buffers"]


def test_a_forward_that_fails_is_a_difference_and_no_exception() -> None:
    before, after = two()
    after._activation = None  # type: ignore[assignment]
    certificate = certify(before, after, run)
    assert [name for name, holds in certificate.checks.items() if not holds] == ["recorded graph"]
    assert certificate.differences[0].startswith("the forward of the result fails (TypeError: ")


@pytest.mark.e3nn
def test_a_deep_copy_of_tensor_products_equals_the_stripped_original() -> None:
    net = nets.Products()
    y = nets.attributes(6, torch.float32)
    inputs = torch.randn(6, net.full.irreps_in1.dim), y
    twin = copy.deepcopy(net)
    relaxation = surgeon.relax(net, surgeon.find(net, "O3", *inputs), dense=True, init_scale=1.0)
    surgeon.strip(relaxation)
    certificate = surgeon.certify(twin, net, lambda model: model(*inputs))
    assert certificate.differences == ()
    assert certificate.passed
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
