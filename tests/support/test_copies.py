"""Copies of models that hold what refuses to be copied."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from surgeon.support.copies import copied, lent_weights, traced_again


class Description:
    """Never changed, and not to be copied."""

    def __deepcopy__(self, memo: dict[int, object]) -> Description:
        raise TypeError("not to be copied")


class Described(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.kinds = {"in": [Description()]}
        self.kept = torch.ones(2)
        self.linear.register_forward_hook(self.double)

    def double(self, module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        return output * self.kept

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


def test_what_refuses_is_shared_and_all_else_is_its_own() -> None:
    model = Described()
    with pytest.raises(TypeError, match="not to be copied"):
        copy.deepcopy(model)
    twin = copied(model)
    assert isinstance(twin, Described)
    assert twin.kinds["in"][0] is model.kinds["in"][0]
    assert twin.kinds["in"] is not model.kinds["in"]
    x = torch.randn(3, 2)
    before = model(x).detach()
    with torch.no_grad():
        twin.linear.weight.zero_()
        twin.linear.bias.fill_(1)
        twin.kept.fill_(3)
    assert torch.equal(model(x), before)
    assert torch.equal(twin(x), torch.full((3, 2), 3.0))  # its hook is its own, too


def test_a_plain_model_is_copied_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.settings = {"a": [1]}
    twin = copied(model)
    assert twin.settings["a"] is not model.settings["a"]
    assert twin[0].weight is not model[0].weight
    marker = object()
    model.marker = marker
    assert copied(model, {id(marker): 7}).marker == 7


def test_lent_weights_are_copied_when_one_of_the_two_is_written() -> None:
    model = nn.Linear(2, 2)
    model.bias.data = torch.from_numpy(np.ones(2, np.float32))  # which torch cannot lend
    model.bias.requires_grad_(False)
    twin = copied(model, lent_weights(model))
    assert torch._C._is_cow_tensor(twin.weight)
    assert [parameter.requires_grad for parameter in twin.parameters()] == [True, False]
    before = [parameter.tolist() for parameter in model.parameters()]
    for parameter in twin.parameters():
        parameter.data.add_(1)
    assert [parameter.tolist() for parameter in model.parameters()] == before
    model.weight.data.zero_()
    assert twin.weight.tolist() == (torch.tensor(before[0]) + 1).tolist()


def test_what_cannot_be_copied_even_so_raises() -> None:
    model = nn.Linear(2, 2)
    model.activation = model.weight * 2
    with pytest.raises(RuntimeError, match="deepcopy"):
        copied(model)


def test_a_copy_has_the_keys_of_a_generated_module() -> None:
    """A plain deep copy makes a buffer of every constant that torch.fx left as an attribute."""
    traced = fx.symbolic_trace(WithTensorConstant())
    vars(traced)["_tensor_constant0"] = traced._buffers.pop("_tensor_constant0")
    assert copy.deepcopy(traced).state_dict().keys() != traced.state_dict().keys()
    model = nn.Sequential(traced)
    result = copied(model)
    assert result.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3)
    assert torch.equal(result(x), model(x))


class WithTensorConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x + torch.arange(3)


class Pickling(nn.Module):
    """Holds generated code that it pickles in order to be copied, as layers of e3nn do."""

    def __init__(self) -> None:
        super().__init__()
        self.code = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
        next(iter(self.code.graph.nodes)).meta["mark"] = "as it was made"

    def __getstate__(self) -> dict[str, Any]:
        modules = {name: module for name, module in self._modules.items() if name != "code"}
        return {**vars(self), "_modules": modules, "pickled": pickle.dumps(self.code)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        code = pickle.loads(state.pop("pickled"))
        super().__setstate__(state)
        self.code = code

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.code(x)
        return result


def marks(model: nn.Module) -> list[Any]:
    return [node.meta.get("mark") for node in model[0].code.graph.nodes]


def test_generated_code_is_not_traced_again_for_a_copy() -> None:
    model = nn.Sequential(Pickling())
    twin, again = copied(model), traced_again(model)
    assert marks(twin) == marks(model) != marks(again)
    x = torch.randn(3, 2)
    before = model(x).detach()
    assert torch.equal(twin(x), before)
    assert torch.equal(again(x), before)
    with torch.no_grad():
        for parameter in (*twin.parameters(), *again.parameters()):
            parameter.zero_()
    twin[0].code.graph.output_node().args = (next(iter(twin[0].code.graph.nodes)),)
    twin[0].code.recompile()
    assert torch.equal(twin(x), x)
    assert torch.equal(model(x), before)  # neither its weights nor its code are those of a copy
