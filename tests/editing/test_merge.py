"""A dense linear layer and its branch as one product: the same function and gradients, and nothing left behind."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.editing.merge import merge, unmerge
from surgeon.editing.relaxation import Relaxation
from surgeon.plan import Plan, Site


class Layer(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 5, bias=bias, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x.transpose(1, -1)).transpose(1, -1)
        return result


def relaxed(bias: bool = False, mode: Any = "drop") -> tuple[Layer, Relaxation, Tensor]:
    torch.manual_seed(0)
    net, x = Layer(bias), torch.randn(2, 4, 3, 7, dtype=torch.float64)
    from surgeon.algebra.groups.parse import parse_group
    from surgeon.algebra.representations.build import axes

    group = parse_group("SO3")
    rho_in, rho_out = (axes(group, "v c", {"c": size}) for size in (4, 5))
    site = Site("linear", "input", "linear", "", rho_in, rho_out, (15, 12), axes_in=(-2, -1), axes_out=(-2, -1))
    relaxation = surgeon.relax(
        net, Plan("SO3", (site,)), dense=True, mode=mode, init_scale=1.0, penalty_rows=None, penalty_every=1
    )
    relaxation.set_theta(0.3)
    return net.train(), relaxation, x


def step(net: Layer, relaxation: Relaxation, x: Tensor) -> tuple[Tensor, ...]:
    net.zero_grad()
    x = x.clone().requires_grad_()
    output = net(x)
    (output.pow(3).sum() + relaxation.penalty()).backward()
    assert x.grad is not None
    return (output.detach(), x.grad, *(parameter.grad.clone() for parameter in net.parameters()))  # type: ignore[union-attr]


def test_function_gradients_and_penalty_are_the_same() -> None:
    net, relaxation, x = relaxed()
    apart = step(net, relaxation, x)
    merge(relaxation)
    assert "forward" in vars(net.linear)
    together = step(net, relaxation, x)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(apart, together, strict=True))
    relaxation.set_theta(0.4)
    assert not torch.allclose(step(net, relaxation, x)[0], apart[0])


def test_evaluation_and_clean_evaluation_are_not_touched() -> None:
    net, relaxation, x = relaxed()
    expected = net.eval()(x)
    with relaxation.clean():
        clean = net(x)
    merge(relaxation)
    assert torch.equal(net.eval()(x), expected)
    with relaxation.clean():
        assert torch.equal(net(x), clean)
        assert torch.equal(net.train()(x), clean)


def test_nothing_is_left_after_unmerging() -> None:
    net, relaxation, x = relaxed()
    expected, keys = net(x), set(vars(net.linear))
    merge(relaxation)
    unmerge(relaxation)
    assert set(vars(net.linear)) == keys
    assert torch.equal(net(x), expected)
    surgeon.strip(relaxation)
    assert set(net.state_dict()) == {"linear.weight"}


def test_a_layer_with_a_bias_is_left_alone() -> None:
    net, relaxation, _ = relaxed(bias=True)
    merge(relaxation)
    assert "forward" not in vars(net.linear)


def test_double_backward_through_a_merged_layer() -> None:
    net, relaxation, x = relaxed()
    merge(relaxation)
    inner = x.clone().requires_grad_()
    force = torch.autograd.grad(net(inner).pow(3).sum(), inner, create_graph=True)[0]
    merged = torch.autograd.grad(force.square().sum(), list(net.parameters()))
    unmerge(relaxation)
    inner = x.clone().requires_grad_()
    force = torch.autograd.grad(net(inner).pow(3).sum(), inner, create_graph=True)[0]
    apart = torch.autograd.grad(force.square().sum(), list(net.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(merged, apart, strict=True))
    assert all(bool(a.any()) for a in apart)


def test_a_copy_of_a_merged_network_is_on_its_own() -> None:
    net, relaxation, x = relaxed()
    merge(relaxation)
    twin = copy.deepcopy(net)
    with torch.no_grad():
        net.linear.weight.zero_()
    assert not torch.allclose(twin(x), net(x))
