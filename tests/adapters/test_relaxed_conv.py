"""Relaxed rotation convolutions: exact with equal mixture weights, approximate otherwise, and their adapter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.equivariance import Symmetry, relative_difference
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, regular, trivial
from surgeon.algebra.representations.tensors import TensorType
from surgeon.errors import PlanError
from surgeon.finding.annotated_ops import collect_proposals
from surgeon.finding.own_symmetry import symmetrised_copy
from surgeon.plan import Plan
from surgeon.registry import Adapter, Proposal, Refusal
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model, check_plan
from surgeon_adapters.zoo.relaxed_convolutions.adapter import FRAME, adapter
from surgeon_adapters.zoo.relaxed_convolutions.rotation import Fields, RelaxedRotationConv2d, RelaxedRotationNet

C4 = parse_group("C4")


def fields(kind: Fields, count: int, order: int = 4) -> TensorType:
    group = parse_group(f"C{order}")
    rho = {
        "trivial": lambda: trivial(group, count),
        "vector": lambda: axes(group, "c v", {"c": count}),
        "regular": lambda: regular(group, count),
    }[kind]()
    return TensorType(rho, (-3,), (-2, -1), FRAME)


def broken(module: nn.Module, size: float = 0.2) -> nn.Module:
    """Let filters depend on the rotation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("combination_weights"):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def net() -> RelaxedRotationNet:
    torch.manual_seed(0)
    made = RelaxedRotationNet(2, hidden=3, layers=3).double().eval()
    with torch.no_grad():
        for layer in made.rconv:
            if layer.bias is not None:
                layer.bias.uniform_(-0.1, 0.1)
    return made


def model(module: nn.Module) -> Model:
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Model(
        module,
        (x,),
        Symmetry(
            C4,
            lambda g, frames: fields("vector", 2).act(g, frames),
            lambda g, output: fields("vector", 1).act(g, output),
        ),
    )


def plan_of(module: nn.Module) -> Plan:
    case = model(module)
    return surgeon.find(
        module,
        C4,
        *case.inputs,
        act=case.symmetry.act,
        act_output=case.symmetry.act_output,
        adapters={adapter.name: adapter},
    )


class TestContract(AdapterContract):
    adapter = "surgeon_adapters.zoo.relaxed_convolutions.adapter:adapter"
    folds = False

    def sample(self) -> Model:
        return model(net())


@pytest.mark.parametrize(
    ("kind_in", "kind_out"),
    [
        ("trivial", "regular"),
        ("vector", "regular"),
        ("regular", "regular"),
        ("regular", "vector"),
        ("regular", "trivial"),
    ],
)
@pytest.mark.parametrize("order", [2, 4])
def test_equal_mixture_weights_are_exact_and_others_are_not(kind_in: Fields, kind_out: Fields, order: int) -> None:
    layer = RelaxedRotationConv2d(2, 3, 5, fields_in=kind_in, fields_out=kind_out, order=order, filter_banks=2).double()
    if layer.bias is not None:
        nn.init.uniform_(layer.bias)
    into, out = fields(kind_in, 2, order), fields(kind_out, 3, order)
    x = torch.randn(2, into.rho.dimension, 7, 7, dtype=torch.float64)

    def error() -> float:
        base = layer(x)
        elements = parse_group(f"C{order}").all_elements()[1:]
        return max(relative_difference(layer(into.act(g, x)), out.act(g, base)) for g in elements)

    assert error() < 1e-13
    broken(layer)
    assert error() > 1e-2


def test_filters_are_those_of_the_paper() -> None:
    layer = broken(RelaxedRotationConv2d(2, 3, 3, filter_banks=2).double())
    kernel = layer.kernel().detach().reshape(3, 4, 2, 4, 3, 3)
    mixture, banks = layer.combination_weights.detach(), layer.weights.detach()
    for g in range(4):
        for h in range(4):
            # psi(g, h) = sum_l w_l(g) psi_l(g^-1 h): g^-1 turns the plane by -g quarters, from y to x
            expected = sum(mixture[g, bank] * banks[bank, :, :, (h - g) % 4] for bank in range(2))
            for row in range(3):
                for column in range(3):
                    y, x = row - 1, column - 1
                    for _ in range(g):
                        x, y = y, -x
                    assert torch.allclose(kernel[:, g, :, h, row, column], expected[:, :, y + 1, x + 1])


