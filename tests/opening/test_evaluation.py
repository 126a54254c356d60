from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.opening.evaluation import evaluate, is_better, outputs_on, rehearse
from surgeon.support.modes import in_evaluation_mode, names_in_evaluation


class Uneven:
    """Two batches of different sizes; the loss is a mean per batch, the metric a sum with a count."""

    def batches(self, split: str, seed: int) -> list[Tensor]:
        return [] if split == "test" else [torch.tensor([1.0]), torch.tensor([2.0, 4.0, 9.0])]

    def loss(self, outputs: Tensor, batch: Tensor) -> Tensor:
        return outputs.mean()

    def metrics(self, outputs: Tensor, batch: Tensor) -> dict[str, tuple[Any, Any]]:
        return {"total": (outputs.sum(), outputs.numel())}


def test_a_metric_is_the_sum_of_sums_over_the_sum_of_counts() -> None:
    found = evaluate(nn.Identity(), Uneven(), "validation")
    assert found["total"] == 4.0  # a mean of means would be 3
    assert found["loss"] == 3.0  # once per batch


def test_an_empty_split_and_an_empty_count() -> None:
    with pytest.raises(TaskError, match="no batch in the split 'test'"):
        evaluate(nn.Identity(), Uneven(), "test")

    class Nothing(Uneven):
        def metrics(self, outputs: Tensor, batch: Tensor) -> dict[str, tuple[Any, Any]]:
            return {"hits": (0.0, 0.0)}

    with pytest.raises(TaskError, match="positive count on the validation split, got none for hits"):
        evaluate(nn.Identity(), Nothing(), "validation")


def test_the_model_is_evaluated_in_eval_mode_and_put_back_module_by_module() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Identity())
    model[1].eval()
    first, second = (outputs_on(model, Uneven(), [torch.ones(100)])[0] for _ in range(2))
    assert torch.equal(first, second)
    assert [module.training for module in (model, model[0], model[1])] == [True, True, False]
    with pytest.raises(ZeroDivisionError), in_evaluation_mode(model):
        1 / 0  # noqa: B018
    assert model[0].training
    assert not torch.equal(model(torch.ones(100)), model(torch.ones(100)))


class OnlyInTraining(nn.BatchNorm1d):
    """Its output can be differentiated in training alone, as forces of some potentials."""

    def forward(self, x: Tensor) -> Tensor:
        result = super().forward(x.to(self.weight))
        return result if self.training else result.detach()


class NeverInTraining(OnlyInTraining):
    def train(self, mode: bool = True) -> NeverInTraining:
        return super().train(False)


def test_a_step_is_rehearsed_in_training_mode_and_changes_nothing() -> None:
    class Wide(Uneven):
        def batches(self, split: str, seed: int) -> list[Tensor]:
            return [torch.ones(3, 1, dtype=torch.float64)]

    model = OnlyInTraining(1).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    rehearse(model, Wide())
    assert not model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with pytest.raises(TaskError, match="a step fails with RuntimeError"):
        rehearse(NeverInTraining(1), Wide())


class Caching(nn.Module):
    """Keeps a tensor for eval mode alone, as some libraries of steerable convolutions do."""

    def train(self, mode: bool = True) -> Caching:
        self._buffers.pop("filter", None)
        if not mode:
            self.register_buffer("filter", torch.ones(1))
        return super().train(mode)


def test_what_is_kept_for_eval_mode_alone_goes_when_it_is_left() -> None:
    model = nn.Sequential(Caching())
    with in_evaluation_mode(model):
        assert list(model.state_dict()) == ["0.filter"]
    assert names_in_evaluation(model) == {"0.filter"}
    assert list(model.state_dict()) == []
    assert model[0].training
    wrapped = nn.Sequential(model.eval())  # itself in training mode
    with in_evaluation_mode(wrapped):
        pass
    assert wrapped.training
    assert not model.training
    assert list(model.state_dict()) == ["0.filter"]


def test_gradients_inside_the_model_are_possible() -> None:
    class Force(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad(x.square().sum(), x)[0]

    assert evaluate(Force(), Uneven(), "train")["total"] == 8.0
    assert not outputs_on(Force(), Uneven(), [torch.ones(1)])[0].requires_grad


@pytest.mark.parametrize(
    ("value", "than", "direction", "expected"),
    [
        (1.0, 2.0, "min", True),
        (2.0, 1.0, "min", False),
        (1.0, 1.0, "min", False),
        (2.0, 1.0, "max", True),
        (1.0, 2.0, "max", False),
        (1.0, math.nan, "max", True),
        (math.nan, 1.0, "min", False),
        (math.nan, math.nan, "min", False),
        (-math.inf, 1.0, "min", False),
    ],
)
def test_better(value: float, than: float, direction: str, expected: bool) -> None:
    assert is_better(value, than, direction) is expected
