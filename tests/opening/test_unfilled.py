"""A network is built without its random weights if nothing but the checkpoint can tell, else in the plain way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from surgeon.files.reading import open_checkpoint
from surgeon.opening import models
from surgeon.opening.unfilled import build_unfilled
from surgeon.support.e3nn_compat import import_e3nn


class Counted:
    """A factory that counts its calls."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.make, self.calls = make, 0

    def __call__(self) -> nn.Module:
        self.calls += 1
        return self.make()


class Plain(nn.Module):
    """Weights under two names, a transposed one, buffers with values, and one that does not require a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.turned = nn.Parameter(torch.randn(4, 3).T)
        self.frozen = nn.Parameter(torch.rand(5), requires_grad=False)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("steps", torch.arange(7.0), persistent=False)
        self.register_buffer("drawn", torch.randn(3))


class Hidden(nn.Module):
    """What a state dict does not tell: each is random, or made of something that is."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)
        if what == "buffer":
            self.register_buffer("features", torch.randn(4), persistent=False)
        elif what == "attribute":
            self.features = torch.randn(4)
        elif what == "list":
            self.kept = [torch.rand(2), torch.rand(2)]
        elif what == "from a weight":
            self.register_buffer("norm", self.layer.weight.detach().norm(), persistent=False)
        elif what == "read":
            self.large = bool(self.layer.weight.abs().max() > 0.1)
        elif what == "filled":
            self.features = torch.zeros(4).normal_()
        elif what == "seeded":
            torch.manual_seed(5)
            self.features = torch.zeros(4).normal_()
        elif what == "views":
            flat = torch.randn(6)
            self.left, self.right = nn.Parameter(flat[:3]), nn.Parameter(flat[3:])
        else:
            raise AssertionError(what)


HIDDEN = ("buffer", "attribute", "list", "from a weight", "read", "filled", "seeded", "views")


def values(model: nn.Module) -> dict[str, Tensor]:
    """Return all tensors of a model, those that no state dict holds among them."""
    found = dict(model.state_dict()) | dict(model.named_buffers())
    for name, value in vars(model).items():
        several = value if isinstance(value, list) else [value]
        found |= {f"{name}.{i}": one for i, one in enumerate(several) if isinstance(one, Tensor)}
    return found


def test_random_weights_are_not_drawn() -> None:
    torch.manual_seed(0)
    factory, before = Counted(Plain), torch.get_rng_state()
    built, plain = build_unfilled(factory), Plain()
    assert factory.calls == 1
    assert not torch.equal(before, torch.get_rng_state()), "the plain call draws numbers"
    assert not any(tensor.is_meta for tensor in values(built).values())
    assert torch.equal(built.get_buffer("steps"), plain.get_buffer("steps"))
    assert torch.equal(built.get_buffer("norm.running_var"), torch.ones(6))
    for (name, mine), (other, theirs) in zip(built.named_parameters(), plain.named_parameters(), strict=True):
        assert (name, mine.stride(), mine.requires_grad) == (other, theirs.stride(), theirs.requires_grad)


def test_the_generator_is_left_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_unfilled(Plain)
    assert torch.equal(before, torch.get_rng_state())


def test_a_shared_weight_stays_shared_and_is_trained() -> None:
    built = build_unfilled(Plain)
    assert isinstance(built, Plain)
    built.load_state_dict(Plain().state_dict())
    assert built.first.weight is built.second.weight
    built.second(built.first(torch.ones(2, 6))).sum().backward()
    assert built.first.weight.grad is not None
    assert built.first.weight.grad.abs().max() > 0


@pytest.mark.parametrize("what", HIDDEN)
def test_what_the_state_dict_does_not_hold_is_as_in_a_plain_call(what: str) -> None:
    torch.manual_seed(3)
    plain = Hidden(what)
    torch.manual_seed(3)
    factory = Counted(lambda: Hidden(what))
    built = build_unfilled(factory)
    assert factory.calls == 2
    expected, found = values(plain), values(built)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_layer_is_built_in_the_plain_way() -> None:
    factory = Counted(lambda: nn.Sequential(nn.Linear(3, 3), torch.jit.script(nn.Linear(3, 3))))
    built = build_unfilled(factory)
    assert not any(tensor.is_meta for tensor in built.parameters())
    assert built(torch.ones(2, 3)).isfinite().all()
    assert factory.calls == 2


def test_a_factory_that_fails_fails_as_before() -> None:
    def fail() -> nn.Module:
        raise ValueError("no such width")

    with pytest.raises(ValueError, match="no such width"):
        build_unfilled(fail)


def test_what_is_no_module_is_returned() -> None:
    assert build_unfilled(lambda: None) is None


@pytest.mark.e3nn
def test_layers_of_e3nn_are_built_once() -> None:
    o3 = import_e3nn()
    factory = Counted(lambda: nn.Sequential(o3.Linear("8x0e + 4x1o", "8x0e + 4x1o"), nn.Linear(3, 3)))
    built = build_unfilled(factory)
    built.load_state_dict(factory.make().state_dict())
    assert factory.calls == 1
    assert built[0](torch.ones(2, 20)).isfinite().all()


def test_a_large_checkpoint_opens_without_random_numbers(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/net.pt"
    saved = Plain()
    torch.save(saved.state_dict(), path)
    for threshold, draws in ((1 << 30, True), (1, False)):
        monkeypatch.setattr(models, "_LARGE_BYTES", threshold)
        before = torch.get_rng_state()
        opened = models.find_model(open_checkpoint(path), build=Plain).model
        assert torch.equal(before, torch.get_rng_state()) is not draws
        assert all(torch.equal(value, opened.state_dict()[key]) for key, value in saved.state_dict().items())