def test_names_and_shapes() -> None:
    made = RelaxedRotationNet(5, 1, hidden=8, layers=3, kernel_size=3, filter_banks=2)
    assert {key: tuple(value.shape) for key, value in made.state_dict().items()} == {
        "rconv.0.weights": (2, 8, 5, 2, 3, 3),
        "rconv.0.combination_weights": (4, 2),
        "rconv.0.bias": (8,),
        "rconv.1.weights": (2, 8, 8, 4, 3, 3),
        "rconv.1.combination_weights": (4, 2),
        "rconv.1.bias": (8,),
        "rconv.2.weights": (2, 1, 2, 8, 3, 3),
        "rconv.2.combination_weights": (4, 2),
    }


@pytest.mark.parametrize("settings", [(2, 1, 3, 3, 5, 4, 1), (1, 2, 4, 2, 3, 2, 3)])
def test_an_architecture_is_rebuilt_from_its_tensors(settings: tuple[int, ...]) -> None:
    tensors = RelaxedRotationNet(*settings).state_dict()
    rebuilt = adapter.rebuild(tensors)
    assert rebuilt is not None
    rebuilt.load_state_dict(tensors)
    assert [layer.order for layer in rebuilt.rconv] == [settings[5]] * settings[3]
    tensors["more"] = torch.zeros(1)
    assert adapter.rebuild(tensors) is None


def test_a_trained_network_keeps_what_it_breaks_of_the_symmetry() -> None:
    module = broken(net(), 0.05)
    own = model(module).error(C4.elements)
    assert own > 1e-2
    plan = plan_of(module)
    assert [site.name for site in plan.sites] == ["rconv.0", "rconv.1", "rconv.2"]
    assert all(site.verified and site.residual is not None and site.residual < 1e-12 for site in plan.sites)
    assert sum("approximately equivariant by design" in note for note in plan.notes) == 3
    mixtures = [layer.combination_weights.detach().clone() for layer in module.rconv]
    relaxation = surgeon.relax(module, plan, dense=True, init_scale=1.0)
    relaxation.set_theta(1.0)
    assert model(module).error(C4.elements) > 2 * own
    surgeon.strip(module)
    assert model(module).error(C4.elements) == own
    assert all(map(torch.equal, mixtures, [layer.combination_weights.detach() for layer in module.rconv]))


def test_its_symmetrised_copy_is_exact() -> None:
    module = broken(net())
    copy = symmetrised_copy(module, collect_proposals(module, C4, {adapter.name: adapter})[0])
    assert copy is not None
    assert model(copy).error(C4.elements) < 1e-13
    assert model(module).error(C4.elements) > 1e-2
    assert symmetrised_copy(nn.Linear(2, 2), {}) is None


def test_branches_break_the_symmetry_of_an_exact_network() -> None:
    module = net()
    check_plan(model(module), plan_of(module))


class Mislabelled(Adapter):
    """Takes the components of a vector for two scalars."""

    name, groups = "mislabelled", ("C4",)

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        right = adapter.propose(module, group)
        if not isinstance(right, Proposal) or right.rho_in.dimension != 4:
            return None
        return Proposal(
            "x", "convolution", trivial(group, 4), right.rho_out, axes_in=(-3,), axes_out=(-3,),
            convolution=right.convolution, symmetrised=right.symmetrised,
        )  # fmt: skip


def test_symmetrised_weights_do_not_hide_a_wrong_label() -> None:
    module, x = net(), torch.randn(2, 4, 9, 9, dtype=torch.float64)
    with pytest.raises(PlanError, match="not equivariant as labelled"):
        surgeon.find(module, C4, x, forward=lambda each, frames: each(frames), adapters={"mislabelled": Mislabelled()})  # type: ignore[dict-item]


def test_another_group_is_refused() -> None:
    answer = adapter.propose(RelaxedRotationConv2d(1, 1), parse_group("C2"))
    assert isinstance(answer, Refusal)
    assert "C4, not over C2" in answer.reason


@pytest.mark.parametrize(
    "settings", [{"fields_in": "vector", "fields_out": "trivial"}, {"order": 6}, {"kernel_size": 2}]
)
def test_layers_that_cannot_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected regular fields"):
        RelaxedRotationConv2d(1, 1, **settings)  # type: ignore[arg-type]


def test_gradients_reach_the_relaxed_weights() -> None:
    module = net()
    output: Tensor = module(torch.randn(1, 4, 5, 5, dtype=torch.float64))
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
