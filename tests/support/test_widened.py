"""Tests of weights in float64 whose numbers another model holds."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from surgeon.finding.weight_usage import Ties
from surgeon.support.modes import default_dtype
from surgeon.support.widened import LARGE, Widened, in_double, set_values, values_of, weights_held_as

WIDE = 256
assert WIDE**2 >= LARGE


@pytest.fixture(params=[torch.float32, torch.float64])
def held(request: pytest.FixtureRequest) -> Tensor:
    return torch.randn(WIDE, WIDE, generator=torch.Generator().manual_seed(0), dtype=request.param)


def networks() -> tuple[nn.Sequential, nn.Sequential]:
    """Return a float32 network, whose weights are neighbours, and a float64 one of its weights that holds none."""
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE, bias=False))
    for layer, weight in zip((own[0], own[2]), torch.randn(2, WIDE, WIDE) / WIDE**0.5, strict=True):
        layer.weight.data = weight
    with default_dtype(torch.float64), weights_held_as(torch.float32):
        twin = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, WIDE, bias=False))
    with torch.no_grad():
        for value, given in zip(twin.state_dict().values(), own.state_dict().values(), strict=True):
            value.copy_(in_double(given))
    return own, twin


def test_a_network_computes_and_differentiates_as_a_cast_one_and_holds_nothing() -> None:
    x = torch.randn(3, 2, WIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own, twin = networks()
    cast = copy.deepcopy(own).double()
    assert not Ties(twin).of("0")
    for weight, source in zip(twin.parameters(), own.parameters(), strict=True):
        assert weight.dtype == torch.float64
        assert isinstance(weight, Widened) == (source.numel() >= LARGE)
        assert not isinstance(weight, Widened) or weight.data_ptr() == source.data_ptr()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = twin(x)
    assert all(isinstance(each, Widened) for each in kept if each.numel() >= LARGE)
    outputs = [cast(x), output]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for weight, expected in zip(twin.parameters(), cast.parameters(), strict=True):
        assert torch.equal(weight.grad, expected.grad)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.mul_(2),
        lambda w: w[3:5].add_(1),
        lambda w: w.T[0].zero_(),
        lambda w: w.data.copy_(w.flip(0)),
        lambda w: w.detach().unbind(1)[4].fill_(2),
        lambda w: w.view(-1)[::3].sub_(w.clone().view(-1)[::3]),
        lambda w: torch._foreach_add_([w], 1.0),
        lambda w: torch.add(w, 1, out=w),
        lambda w: w.__setitem__((0, slice(None)), 7.0),
    ],
)
def test_what_is_written_is_as_in_any_tensor_and_the_source_keeps_its_numbers(held: Tensor, change: object) -> None:
    before, cast, weight = held.clone(), held.to(torch.float64, copy=True), in_double(held)
    assert weight[0].tolist() == weight.detach().numpy()[0].tolist() == cast[0].tolist()
    views = [(each[1:].T, each.clone(), copy.deepcopy(each)) for each in (cast, weight)]
    assert callable(change)
    with torch.no_grad():
        change(cast)
        change(weight)
    assert torch.equal(weight, cast)
    assert torch.equal(held, before)
    assert all(torch.equal(one, other) for one, other in zip(*views, strict=True))


def test_values_are_put_back_without_a_copy_and_given_rounded(held: Tensor) -> None:
    weight = in_double(held)
    before = values_of(weight)
    assert before.data_ptr() == held.data_ptr()
    set_values(weight, weight + 1)
    assert torch.equal(weight, (held.double() + 1).to(held.dtype).double())
    set_values(weight, before)
    assert weight.data_ptr() == held.data_ptr()


def test_a_write_that_changes_the_shape_is_refused(held: Tensor) -> None:
    with pytest.raises(NotImplementedError, match="another model's"):
        in_double(held).t_()


def test_random_weights_of_a_twin_are_drawn_again_when_they_are_read() -> None:
    """As a plain network would draw them, and what is drawn after them, too; until they are read none are held."""
    found = []
    for held_as in (weights_held_as(torch.float32), nullcontext()):
        torch.manual_seed(0)
        with default_dtype(torch.float64), held_as:
            layer, zeros = nn.Linear(WIDE, WIDE), nn.ParameterList([torch.zeros(WIDE, WIDE)])
        found.append([layer.weight, zeros[0], torch.randn(3)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert [each.untyped_storage().nbytes() for each in found[0][:2]] == [8, 8]
    with torch.no_grad():
        expected = found[1][0] * 2
        assert torch.equal(found[0][0].mul_(2), expected.float().double())
