"""Adapters propose, one recorded run disposes: lies, bypasses and unused layers are skipped with the reason."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.branch import branches_of
from surgeon.errors import GroupError, PlanError
from tests import nets
from tests.nets import o3

pytestmark = pytest.mark.e3nn

HIDDEN = "2x0e+2x1o"


class Honest(nn.Module):
    """A good layer, and the one under test after it."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.good = o3.Linear(HIDDEN, HIDDEN)
        self.suspect = second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.good(x)
        return h, self.suspect(h)


class Scrambled(o3.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(-1)


class Nonlinear(o3.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        return out * out[..., :1].sigmoid()


class Normalised(o3.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.weight.norm()


class Failing(o3.Linear):
    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if torch.is_grad_enabled():
            return out
        raise RuntimeError("works with gradients only")


class PairOutput(o3.Linear):
    def forward(self, x: Tensor) -> Any:
        return (super().forward(x),)


class TakesFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = PairOutput(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


ONE_ROW = {"shape": [1, 8], "given": {"mapping": {}}}


def find(second: nn.Module, group: str = "O3") -> tuple[surgeon.Plan, dict[str, str]]:
    plan = surgeon.find(Honest(second), group, torch.randn(4, 8))
    assert plan.sites[0].name == "good"
    assert plan.sites[0].verified
    assert plan.sites[0].fold == {"parameters": ["weight"], **ONE_ROW}
    return plan, {entry.name: entry.reason for entry in plan.skipped}


def frozen() -> nn.Module:
    return o3.Linear(HIDDEN, HIDDEN).requires_grad_(False)


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [
        (lambda: Scrambled(HIDDEN, HIDDEN), "suspect", "not equivariant as labelled"),
        (lambda: Nonlinear(HIDDEN, HIDDEN), "suspect", "not linear"),
        (lambda: Failing(HIDDEN, HIDDEN), "suspect", "works with gradients only"),
        (TakesFirst, "suspect.inner", "could not be checked"),
        (frozen, "suspect", "frozen"),
        (lambda: o3.Linear(HIDDEN, "3x2e"), "suspect", "share no irrep"),
        (lambda: o3.TensorSquare(HIDDEN, "2x0e+1o"), "suspect", "quadratic"),
    ],
)
def test_what_is_no_equivariant_linear_op_is_skipped(make: Callable[[], nn.Module], name: str, words: str) -> None:
    plan, skipped = find(make())
    assert words in skipped[name]
    assert [site.name for site in plan.sites] == ["good"]


def test_a_layer_that_tells_the_truth_is_not_skipped() -> None:
    plan, skipped = find(o3.Linear(HIDDEN, HIDDEN))
    assert [site.name for site in plan.sites] == ["good", "suspect"]
    assert skipped == {}
    assert all(site.residual is not None and site.residual < 1e-5 for site in plan.sites)


def test_a_layer_that_is_not_linear_in_its_weights_is_relaxed_but_not_folded() -> None:
    plan, _ = find(Normalised(HIDDEN, HIDDEN))
    site = plan.sites[1]
    assert site.verified
    assert site.fold is None
    assert site.fold_note.startswith("not foldable: its linear map is not linear in its weights")


def zeroed(layer: type[nn.Module]) -> nn.Module:
    op = layer(HIDDEN, HIDDEN)
    nn.init.zeros_(op.weight)  # type: ignore[arg-type]
    return op


@pytest.mark.parametrize(("liar", "words"), [(Scrambled, "not equivariant as labelled"), (Nonlinear, "not linear")])
def test_a_layer_that_starts_at_zero_is_judged_with_other_weights(liar: type[nn.Module], words: str) -> None:
    op = zeroed(o3.Linear)
    plan, _ = find(op)
    assert plan.sites[1].fold == plan.sites[0].fold
    assert not any(parameter.any() for parameter in op.parameters())
    plan, skipped = find(zeroed(liar))
    assert words in skipped["suspect"]


class Silent(o3.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * super().forward(x)


class NoRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Scrambled(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x[:0]).sum()


@pytest.mark.parametrize(
    ("make", "name", "words"),
    [(lambda: Silent(HIDDEN, HIDDEN), "suspect", "output is 0"), (NoRows, "suspect.inner", "no rows")],
)
def test_what_no_number_went_through_is_not_exercised(make: Callable[[], nn.Module], name: str, words: str) -> None:
    plan, skipped = find(make())
    assert skipped[name].startswith("not exercised")
    assert words in skipped[name]
    assert [site.name for site in plan.sites] == ["good"]


class Wrong1e(o3.Linear):
    """Labels its output 1e, and puts out polar vectors."""

    def __init__(self) -> None:
        super().__init__("2x1o", "2x1o")
        self.irreps_out = o3.Irreps("2x1e")


def test_a_lying_label_is_caught_under_o3_and_holds_under_so3() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.good, self.liar = o3.Linear("2x1o", "2x1o"), Wrong1e()

        def forward(self, x: Tensor) -> Tensor:
            return self.liar(self.good(x))

    x = torch.randn(4, 6)
    skipped = {entry.name: entry.reason for entry in surgeon.find(Model(), "O3", x).skipped}
    assert "not equivariant as labelled (2x1o (mul_ir) -> 2x1e (mul_ir))" in skipped["liar"]
    assert [site.name for site in surgeon.find(Model(), "SO3", x).sites] == ["good", "liar"]


class Bypass(nn.Module):
    """Reads its child's weight; ``how`` says whether it also calls the child."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.good, self.child, self.how = o3.Linear("4x1o", "4x1o"), o3.Linear("4x1o", "4x1o"), how

    def forward(self, x: Tensor) -> Tensor:
        x = self.good(x)
        if self.how == "call only":
            return self.child(x)
        by_hand = torch.einsum("bui,uv->bvi", x.reshape(-1, 4, 3), self.child.weight.view(4, 4)).reshape(-1, 12)
        return by_hand + self.child(x) if self.how == "both" else by_hand


@pytest.mark.parametrize("how", ["read only", "both"])
def test_a_bypassed_layer_is_skipped_with_that_reason(how: str) -> None:
    plan = surgeon.find(Bypass(how), "O3", torch.randn(3, 12))
    assert [site.name for site in plan.sites] == ["good"]
    (entry,) = plan.skipped
    assert entry.name == "child"
    assert "used directly by the model itself, where a branch cannot act" in entry.reason


def test_without_the_bypass_it_is_a_site() -> None:
    plan = surgeon.find(Bypass("call only"), "O3", torch.randn(3, 12))
    assert [site.name for site in plan.sites] == ["good", "child"]


class Partial(nn.Module):
    """Layers that are not called, get their weights from elsewhere, or are not equivariant layers at all."""

    def __init__(self) -> None:
        super().__init__()
        self.good = o3.Linear(HIDDEN, HIDDEN)
        self.unused = o3.Linear(HIDDEN, HIDDEN)
        self.external = o3.FullyConnectedTensorProduct(
            "2x0e", "1o", "2x1o", internal_weights=False, shared_weights=False
        )
        self.overridden = o3.Linear("2x1o", "2x1o", internal_weights=False, shared_weights=True)
        self.invariant = o3.Linear("2x0e", "3x0e")
        self.weights = nn.Linear(3, 4)
        self.free = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = self.good(x) * self.free
        numbers = self.weights(self.invariant(x[:, :2]))
        return self.overridden(x[:, 2:], numbers.mean(0)) + self.external(x[:, :2], x[:, 2:5], numbers)


def test_every_module_with_weights_is_a_site_or_explained() -> None:
    model = Partial()
    plan = surgeon.find(model, "O3", torch.randn(4, 8))
    reasons = {entry.name: entry.reason for entry in plan.skipped}
    assert [site.name for site in plan.sites] == ["good"]
    assert reasons["unused"] == "never called in the recorded forward"
    assert "supplied from elsewhere" in reasons["external"]
    assert "supplied from elsewhere" in reasons["overridden"]
    assert "invariant to invariant" in reasons["invariant"]
    assert "no adapter knows its op" in reasons["weights"]
    assert "it only scales an activation" in reasons[""]
    explained = {*reasons, "good"}
    for name, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            assert name in explained


class Tied(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = o3.Linear(HIDDEN, HIDDEN), o3.Linear(HIDDEN, HIDDEN)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Linears(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.first, self.second = o3.Linear("2x0e+2x1o", "2x0e+2x1o"), o3.Linear("2x0e+2x1o", "2x0e+2x1o")
        if how == "one parameter":
            self.second.weight = self.first.weight
        elif how == "one memory":
            self.second.weight = nn.Parameter(self.first.weight.detach())
        elif how == "side by side":
            memory = torch.randn(2, self.first.weight.numel())
            self.first.weight, self.second.weight = nn.Parameter(memory[0]), nn.Parameter(memory[1])
        elif how == "one module":
            self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("inputs", [(), (torch.ones(4, 8),)])
@pytest.mark.parametrize("how", ["one parameter", "one memory", "side by side", "one module"])
def test_ties_are_seen_without_a_run(how: str, inputs: tuple[Tensor, ...]) -> None:
    model, x = Linears(how), torch.randn(4, 8)
    plan = surgeon.find(model, "O3", *inputs)
    tied = how in ("one parameter", "one memory")
    assert {site.fold is None for site in plan.sites} == {tied}
    assert all(("tied to" in site.fold_note) == tied for site in plan.sites)
    relaxation = surgeon.relax(model, plan, dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    with torch.no_grad(), relaxation.clean():
        clean = model(x)
    surgeon.strip(model)
    assert torch.allclose(model(x), clean, rtol=1e-4, atol=1e-5)


def test_a_plan_that_folds_into_shared_weights_is_refused() -> None:
    plan, tied = surgeon.find(Linears("own"), "O3"), Linears("one parameter")
    with pytest.raises(PlanError, match="tied to second"):
        surgeon.relax(tied, plan, dense=True, mode="fold")
    assert not branches_of(tied)
    assert surgeon.relax(Linears("own"), plan, dense=True, mode="fold").branches


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_relaxed_but_not_folded(tied: bool) -> None:
    model, x = Tied(tied), torch.randn(4, 8)
    plan = surgeon.find(model, "O3", x)
    assert [site.name for site in plan.sites] == ["first", "second"]
    assert [site.fold is None for site in plan.sites] == [tied, tied]
    assert ("tied to second" in plan.sites[0].fold_note) == tied
    relaxation = surgeon.relax(model, plan, dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    with relaxation.clean():
        clean = model(x).detach()
    surgeon.strip(relaxation)
    assert torch.allclose(model(x).detach(), clean, atol=1e-5)


def test_the_gradient_inside_a_forward_is_no_bypass() -> None:
    net, inputs = nets.build("forces")
    plan = surgeon.find(net, "O3", *inputs)
    assert [site.name for site in plan.sites] == ["mix", "pair"]
    assert plan.skipped == ()


def test_without_inputs_nothing_is_verified() -> None:
    net, inputs = nets.build("products")
    plan = surgeon.find(net, "O3")
    assert len(plan.sites) == 7
    assert all(not site.verified and site.residual is None and site.calls is None for site in plan.sites)
    assert {site.evidence for site in plan.sites} == {"annotation only, not verified"}
    assert "not verified" in plan.notes[0]
    assert all(site.fold is None and "not known without a sample batch" in site.fold_note for site in plan.sites)
    with_inputs = surgeon.find(net, "O3", *inputs)
    assert with_inputs.notes == ()
    assert all(site.verified and site.fold for site in with_inputs.sites)


def test_a_forward_of_the_callers_own_is_run() -> None:
    net, (x, y) = nets.build("products")
    for plan in (
        surgeon.find(net, "O3", {"x": x, "y": y}, forward=lambda model, batch: model(batch["x"], batch["y"])),
        surgeon.find(net, "O3", forward=lambda model: model(x, y)),
    ):
        assert all(site.verified for site in plan.sites)


def test_a_batch_of_one_row_proves_no_constant() -> None:
    net, (x, y) = nets.build("products")
    plan = surgeon.find(net, "O3", x[:1], y[:1])
    assert all(site.fold is None for site in plan.sites)


def test_a_scalar_that_varies_in_a_further_call_is_no_fold_scalar() -> None:
    net, (x, y) = nets.build("products")
    other = y.clone()
    other[:, 1] = 0.2
    plan = surgeon.find(net, "O3", x, y)
    assert {site.fold_while for site in plan.sites} == {"scalar 0 of y is 1 and scalar 1 of y is 0.7"}
    marks = nets.state(net)
    plan = surgeon.find(net, "O3", x, y, further=[(x, y), (x, other)])
    assert {site.fold_while for site in plan.sites} == {"scalar 0 of y is 1"}
    assert {site.calls for site in plan.sites} == {1}
    assert nets.state(net) == marks
    other[:, :2] = torch.rand(len(other), 2)
    plan = surgeon.find(net, "O3", {"x": x, "y": y}, forward=lambda m, b: m(**b), further=[({"x": x, "y": other},)])
    assert all("does the same in every row" in site.fold_note for site in plan.sites)


def test_group_and_emptiness_are_judged() -> None:
    net, inputs = nets.build("linears")
    with pytest.raises(GroupError, match="C<n>, D<n>, E3, O2, O3, OCTA, OCTAH, SCALE2, SE3, SO2, SO3"):
        surgeon.find(net, "SO13", *inputs)
    with pytest.raises(PlanError, match="nothing to relax.*no adapter knows its op"):
        surgeon.find(nn.Linear(3, 3), "O3", torch.randn(2, 3))
    with pytest.raises(PlanError, match="no trainable parameters"):
        surgeon.find(nn.ReLU(), "O3", torch.randn(2, 3))
    with pytest.raises(PlanError, match="nothing to relax.*never called"):
        surgeon.find(net, "O3", inputs[0], forward=lambda model, x: x)
    surgeon.relax(net, surgeon.find(net, parse_group("SE3"), *inputs), dense=True)
    with pytest.raises(PlanError, match="strip it first"):
        surgeon.find(net, "O3", *inputs)


def test_coverage_is_noted() -> None:
    net, inputs = nets.build("linears")
    first, second = surgeon.find(net, "O3", *inputs).sites
    assert first.fold_note == ""
    assert second.fold_note == "its weights reach 10 of 19 intertwiner dimensions"


class Counting(o3.Linear):
    """Writes a running mean whenever it runs in training mode, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__(HIDDEN, HIDDEN)
        self.register_buffer("running", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.running.mul_(0.9).add_(x.detach().mean(0))
            torch.rand(3)
        return super().forward(x)


def test_finding_leaves_no_trace() -> None:
    model = nn.Sequential(o3.Linear(HIDDEN, HIDDEN), Counting(), nn.Dropout(0.5), o3.Linear(HIDDEN, HIDDEN))
    model.eval()[1].train()
    calls = []
    handle = model[1].register_forward_pre_hook(lambda module, args: calls.append(1))
    x = torch.randn(4, 8, requires_grad=True)
    before, marks, x_before = nets.state(model), nets.traces(model), x.detach().clone()
    random_state = torch.get_rng_state()
    plan = surgeon.find(model, "O3", x)
    assert len(calls) >= 1
    assert [site.name for site in plan.sites] == ["0", "1", "3"]
    assert nets.state(model) == before
    assert nets.traces(model) == marks
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, x_before)
    assert x.grad is None
    assert all(parameter.grad is None for parameter in model.parameters())
    model(x)
    assert nets.state(model) != before
    handle.remove()


class KeptInEvalMode(o3.Linear):
    """Registers a tensor in eval mode and drops it in training mode, as some libraries of steerable convolutions do."""

    def train(self, mode: bool = True) -> KeptInEvalMode:
        if mode:
            self._buffers.pop("kept", None)
        elif self.training:
            self.register_buffer("kept", self.weight.detach().clone())
        return super().train(mode)


def turned(g: Tensor, x: Tensor) -> Tensor:
    matrix: Tensor = o3.Irreps(HIDDEN).D_from_matrix(g.float())
    return x @ matrix.T.to(x)


@pytest.mark.parametrize("own", [True, False])
def test_what_a_layer_keeps_for_eval_mode_alone_is_left_to_it(own: bool) -> None:
    model = nn.Sequential(KeptInEvalMode(HIDDEN, HIDDEN)).train(own)
    before = nets.state(model)
    assert ("0.kept" in before) is not own
    plan = surgeon.find(model, "O3", torch.randn(4, 8), act=turned, act_output=turned)
    assert [site.name for site in plan.sites] == ["0"]
    assert nets.state(model) == before
    assert {module.training for module in model.modules()} == {own}


def test_a_decorated_forward_is_understood() -> None:
    class Decorated(o3.FullyConnectedTensorProduct):
        pass

    def twice(forward: Any) -> Any:
        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            return forward(*args, **kwargs)

        return wrapped

    Decorated.forward = twice(o3.FullyConnectedTensorProduct.forward)
    op = Decorated(HIDDEN, "0e+1o", HIDDEN)
    (site,) = surgeon.find(op, "O3", torch.randn(4, 8), torch.randn(4, 4)).sites
    assert site.argument == "x"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constants_that_were_made_in_float32_are_no_lie(dtype: torch.dtype) -> None:
    op = o3.FullyConnectedTensorProduct("2x1o+2e", "0e+1o+2e", "2x1o+2e+3o").to(dtype)
    (site,) = surgeon.find(op, "O3", torch.randn(4, 11, dtype=dtype), torch.randn(4, 9, dtype=dtype)).sites
    assert site.verified


def test_fifty_layers_are_fifty_sites() -> None:
    layers = [o3.Linear(HIDDEN, HIDDEN) for _ in range(50)]
    plan = surgeon.find(nn.Sequential(*layers), "O3", torch.randn(3, 8))
    assert [site.name for site in plan.sites] == [str(index) for index in range(50)]
    assert {site.calls for site in plan.sites} == {1}
    relaxation = surgeon.relax(nn.Sequential(*layers), plan, dense=True)
    assert len(relaxation.branches) == 50
