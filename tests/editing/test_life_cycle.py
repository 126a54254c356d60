"""What libraries of low-rank adaptation assert of a network with added weights, where no other test here does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import SurgeryError
from tests import nets
from tests.nets import o3

pytestmark = pytest.mark.e3nn


def test_with_a_frozen_base_training_moves_the_branches_alone() -> None:
    twin, net, relaxation, inputs = nets.relaxed("linears")
    net.requires_grad_(False)
    for weight in relaxation.branch_parameters():
        weight.requires_grad_(True)
    relaxation.set_theta(0.5)
    before = [weight.detach().clone() for weight in relaxation.branch_parameters()]
    optimizer = torch.optim.AdamW(relaxation.branch_parameters(), lr=0.1)
    net(*inputs).square().sum().backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in relaxation.base_parameters())
    assert not any(map(torch.equal, before, relaxation.branch_parameters()))
    surgeon.strip(net)
    assert nets.state(net) == nets.state(twin)


@pytest.mark.parametrize("mode", ["drop", "fold"])
def test_a_network_is_stripped_once(mode: str) -> None:
    _, net, relaxation, _ = nets.relaxed("linears", mode=mode)
    relaxation.set_theta(0.0, 1.0)
    surgeon.strip(net)
    state = nets.state(net)
    with pytest.raises(SurgeryError, match="stripped already"):
        surgeon.strip(net)
    assert nets.state(net) == state


class Chain(nn.Module):
    """Layers of which some have names that begin as those of others do: ``layers.1`` and ``layers.10``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(o3.Linear("1x1o", "1x1o") for _ in range(11))

    def forward(self, x: Tensor, last: int = 11) -> Tensor:
        for layer in self.layers[:last]:
            x = layer(x)
        return x


def chain(seed: int = 0) -> tuple[Chain, Relaxation]:
    net = Chain()
    relaxation = surgeon.relax(net, surgeon.find(net, "O3"), dense=True, init_scale=1.0, seed=seed)
    relaxation.set_theta(0.5)
    return net, relaxation


def test_names_that_begin_alike_are_told_apart_and_arguments_may_be_named() -> None:
    (net, _), (other, _), x = chain(), chain(seed=1), torch.randn(5, 3)
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    for last in (2, 11):
        assert torch.equal(other(x, last), net(last=last, x=x))


def test_a_relaxed_network_changes_its_dtype_as_a_whole() -> None:
    (net, relaxation), x = chain(), torch.randn(5, 3)
    expected = net.double()(x.double())
    assert expected.dtype == torch.float64 == relaxation.penalty().dtype
    assert torch.allclose(net.float()(x), expected.float(), rtol=1e-4)
    assert net.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
