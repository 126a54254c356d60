"""Which parameters flow where, in whatever disguise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.recording.provenance import bypassed_parameters, used_parameters
from surgeon.recording.record import record

Use = Callable[[nn.ModuleDict, Tensor], Tensor]


class Using(nn.Module):
    """The forward is a function of two layers and the input."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.layers, x)


DISGUISES: dict[str, Use] = {
    "itself": lambda m, x: functional.linear(x, m["a"].weight),
    "rescaled": lambda m, x: functional.linear(x, m["a"].weight * 3**-0.5),
    "transposed": lambda m, x: x @ m["a"].weight.T,
    "view": lambda m, x: x * m["a"].weight.view(9)[:3],
    "expanded": lambda m, x: torch.bmm(x[None].expand(2, -1, -1), m["a"].weight.expand(2, 3, 3)).sum(0),
    "data": lambda m, x: functional.linear(x, m["a"].weight.data),
    "detached": lambda m, x: functional.linear(x, m["a"].weight.detach()),
    "float64 and back": lambda m, x: functional.linear(x, m["a"].weight.double().float()),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_borrowed_weight_is_recognised(disguise: str) -> None:
    recording = record(Using(DISGUISES[disguise]), torch.randn(3, 3))
    assert "" in used_parameters(recording)["layers.a.weight"]
    assert bypassed_parameters(recording) == {"layers.a": {""}}


def test_concatenated_weights_carry_both_names() -> None:
    def use(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return x @ torch.cat([m["a"].weight, m["b"].weight]).T

    recording = record(Using(use), torch.randn(2, 3))
    (product,) = (node for node in recording.graph.nodes if str(node.target) == "aten.mm.default")
    flowing = frozenset().union(*(node.meta["parameters"] for node in product.all_input_nodes))
    assert flowing == {"layers.a.weight", "layers.b.weight"}
    assert product.meta["parameters"] == frozenset()  # an activation is mixed in
    assert set(bypassed_parameters(recording)) == {"layers.a", "layers.b"}


def test_ordinary_layers_bypass_nothing() -> None:
    recording = record(Using(lambda m, x: m["b"](m["a"](x))), torch.randn(2, 3))
    assert bypassed_parameters(recording) == {}
    assert used_parameters(recording) == {
        f"layers.{name}.{part}": {f"layers.{name}"} for name in "ab" for part in ("weight", "bias")
    }


def test_a_weight_that_is_used_by_its_own_layer_and_by_another() -> None:
    def use(m: nn.ModuleDict, x: Tensor) -> Tensor:
        return functional.linear(m["a"](x), m["a"].weight)

    recording = record(Using(use), torch.randn(2, 3))
    assert used_parameters(recording)["layers.a.weight"] == {"layers.a", ""}
    assert bypassed_parameters(recording) == {"layers.a": {""}}


def test_a_sibling_that_borrows() -> None:
    class Borrowing(nn.Module):
        def __init__(self, lender: nn.Linear) -> None:
            super().__init__()
            object.__setattr__(self, "lender", lender)  # not a submodule

        def forward(self, x: Tensor) -> Tensor:
            lender: nn.Linear = self.lender  # type: ignore[assignment]
            return functional.linear(x, lender.weight)

    lender = nn.Linear(3, 3)
    recording = record(nn.Sequential(lender, Borrowing(lender)), torch.randn(2, 3))
    assert bypassed_parameters(recording) == {"0": {"1"}}


def test_a_parent_that_owns_the_weights_of_its_children_ops() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 3))
            self.child = Multiplying()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.child(x, self.weight)
            return result

    class Multiplying(nn.Module):
        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return x @ weight

    recording = record(nn.Sequential(Parent()), torch.randn(2, 3))
    assert used_parameters(recording) == {"0.weight": {"0.child"}}
    assert bypassed_parameters(recording) == {}  # a branch at the parent acts


def test_a_gradient_inside_the_forward_is_no_bypass() -> None:
    class Energy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.net(x).sum(), x)[0]

    recording = record(Energy(), torch.randn(2, 3))
    used_backward = {
        name
        for node in recording.graph.nodes
        if node.meta.get("backward")
        for argument in node.all_input_nodes
        for name in argument.meta["parameters"]
    }
    assert "net.weight" in used_backward
    assert bypassed_parameters(recording) == {}


def test_buffers_are_no_parameters() -> None:
    recording = record(nn.BatchNorm1d(3).eval(), torch.randn(2, 3))
    assert set(used_parameters(recording)) == {"weight", "bias"}
