"""Relaxed scale convolutions: exact under shrinking where nothing is cut off, approximate otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.penalty import Commutator
from surgeon.algebra.representations.build import on_grid, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.tensors import TensorType
from surgeon.errors import GroupError
from surgeon.finding.annotated_ops import collect_proposals
from surgeon.finding.forms import row_representations
from surgeon.finding.own_symmetry import symmetrised_copy
from surgeon.plan import Plan
from surgeon.registry import Refusal
from surgeon_adapters.zoo.relaxed_convolutions.adapter import FRAME, adapter, velocities
from surgeon_adapters.zoo.relaxed_convolutions.scale import RelaxedScaleConv2d, RelaxedScaleNet

GROUP = parse_group("SCALE2")
SHRINK = GROUP.elements[0]


def fields(count: int, scales: int) -> TensorType:
    return TensorType(velocities(GROUP, count, scales), (-3,), (-2, -1), FRAME)


def broken(module: nn.Module, size: float = 0.2) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("combination_weights"):
                parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return module


def net(reach: int = 2) -> RelaxedScaleNet:
    torch.manual_seed(0)
    return RelaxedScaleNet(2, hidden=3, layers=3, scales=2, reach=reach).double().eval()


def sample() -> Tensor:
    return torch.randn(2, 4, 13, 13, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plan_of(module: nn.Module) -> Plan:
    return surgeon.find(
        module, GROUP, sample(), forward=lambda each, frames: each(frames), adapters={adapter.name: adapter}
    )


@pytest.mark.parametrize(
    ("into", "out", "reach"), [("plane", "scales", 1), ("scales", "scales", 1), ("scales", "scales", 3)]
)
def test_shrinking_the_input_shrinks_the_features(into: str, out: str, reach: int) -> None:
    layer = RelaxedScaleConv2d(2, 3, fields_in=into, fields_out=out, reach=reach, filter_banks=2).double()  # type: ignore[arg-type]
    before, after = fields(2, layer.components(layer.fields_in)), fields(3, layer.components(layer.fields_out))
    x = torch.randn(2, before.rho.dimension, 31, 31, dtype=torch.float64)

    def error() -> float:
        with torch.no_grad():
            expected = after.act(SHRINK, layer(x))
            found = layer(before.act(SHRINK, x)) * after.covered(SHRINK, expected)
        return float((found - expected).norm() / expected.norm())

    assert error() < 1e-14
    broken(layer)
    assert error() > 1e-2


def test_filters_are_dilated_mixtures() -> None:
    layer = broken(RelaxedScaleConv2d(2, 3, scales=3, reach=2, filter_banks=2).double())
    kernel = layer.kernel().detach().reshape(3, 3, 2, 3, 9, 9)
    for scale in range(3):
        psi = sum(layer.combination_weights[scale, bank] * layer.weights[bank] for bank in range(2)).detach()
        step = 2**scale
        for source in range(3):
            found = kernel[:, scale, :, source]
            inside = found[..., 4 - step : 5 + step : step, 4 - step : 5 + step : step]
            within = 0 <= source - scale < 2
            assert torch.allclose(inside, psi[:, :, source - scale] if within else torch.zeros_like(inside))
            assert torch.isclose(found.abs().sum(), inside.abs().sum())


def test_names_and_shapes() -> None:
    made = RelaxedScaleNet(5, hidden=8, layers=3, scales=3, filter_banks=2, reach=2)
    shapes = {key: tuple(value.shape) for key, value in made.state_dict().items()}
    assert shapes == {
        "sconv.0.weights": (2, 8, 10, 1, 3, 3),
        "sconv.0.combination_weights": (3, 2),
        "sconv.1.weights": (2, 8, 8, 2, 3, 3),
        "sconv.1.combination_weights": (3, 2),
        "sconv.2.weights": (2, 2, 8, 1, 3, 3),
        "sconv.2.combination_weights": (3, 2),
    }
    rebuilt = adapter.rebuild(made.state_dict())
    assert rebuilt is not None
    rebuilt.load_state_dict(made.state_dict())
    assert adapter.rebuild({**made.state_dict(), "more": torch.zeros(1)}) is None


def test_a_trained_network_is_relaxed_and_restored() -> None:
    module, x = broken(net()), sample()
    before = module(x).detach()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    plan = plan_of(module)
    assert [site.shape for site in plan.sites] == [(6, 4, 5, 5), (6, 6, 5, 5)]
    assert all(site.verified and site.residual is not None and site.residual < 1e-13 for site in plan.sites)
    assert sum("approximately equivariant by design" in note for note in plan.notes) == 2
    assert sum("cut off" in note for note in plan.notes) == 2
    assert [entry.reason for entry in plan.skipped] == ["it sums over scales, whose range is cut off"]
    relaxation = surgeon.relax(module, plan, dense=True, init_scale=1.0)
    assert torch.equal(module(x), before)
    relaxation.set_theta(0.1)
    assert not torch.allclose(module.train()(x), before)
    surgeon.strip(module.eval())
    assert torch.equal(module(x), before)
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_the_penalty_sees_what_breaks_the_symmetry_inside_the_range() -> None:
    exact, module = net(), broken(net())
    site = plan_of(exact).sites[0]
    commutator = Commutator(*row_representations(site))
    scales = torch.arange(6) % 2

    def defect(layer: nn.Module) -> tuple[float, float]:
        (lost,) = commutator(layer.kernel().detach().flatten(1))
        return float(lost[scales == 0].norm()), float(lost[scales == 1].norm())

    inside, cut_off = defect(exact.sconv[0])
    assert inside < 1e-14 < cut_off  # the last scale has no neighbour to compare with
    assert defect(module.sconv[0])[0] > 1e-2  # type: ignore[union-attr]


def test_its_symmetrised_copy_has_constant_mixtures() -> None:
    copy = symmetrised_copy(broken(net()), collect_proposals(broken(net()), GROUP, {adapter.name: adapter})[0])
    assert copy is not None
    assert all(layer.combination_weights.std(0).max() == 0 for layer in list(copy.sconv)[:2])  # type: ignore[arg-type]


def test_another_group_is_refused() -> None:
    answer = adapter.propose(RelaxedScaleConv2d(1, 1), parse_group("SCALE3"))
    assert isinstance(answer, Refusal)


@pytest.mark.parametrize("settings", [{"fields_in": "plane", "fields_out": "plane"}, {"reach": 4}, {"kernel_size": 2}])
def test_layers_that_cannot_be_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected fields on scales"):
        RelaxedScaleConv2d(1, 1, **settings)  # type: ignore[arg-type]


def test_the_group_of_scales() -> None:
    group = parse_group("scale 3")
    assert group.name == "SCALE3"
    assert group.rescales
    assert not parse_group("C4").rescales
    assert torch.equal(group.sample(2, torch.Generator(), 1), torch.full((2, 1, 1), 1 / 3, dtype=torch.float64))
    with pytest.raises(GroupError, match="at least 2"):
        parse_group("SCALE1")


def test_powers_of_a_shift_that_is_cut_off() -> None:
    rho = velocities(GROUP, 1, 3)
    twice = rho.action(SHRINK @ SHRINK).dense()[0]
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[0, 2] = 0.25
    assert torch.equal(twice, expected)
    for wrong in (2.0, 0.3, -0.5):
        with pytest.raises(GroupError, match="expected a power of 0.5"):
            rho.action(torch.full((1, 1), wrong, dtype=torch.float64))


def test_patches_and_images_shrink_alike() -> None:
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    scalar = TensorType(trivial(GROUP, 1), (-3,), (-2, -1), FRAME)
    moved = scalar.act(SHRINK, x)
    patch: Representation = on_grid(trivial(GROUP, 1), (9, 9), FRAME)
    assert torch.equal(patch.action(SHRINK).apply(x.flatten())[0], moved.flatten())
    assert torch.equal(moved[..., 2:7, 2:7], x[..., ::2, ::2])
    assert float(moved.abs().sum()) == pytest.approx(float(x[..., ::2, ::2].abs().sum()))
    with pytest.raises(GroupError, match="odd sizes"):
        scalar.act(SHRINK, x[..., :8, :8])
