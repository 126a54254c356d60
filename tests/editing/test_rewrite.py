"""Branches on raw-parameter ops: in a traced forward, in a GraphModule, and in an exported program."""

from __future__ import annotations

import copy
import inspect
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import surgeon
from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.branch import Branch, branches_of
from surgeon.editing.insert import detach
from surgeon.editing.rewrite import install
from surgeon.errors import PlanError
from surgeon.finding.own_forward import NotTraceableError
from surgeon.finding.raw_ops import raw_ops, trace_complaint, trace_forward
from surgeon.plan import CHILD, Plan
from surgeon.testing.soundness import Model, check_plan
from tests.families.awkward.case import vectors
from tests.families.awkward.layouts import InsideForward, Untraceable
from tests.nets import default_dtype


def build(kind: str, tmp_path: Path) -> nn.Module:
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        module: nn.Module = (Untraceable if kind == "untraceable" else InsideForward)().eval()
    if kind in ("module", "untraceable"):
        return module
    if kind == "graph module":
        return fx.symbolic_trace(module)
    program = torch.export.export(module, (vectors(),))
    if kind == "file":
        torch.export.save(program, tmp_path / "net.pt2")
        program = torch.export.load(tmp_path / "net.pt2")
    return program.module()


KINDS = ("module", "untraceable", "graph module", "exported", "file")
both = pytest.mark.parametrize("kind", KINDS)
own = pytest.mark.parametrize("kind", KINDS[:2])


def plan_of(module: nn.Module) -> Plan:
    return surgeon.find(module, "SO3", vectors(), act=lambda g, x: x @ g.T, act_output=lambda g, y: y, adapters={})


def relaxed(kind: str, tmp_path: Path) -> nn.Module:
    module = build(kind, tmp_path)
    surgeon.relax(module, plan_of(module), dense=True, init_scale=1.0).set_theta(0.1)
    return module


@both
def test_sites_are_found_and_sound(kind: str, tmp_path: Path) -> None:
    module = build(kind, tmp_path)
    plan = plan_of(module)
    assert [site.key for site in plan.sites] == ["first", "second"]
    assert [site.parameters for site in plan.sites] == [("first",), ("second",)]
    symmetry = Symmetry(parse_group("SO3"), lambda g, x: x @ g.T, lambda g, y: y)
    check_plan(Model(module, (vectors(),), symmetry), plan)


@both
def test_stripping_leaves_nothing(kind: str, tmp_path: Path) -> None:
    module = build(kind, tmp_path)
    keys, names = list(module.state_dict()), [name for name, _ in module.named_modules()]
    output, text = module(vectors()), str(getattr(module, "graph", ""))
    surgeon.relax(module, plan_of(module), dense=True, init_scale=1.0).set_theta(0.1)
    assert not torch.allclose(module(vectors()), output)
    assert f"{CHILD}.first.weight" in module.state_dict()
    surgeon.strip(module)
    assert list(module.state_dict()) == keys
    assert [name for name, _ in module.named_modules()] == names
    assert "forward" not in vars(module)
    assert str(getattr(module, "graph", "")) == text
    assert torch.equal(module(vectors()), output)


@both
def test_a_copy_has_branches_of_its_own(kind: str, tmp_path: Path) -> None:
    module = relaxed(kind, tmp_path)
    output, twin = module(vectors()), copy.deepcopy(module)
    assert torch.equal(twin(vectors()), output)
    with torch.no_grad():
        branches_of(twin)["first"].weight.zero_()
    assert torch.equal(module(vectors()), output)
    assert not torch.equal(twin(vectors()), output)
    surgeon.strip(twin)
    assert torch.equal(module(vectors()), output)


@own
def test_a_pickled_module_keeps_its_branches(kind: str, tmp_path: Path) -> None:
    module, file = relaxed(kind, tmp_path), io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(vectors()), module(vectors()))


