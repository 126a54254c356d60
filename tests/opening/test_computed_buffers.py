"""Tensors that a model computes of its weights in eval mode (as escnn does) come from the weights, not from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from surgeon.files.checkpoint import Checkpoint
from surgeon.opening.loading import computed_again, load_into, with_computed
from surgeon.support.modes import drop_computed


class Cached(nn.Module):
    """Applies the square of its weight, which it keeps in eval mode; a new one has a place for it, too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("square", torch.zeros(3))

    def train(self, mode: bool = True) -> Cached:
        if mode:
            vars(self)["_buffers"].pop("square", None)
        elif self.training:
            self.register_buffer("square", self.weight.detach() ** 2)
        super().train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight**2 if self.training else self.get_buffer("square"))


def file_of(model: nn.Module, **changed: Tensor) -> Checkpoint:
    return Checkpoint(Path("net.pt"), {**model.state_dict(), **changed}, "state_dict")


def test_a_file_of_eval_mode_opens_in_a_model_of_any_mode() -> None:
    saved = nn.Sequential(Cached()).eval()
    stale = {**saved.state_dict(), "0.square": torch.ones(3)}
    for model in (nn.Sequential(Cached()), nn.Sequential(Cached()).train(), nn.Sequential(Cached()).eval()):
        for tensors in (stale, {"0.weight": stale["0.weight"]}):
            load_into(model, tensors, "net.pt")
            assert list(model.state_dict()) == ["0.weight"]
            assert torch.equal(model.eval()(torch.ones(3)), saved(torch.ones(3)))


def test_it_is_said_whether_the_file_has_what_its_weights_give() -> None:
    saved = nn.Sequential(Cached()).eval()
    model = nn.Sequential(Cached())
    load_into(model, saved.state_dict(), "net.pt")
    told = computed_again(model, file_of(saved).tensors)
    assert "1 (0.square) of its tensors are what the model computes" in told
    assert "differ from that by 0 of its size" in told
    assert "not those of its weights" not in told
    assert "not those of its weights" in computed_again(model, file_of(saved, **{"0.square": torch.ones(3)}).tensors)
    assert computed_again(model, {"0.weight": model.state_dict()["0.weight"]}) == ""


def test_a_result_has_what_its_original_has() -> None:
    model, trained = nn.Sequential(Cached()), nn.Sequential(Cached()).train()
    assert drop_computed(model) == {"0.square"}
    assert list(with_computed(model, file_of(trained))) == ["0.weight"]
    found = with_computed(model, file_of(nn.Sequential(Cached()).eval()))
    assert torch.equal(found["0.square"], found["0.weight"] ** 2)
    assert model.training
    assert drop_computed(nn.Linear(2, 2).eval()) == set()
