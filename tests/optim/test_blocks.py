"""Which matrices are found inside the weights of a model."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon import optim
from surgeon.algebra.matrix_blocks import MatrixBlock
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.optim.blocks import blocks_in_words
from surgeon.support.e3nn_compat import import_e3nn
from surgeon_adapters.e3nn_layers.adapter import E3nnAdapter
from surgeon_adapters.zoo.segnn.network import SEGNN, SegnnSettings
from surgeon_adapters.zoo.vector_neurons.layers import VNLinearLeakyReLU
from tests import nets

pytestmark = pytest.mark.e3nn
o3 = import_e3nn()


class Silent(E3nnAdapter):
    """Annotates representations, and says nothing of matrices."""

    def blocks(self, module: nn.Module) -> None:
        """Say nothing."""


def by_name(model: nn.Module, *given: object, **more: object) -> dict[str, optim.WeightBlocks]:
    return {each.name: each for each in optim.find_blocks(model, *given, **more)}  # type: ignore[arg-type]


def positions(block: MatrixBlock, shape: torch.Size) -> frozenset[tuple[int, ...]]:
    """The matrix as the sets of numbers in its rows and in its columns: its transpose is the same."""
    places = block.of(torch.arange(math.prod(shape)).view(shape))
    return frozenset(tuple(line) for matrix in (places, places.T) for line in matrix.tolist())


def test_a_linear_layer_has_one_block_for_each_path() -> None:
    layer = o3.Linear("4x0e+3x1o+2x1o", "5x0e+4x1o+2x2e", biases=True)
    found = by_name(layer)
    assert [(block.shape, block.label) for block in found["weight"].blocks] == [
        ((4, 5), "4x0e -> 5x0e"),
        ((3, 4), "3x1o -> 4x1o"),
        ((2, 4), "2x1o -> 4x1o"),
    ]
    assert found["weight"].covered == layer.weight.numel()
    assert not found["bias"].blocks
    for block, view in zip(found["weight"].blocks, itertools.islice(layer.weight_views(), 3), strict=True):
        assert torch.equal(block.of(layer.weight.detach()), view)
        assert block.of(layer.weight.detach()).data_ptr() == view.data_ptr()


def test_a_tensor_product_has_one_for_each_path_that_mixes_channels() -> None:
    full = o3.FullyConnectedTensorProduct("3x0e+2x1o", "1x0e+1x1o", "3x0e+4x1o")
    found = by_name(full)["weight"]
    views = [view.flatten(0, 1) for view in full.weight_views()]
    assert all(torch.equal(b.of(full.weight.detach()), view) for b, view in zip(found.blocks, views, strict=True))
    modes = {mode: by_name(nets.product(mode))["weight"] for mode in nets.MODES}
    assert {mode for mode, weight in modes.items() if weight.blocks} == {"uvw", "uuw"}
    assert "no matrix" in modes["uvu"].why


def test_external_and_frozen_weights_are_left_out() -> None:
    external = o3.FullyConnectedTensorProduct("2x0e", "1x0e", "2x0e", internal_weights=False, shared_weights=False)
    frozen = o3.Linear("2x0e", "2x0e").requires_grad_(False)
    assert optim.find_blocks(nn.ModuleList([external, frozen])) == []


def test_every_path_of_a_segnn() -> None:
    edge, message = "1x0e+1x1o", "2x0e"
    network = SEGNN(SegnnSettings("2x1o+1x0e", "4x0e+4x1o", "1x1o", edge, edge, 1, message))
    inside = [each for each in optim.find_blocks(network) if each.name.endswith("tp.weight")]
    assert inside
    for each in inside:
        product: Any = network.get_submodule(each.name.removesuffix(".weight"))
        flat = [view.flatten(0, 1) for view in product.weight_views()]
        expected = [view for view in flat if min(view.shape) > 1]
        assert len(each.blocks) == len(expected)
        assert all(torch.equal(b.of(each.parameter), view) for b, view in zip(each.blocks, expected, strict=True))


def test_channels_of_vectors_and_kernels_are_whole_matrices() -> None:
    model = nn.ModuleList([VNLinearLeakyReLU(3, 4), nn.Conv2d(3, 4, 5)])
    shapes = {name: [block.shape for block in each.blocks] for name, each in by_name(model).items()}
    assert shapes["0.map_to_feat.weight"] == [(4, 3)]
    assert shapes["1.weight"] == [(4, 75)]
    assert shapes["1.bias"] == []


@pytest.mark.parametrize("name", ["linears", "reused"])
def test_differentiation_finds_what_the_adapter_says(name: str) -> None:
    net, inputs = nets.build(name)
    plan = surgeon.find(net, "O3", *inputs)
    said, found = by_name(net, plan), by_name(net, plan, adapters={"e3nn": Silent()})
    assert said.keys() == found.keys()
    assert any(each.why == "found by differentiation" for each in found.values())
    for key, each in said.items():
        shape = each.parameter.shape
        assert {positions(b, shape) for b in each.blocks} == {positions(b, shape) for b in found[key].blocks}
    without = by_name(net, adapters={})
    assert not any(each.blocks for each in without.values())


class Flat(nn.Module):
    """Channels of vectors (n, c, 3) mixed by a flat weight that no adapter knows, column by column, and a gap."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.out, self.into = out, into
        self.theta = nn.Parameter(torch.randn(2 * into * out, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oi,nix->nox", self.theta.view(self.into, 2 * self.out)[:, : self.out].T, x)


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Flat(3, 4), Flat(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        result: Tensor = self.second(hidden * hidden.square().sum(-1, keepdim=True).tanh())
        return result


def test_an_unknown_network_by_differentiation() -> None:
    net = Unknown()
    x = torch.randn(7, 3, 3, dtype=torch.float64)
    plan = surgeon.find(net, "SO3", x, act=lambda g, x: x @ g.T, act_output=lambda g, y: y @ g.T)
    found = by_name(net, plan)["first.theta"]
    (block,) = found.blocks
    assert found.why == "found by differentiation"
    assert found.covered == 12  # the other half of the numbers does nothing
    used = net.first.theta.detach().view(3, 8)[:, :4]
    assert torch.equal(block.of(net.first.theta.detach()), used.T)
    assert by_name(net)["first.theta"].blocks == ()
    relaxation = surgeon.relax(net, plan)
    assert relaxation.branches
    relaxed = by_name(net, plan)
    assert relaxed["first.theta"].blocks == (block,)
    assert any("_relaxation" in name for name in relaxed)


@pytest.mark.parametrize("adapters", [None, {"e3nn": Silent()}], ids=["said", "measured"])
def test_a_second_copy_has_the_blocks_of_its_weight(adapters: Any) -> None:
    net, inputs = nets.build("linears")
    plan = surgeon.find(net, "O3", *inputs)
    before = by_name(net, plan, adapters=adapters)["first.weight"].blocks
    WeightUpdates(net, plan, rank=None)
    found = by_name(net, plan, adapters=adapters)
    assert before
    assert all(found[f"first.parametrizations.weight.{name}"].blocks == before for name in ("original", "0.copy"))


def test_reasons_are_given() -> None:
    model = nn.Module()
    model.cube, model.row = nn.Parameter(torch.zeros(2, 3, 4)), nn.Parameter(torch.zeros(1, 5))
    found = by_name(model)
    assert "no adapter explains its 3 axes" in found["cube"].why
    assert found["row"].why == "a single row or column"
    assert blocks_in_words(list(found.values())) == "0 matrices in 0 of 2 trainable weights, 0 % of their numbers"


def test_tied_weights_are_found_once() -> None:
    layer = nn.Linear(3, 3, bias=False)
    assert len(optim.find_blocks(nn.ModuleList([layer, nn.Sequential(layer)]))) == 1


def test_a_weight_that_is_not_contiguous_is_a_matrix_only_as_a_whole() -> None:
    model = nn.ModuleList([nn.Linear(3, 2, bias=False), nn.Conv2d(3, 4, 5, bias=False)])
    model[0].weight = nn.Parameter(torch.randn(3, 2).T)
    model.to(memory_format=torch.channels_last)
    found = by_name(model)
    assert found["0.weight"].blocks[0].of(model[0].weight) is model[0].weight
    assert "do not lie one after the other" in found["1.weight"].why