@both
def test_gradients_twice(kind: str, tmp_path: Path) -> None:
    module, x = relaxed(kind, tmp_path), vectors().requires_grad_()
    weight = branches_of(module)["first"].weight
    (force,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad(force.square().sum(), weight)
    assert gradient.any()


class Parts(nn.Module):
    """The forms a contraction comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(4, 4))
        self.scale = nn.Parameter(torch.randn(4, 1))
        self.child = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a.T @ x
        x = torch.matmul(self.a * 2.0, x)
        x = self.scale * x
        return functional.linear(x.transpose(1, 2), self.child.weight).transpose(1, 2)


def test_contractions_with_parameters_are_listed() -> None:
    net = Parts()
    found = [(op.node, op.parameters) for op in raw_ops(trace_forward(net), net)]
    assert found == [("matmul", ("a",)), ("matmul_1", ("a",)), ("linear", ("child.weight",))]


def test_one_parameter_in_two_ops_makes_two_sites() -> None:
    class Gated(Parts):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a.T @ x
            x = x * torch.tanh(x.square().sum(-1, keepdim=True))
            return (self.a @ x).square().sum(-1)

    with default_dtype(torch.float64):
        gated = Gated()
    assert [site.key for site in plan_of(gated).sites] == ["a", "a_1"]


class Dropping(InsideForward):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.dropout(x, 0.5, self.training))


class Optional(InsideForward):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x) if mask is None else x.square().sum(-1) * mask


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (InsideForward, ""),
        (Dropping, "differs from eager in (training|eval) mode"),
        (Optional, "fails with .* where eager runs|differs from eager"),
    ],
)
def test_a_trace_has_to_compute_what_eager_does(make: Callable[[], nn.Module], complaint: str) -> None:
    with default_dtype(torch.float64):
        net = make()
    found = trace_complaint(net, trace_forward(net), [{"x": vectors()}])
    assert bool(found) == bool(complaint)
    assert re.search(complaint, found)


def test_what_cannot_be_traced_says_so() -> None:
    with pytest.raises(NotTraceableError, match="torch.fx cannot trace the forward of Untraceable"):
        trace_forward(Untraceable())
    with pytest.raises(NotTraceableError, match="TorchScript"):
        trace_forward(torch.jit.script(nn.Linear(2, 2)))


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    plan = plan_of(build("module", tmp_path))
    net = nn.Linear(3, 3).double()
    with pytest.raises(PlanError, match="made for another model"):
        surgeon.relax(net, plan, dense=True)
    assert CHILD not in dict(net.named_children())
    assert "forward" not in vars(net)


class Chain(InsideForward):
    """Two ops, of which the second reads the result of the first directly."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh((x @ self.a) @ self.b)

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.randn(3, 3, dtype=torch.float64)) for _ in range(2))


def branch() -> Branch:
    made = Branch((3, 3), torch.zeros((), dtype=torch.float64), "drop", None)
    nn.init.normal_(made.weight)
    made.theta.fill_(0.1)
    return made


def nodes_of(owner: nn.Module) -> list[tuple[str, str, dict[str, object]]]:
    graph = getattr(owner, "graph", None) or fx.Graph()
    return [(node.name, str(node.args), dict(node.meta)) for node in graph.nodes]


@pytest.mark.parametrize("graph_module", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_in_a_plan_does_not_matter(reverse: bool, graph_module: bool) -> None:
    net, x, first, second = Chain(), torch.randn(4, 3, dtype=torch.float64), branch(), branch()
    owner = fx.symbolic_trace(net) if graph_module else net
    nodes = [op.place for op in raw_ops(trace_forward(owner), owner)]
    pairs = list(zip(nodes, (("a", first), ("b", second)), strict=True))
    before = nodes_of(owner)
    install(owner, dict(reversed(pairs) if reverse else pairs))
    hidden = x @ net.a + 0.1 * x @ first.weight.T
    expected = torch.tanh(hidden @ net.b + 0.1 * hidden @ second.weight.T)
    assert torch.allclose(owner(x), expected, rtol=1e-12)
    detach(owner)
    assert nodes_of(owner) == before
    assert torch.equal(owner(x), torch.tanh((x @ net.a) @ net.b))


@own
def test_the_signature_stays_that_of_the_class(kind: str, tmp_path: Path) -> None:
    module = relaxed(kind, tmp_path)
    assert "forward" in vars(module)
    assert inspect.signature(module.forward) == inspect.signature(build(kind, tmp_path).forward)


def test_a_forward_of_the_instance_survives() -> None:
    net, own = Chain(), torch.zeros_like
    net.forward = own  # type: ignore[method-assign,assignment]
    with pytest.raises(PlanError, match="attribute of the instance"):
        install(net, {"matmul:0": ("a", branch())})
    assert vars(net)["forward"] is own
    assert CHILD not in dict(net.named_children())


def test_what_cannot_be_traced_folds_as_well(tmp_path: Path) -> None:
    module = build("untraceable", tmp_path)
    relaxation = surgeon.relax(module, plan_of(module), mode="fold", dense=True, init_scale=1.0)
    relaxation.set_theta(0.0)
    for branch in relaxation.branches.values():
        branch.theta[1] = 1.0  # the foldable part alone
    output, records = module(vectors()), surgeon.strip(module)
    assert all(record.folded > 0.1 and record.lost < 1e-12 for record in records)
    assert torch.allclose(module(vectors()), output, rtol=1e-12)


@own
def test_a_relaxed_copy_compiles_a_traced_one_as_one_graph(kind: str, tmp_path: Path) -> None:
    module = relaxed(kind, tmp_path)
    twin = copy.deepcopy(module)
    compiled = torch.compile(twin, backend="eager", fullgraph=kind == "module")
    assert torch.equal(compiled(vectors()), module(vectors()))


@own
def test_activations_are_computed_again_with_branches(kind: str, tmp_path: Path) -> None:
    module, x = relaxed(kind, tmp_path).train(), vectors().requires_grad_()
    weights = [branch.weight for branch in branches_of(module).values()]
    gradients = [
        torch.autograd.grad(run(x).square().sum(), [x, *weights])
        for run in (module, lambda y: checkpoint(module, y, use_reentrant=False))
    ]
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))
