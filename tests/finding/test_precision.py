"""Networks that ask for float32 in their forward run in float64 all the same, or it is said that they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.errors import PrecisionError
from surgeon.finding.precision import run_in_double


class Asking(nn.Module):
    """A linear map, something that computes in float32, and a linear map."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(3, 4), nn.Linear(4, 2), middle

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.middle(self.first(x)))
        return result


def into_zeros(x: Tensor) -> Tensor:
    result = torch.zeros(x.shape, dtype=torch.float32)
    result[:] = torch.sin(x)
    return result.add_(x.float())


ASKING: dict[str, Callable[[Tensor], Tensor]] = {
    "float": lambda x: torch.sin(x.float()),
    "a float32 softmax": lambda x: functional.softmax(x, -1, dtype=torch.float32),
    "to a dtype by position": lambda x: torch.sin(x.to(torch.float32)),
    "by the name of a type": lambda x: torch.sin(x.type("torch.FloatTensor")),
    "half": lambda x: torch.sin(x.half()).float(),
    "a pool that is written in place": into_zeros,
    "a constant": lambda x: torch.sin(x) @ torch.ones(4, 4, dtype=torch.float32),
    "and back": lambda x: torch.sin(x.float()).to(x.dtype),
    "complex": lambda x: torch.view_as_real(x.cfloat().exp()).sum(-1),
}


@pytest.mark.parametrize("middle", ASKING.values(), ids=ASKING.keys())
def test_requests_for_float32_are_answered(middle: Callable[[Tensor], Tensor]) -> None:
    net, x = Asking(middle), torch.randn(5, 3)
    twin = copy.deepcopy(net).double()
    assert run_in_double(twin, lambda: twin(x.double()), lambda: net(x)) == "answered"
    found = twin(x.double())
    assert found.dtype == torch.float64
    # rounding to float32 inside would show as steps: the derivative by differences would be far off at this size
    step = 1e-7 * torch.randn(5, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jvp(twin, x.double(), step)[1]
    torch.testing.assert_close(twin(x.double() + step) - found, jacobian, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(found.float(), net(x), rtol=2e-2, atol=2e-3)
    assert run_in_double(twin, lambda: twin(x.double())) == "answered"
    assert torch.get_default_dtype() == torch.float32


def test_a_network_that_follows_its_inputs_is_left_alone() -> None:
    twin = Asking(torch.sin).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    assert run_in_double(twin, lambda: twin(x)) == "plain"
    assert all("_compiled_call_impl" not in vars(module) for module in twin.modules())


def test_a_network_that_insists_is_told_of_and_left_alone() -> None:
    def insisting(x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError("float32 only")
        return x

    twin, x = Asking(insisting).double(), torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(PrecisionError, match="does not run in float64: it fails with TypeError: float32 only"):
        run_in_double(twin, lambda: twin(x))
    assert all("_compiled_call_impl" not in vars(module) for module in twin.modules())


def test_an_answer_that_makes_it_another_function_does_not_count() -> None:
    def by_bits(x: Tensor) -> Tensor:
        return x.to(torch.float32).view(torch.int32).bitwise_and(0xFF).reshape(5, -1)[:, :4].to(x.dtype)

    net, x = Asking(by_bits), torch.randn(5, 3)
    twin = copy.deepcopy(net).double()
    assert run_in_double(twin, lambda: twin(x.double()), lambda: net(x)) == "plain"


def test_an_error_leaves_no_mode_behind() -> None:
    twin = Asking(lambda x: x.float()[:, 7:].reshape(99)).double()
    with pytest.raises(PrecisionError):
        run_in_double(twin, lambda: twin(torch.randn(5, 3, dtype=torch.float64)))
    assert torch.zeros(1).float().dtype == torch.float32
