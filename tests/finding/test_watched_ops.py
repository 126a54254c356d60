"""A running forward is followed as a trace is: which of its ops are on raw parameters, and what is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from surgeon.finding.own_forward import NotTraceableError
from surgeon.finding.raw_ops import raw_op_at
from surgeon.finding.watched_ops import changing_met, met_in, ops_met, watch_complaint

N, C = 5, 3


class Raw(nn.Module):
    """Parameters in every kind of place, and one forward that is given."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(C, C)), nn.Parameter(torch.randn(C))
        self.layers = nn.ParameterList([torch.randn(C, C) for _ in range(2)])
        self.by_name = nn.ParameterDict({"up": torch.randn(C, C)})
        self.child = nn.Linear(C, C)
        self.register_buffer("basis", torch.randn(2, C, C))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):  # torch.fx cannot follow this
            return x
        return self.run(self, x)


def written(net: Any, x: Tensor) -> Tensor:
    matrix = torch.zeros(C, C)
    matrix[:] = net.w
    return x @ matrix


def overwritten(net: Any, x: Tensor) -> Tensor:
    matrix = net.w * 1.0
    view = matrix[0]
    view.copy_(x[0])
    matrix += x[:C]
    return x @ matrix


def twice(net: Any, x: Tensor) -> Tensor:
    return torch.tanh(x @ net.w) @ net.w.T


def by_its_child_too(net: Any, x: Tensor) -> Tensor:
    return functional.linear(net.child(x).tanh(), net.child.weight)


def without_gradients(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return x @ net.w


FORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "operator": (lambda net, x: x @ net.w, ["w@0:0"]),
    "operator from the left": (lambda net, x: (net.w @ x.T).T, ["w@0:1"]),
    "einsum": (lambda net, x: torch.einsum("ni,io->no", x, net.w), ["w@0:0"]),
    "einsum of three": (lambda net, x: torch.einsum("ni,nj,ij->ni", x, x + 1, net.w), ["w@0:0", "w@0:1"]),
    "tensordot": (lambda net, x: torch.tensordot(x, net.w, dims=1), ["w@0:0"]),
    "linear": (lambda net, x: functional.linear(x, net.w, net.b), ["w@0:0"]),
    "linear by names": (lambda net, x: functional.linear(bias=net.b, weight=net.w, input=x), ["w@0:2"]),
    "bmm of an expanded view": (lambda net, x: torch.bmm(x[:, None], net.w.expand(N, C, C))[:, 0], ["w@0:0"]),
    "addmm": (lambda net, x: torch.addmm(net.b, x, net.w), ["w@0:1"]),
    "baddbmm": (lambda net, x: torch.baddbmm(x[:, None], x[:, None].tanh(), net.w.expand(N, C, C)), ["w@0:1"]),
    "method": (lambda net, x: x.matmul(net.w.t().reshape(C, C)), ["w@0:0"]),
    "aten": (lambda net, x: torch.ops.aten.mm.default(x, net.w), ["w@0:0"]),
    "rescaled": (lambda net, x: x @ (net.w / C**0.5), ["w@0:0"]),
    "two in one": (lambda net, x: x @ torch.cat([net.w[:1], net.layers[0][1:]]), ["w@0:0"]),
    "in a basis": (lambda net, x: x @ torch.einsum("kio,io->io", net.basis, net.w), ["w@0:0"]),
    "product of two": (lambda net, x: x @ (net.w @ net.layers[1]), ["w@0:0"]),
    "list": (lambda net, x: (x @ net.layers[0]).tanh() @ net.layers[1], ["layers.0@0:0", "layers.1@0:0"]),
    "dict": (lambda net, x: x @ net.by_name["up"], ["by_name.up@0:0"]),
    "written to a constant": (written, ["w@0:0"]),
    "written to by activations": (overwritten, []),
    "twice": (twice, ["w@0:0", "w@1:0"]),
    "of a child": (lambda net, x: x @ net.child.weight, ["child.weight@0:0"]),
    "by the child too": (by_its_child_too, ["child.weight@1:0"]),
    "scales": (lambda net, x: x * net.b, []),
    "without gradients": (without_gradients, []),
    "checkpointed inside": (lambda net, x: checkpoint(lambda y: y @ net.w, x, use_reentrant=False), []),
    "differentiated": (lambda net, x: grad(lambda y: (y @ net.w).square().sum())(x), ["w@0:0"]),
    "mapped beside another": (lambda net, x: vmap(lambda y: y @ net.layers[0])(x) @ net.w, ["w@0:0"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_contractions_with_parameters_are_met(form: str) -> None:
    run, expected = FORMS[form]
    net, x = Raw(run), torch.randn(N, C)
    assert watch_complaint(net, [{"x": x}]) == ""
    ops = ops_met(net, {"x": x})
    assert [op.place for op in ops] == expected
    for op in ops:
        met = met_in(net, op, {"x": x})
        assert torch.equal(met.on(op.operand, met.operands[op.operand]), met.result)
        assert not torch.equal(met.on(op.operand, torch.randn(met.operands[op.operand].shape)), met.result)


def test_what_sees_one_row_at_a_time_is_a_complaint() -> None:
    with pytest.raises(NotTraceableError, match="under vmap"):
        ops_met(Raw(lambda net, x: vmap(lambda y: y @ net.w)(x)), {"x": torch.randn(N, C)})


@pytest.mark.parametrize(
    ("form", "names"), [("addmm", ("w", "b")), ("linear by names", ("w", "b")), ("two in one", ("w", "layers.0"))]
)
def test_all_parameters_of_an_op_are_named_those_that_multiply_first(form: str, names: tuple[str, ...]) -> None:
    assert ops_met(Raw(FORMS[form][0]), {"x": torch.randn(N, C)})[0].parameters == names


def test_one_of_two_ops_is_changed() -> None:
    net, x = Raw(twice), torch.randn(N, C)
    with changing_met(net, raw_op_at("w@1:0", ("w",)), lambda h, y: y + h):
        hidden = torch.tanh(x @ net.w)
        assert torch.equal(net(x), hidden @ net.w.T + hidden)
    assert "forward" not in vars(net)


def test_parameters_in_place_of_its_own_are_followed() -> None:
    net, x = Raw(FORMS["operator"][0]), torch.randn(N, C)
    with changing_met(net, raw_op_at("w@0:0", ("w",)), lambda _, y: 2 * y):
        assert torch.equal(functional_call(net, {"w": torch.eye(C)}, x), 2 * x)


def test_what_depends_on_the_mode_or_the_input_is_a_complaint() -> None:
    by_mode = Raw(lambda net, x: x @ net.w if net.training else x @ net.layers[0])
    by_input = Raw(lambda net, x: x @ net.w if x.sum() > 0 else x)
    words = "depends on the input or on the mode"
    assert words in watch_complaint(by_mode, [{"x": torch.randn(N, C)}])
    assert words in watch_complaint(by_input, [{"x": torch.ones(N, C)}, {"x": -torch.ones(N, C)}])
    with pytest.raises(NotTraceableError, match="depends on the input"):
        met_in(by_input, raw_op_at("w@0:0", ("w",)), {"x": -torch.ones(N, C)})
