"""Networks of e3nn that are built more than once: searches and moments are not made again, their results are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.support.e3nn_compat import import_e3nn, results_kept
from surgeon.support.modes import default_dtype

pytestmark = pytest.mark.e3nn


def product(dtype: torch.dtype = torch.float32, scalars: int = 3) -> Any:
    """Return a tensor product with two paths and a constant, whose weights follow the random numbers of now."""
    o3: Any = import_e3nn()
    with default_dtype(dtype):
        return o3.FullyConnectedTensorProduct(f"{scalars}x0e+2x1o", "1x0e+1x1o+1x2e", "2x0e+2x1o")


def generated(layer: nn.Module) -> list[torch.fx.GraphModule]:
    """Return what e3nn has generated in a layer."""
    return [module for module in layer.modules() if isinstance(module, torch.fx.GraphModule)]


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Count the searches for contractions, in e3nn's own code and not in what the tests remember of it."""
    import_e3nn()
    from e3nn.o3._tensor_product import _codegen, _tensor_product

    own, found = _codegen.optimize_einsums_full, list[Any]()

    def search(*arguments: Any) -> Any:
        found.append(arguments)
        return own(*arguments)

    monkeypatch.setattr(_codegen, "optimize_einsums_full", search)
    writes = [_codegen.codegen_tensor_product_left_right]
    monkeypatch.setattr(_tensor_product, "_CODEGEN_PROVIDERS_LEFT_RIGHT", writes, raising=False)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_that_is_built_again_is_as_if_searched(searches: list[Any], dtype: torch.dtype) -> None:
    with results_kept():
        product()
    count = len(searches)
    with results_kept():
        again = product(dtype)
    assert len(searches) == count > 0
    fresh = product(dtype)
    assert len(searches) > count  # e3nn's own search is back
    again.load_state_dict(fresh.state_dict())
    x, y = torch.randn(4, 9, dtype=dtype), torch.randn(4, 9, dtype=dtype)
    assert torch.equal(again(x, y), fresh(x, y))
    constants = [dict(each.named_buffers()) for layer in (again, fresh) for each in layer.modules()]
    half = len(constants) // 2
    for left, right in zip(constants[:half], constants[half:], strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left)
    assert [each.code for each in generated(again)] == [each.code for each in generated(fresh)]


def test_other_sizes_are_searched_and_no_layer_shares_its_graph(searches: list[Any]) -> None:
    with results_kept():
        first = product()
        count = len(searches)
        assert product(scalars=4)(torch.randn(2, 10), torch.randn(2, 9)).shape == (2, 8)
        assert len(searches) > count
        for each in generated(first):
            each.graph.find_nodes(op="output")[0].args = (each.graph.find_nodes(op="placeholder")[0],)
            each.recompile()
        again = product()
    x, y = torch.randn(2, 9), torch.randn(2, 9)
    assert again(x, y).shape == (2, 8)


def halved(x: torch.Tensor) -> torch.Tensor:
    """Not a function of torch: it may do something else the next time."""
    return x / 2


def test_the_moment_of_an_activation_of_torch_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import_e3nn()
    from e3nn.math import _normalize_activation as normalising

    own, asked = normalising.moment, list[Any]()

    def moment(function: Any, *arguments: Any, **named: Any) -> Any:
        asked.append(function)
        return own(function, *arguments, **named)

    monkeypatch.setattr(normalising, "moment", moment)
    own_state = (halved, nn.PReLU(init=0.4, dtype=torch.float64))
    functions = (torch.tanh, nn.functional.silu, nn.ELU(0.5), nn.ELU(2.0), *own_state)
    with results_kept():
        first = [normalising.normalize2mom(function).cst for function in functions]
        again = [normalising.normalize2mom(copy.deepcopy(function)).cst for function in functions]
    assert [str(function) for function in asked] == [str(function) for function in (*functions, *own_state)]
    assert normalising.moment is moment
    assert first == again == [normalising.normalize2mom(function).cst for function in functions]
    assert len(set(first)) == len(functions)
