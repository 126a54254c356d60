"""The adapters of e3nn and of vector neurons keep the contract, and one that lies does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon_adapters.zoo.vector_neurons.adapter as vector_neurons
from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.folding import FoldMap
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.errors import PlanError
from surgeon.finding.find import find
from surgeon.registry import Adapter, Proposal, Refusal
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model
from tests import nets


def _act(rho: str, g: Tensor, x: Tensor) -> Tensor:
    return irreps(parse_group("O3"), rho).action(g).to(x).apply(x)[0]


class TestE3nn(AdapterContract):
    adapter = "surgeon_adapters.e3nn_layers.adapter:adapter"
    libraries = ("e3nn", "scipy")

    def sample(self) -> Model:
        torch.manual_seed(0)
        net = nets.Linears().double().eval()
        x = torch.randn(6, irreps(parse_group("O3"), net.rho_in).dimension, dtype=torch.float64)
        return Model(
            net,
            (x,),
            Symmetry(
                parse_group("O3"),
                lambda g, features: _act(net.rho_in, g, features),
                lambda g, output: _act(net.rho_out, g, output),
            ),
        )


class VNLayer(nn.Module):
    """Linear in vectors, scaled by an invariant; features are (b, c, 3, n)."""

    def __init__(self, channels: int, into: int) -> None:
        super().__init__()
        self.map_to_feat = nn.Linear(channels, into, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.map_to_feat(x.transpose(1, -1)).transpose(1, -1)
        return y * torch.tanh(y.square().sum(2, keepdim=True))


class VectorNeurons(AdapterContract):
    """Copies of the published layers in somebody's own network; tests/families has the published networks."""

    __test__ = False
    adapter = "surgeon_adapters.zoo.vector_neurons.adapter:adapter"

    def sample(self) -> Model:
        torch.manual_seed(0)
        net = nn.Sequential(VNLayer(2, 5), VNLayer(5, 3)).double().eval()
        x = torch.randn(2, 2, 3, 7, dtype=torch.float64)
        return Model(net, (x,), Symmetry(parse_group("SO3"), _turned, _turned))


def _turned(g: Tensor, points: Tensor) -> Tensor:
    return torch.einsum("xy,bcyn->bcxn", g.to(points), points)


class Lying(Adapter):
    """Takes every linear layer on channels for one that mixes vectors along its last axis."""

    name, groups = "lying", ("SO3",)

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | Mapping[str, Proposal | Refusal] | None:
        if not isinstance(module, nn.Linear) or module.in_features != 3:
            return None
        return Proposal("input", "linear", irreps(group, "1x1o"), irreps(group, f"{module.out_features}x0e"))


class _Broken(VectorNeurons):
    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def loaded(self) -> Any:
        return self._adapter


def test_copies_of_the_published_layers_are_annotated() -> None:
    copies = VectorNeurons()
    model = copies.sample()
    plan = find(model.module, "SO3", *model.inputs)
    assert {site.key: site.adapter for site in plan.sites} == {"0.map_to_feat.input": "vn", "1.map_to_feat.input": "vn"}
    copies.test_proposals_are_found_and_verified()
    copies.test_each_branch_breaks_equivariance()
    copies.test_folding_is_exact_where_it_says_so()


def test_an_adapter_that_is_not_registered_is_noticed() -> None:
    with pytest.raises(AssertionError, match="installed are"):
        _Broken(Lying()).test_it_is_registered_under_its_name()


def test_wrong_representations_are_noticed() -> None:
    with pytest.raises((AssertionError, PlanError)):
        _Broken(Lying()).test_proposals_are_found_and_verified()


def test_a_fold_by_twice_as_much_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    change = FoldMap.weight_change
    _Broken(vector_neurons.adapter).test_folding_is_exact_where_it_says_so()
    monkeypatch.setattr(FoldMap, "weight_change", lambda own, weight: change(own, 2 * weight))
    with pytest.raises(AssertionError):
        _Broken(vector_neurons.adapter).test_folding_is_exact_where_it_says_so()


def test_a_library_that_is_imported_at_once_is_noticed() -> None:
    broken = TestE3nn()
    broken.adapter, broken.libraries = "json.tool:main", ("argparse",)  # type: ignore[misc]
    with pytest.raises(AssertionError, match="importing json.tool imports argparse"):
        broken.test_importing_it_imports_no_library()
