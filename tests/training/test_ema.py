"""The average over steps: its weight, and that it changes places with the model's own weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surgeon.training.ema import Ema


def test_the_average_is_the_decayed_mean_with_a_short_memory_at_first() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    values = torch.randn(200, dtype=torch.float64).tolist()
    model.weight.data.fill_(values[0])
    average, expected = Ema(model, 0.9), values[0]
    for step, value in enumerate(values[1:], start=1):
        model.weight.data.fill_(value)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(average.shadow["weight"]) == pytest.approx(expected, rel=1e-12)


def test_both_sets_of_weights_come_back_from_a_swap() -> None:
    model = nn.Linear(3, 2)
    average = Ema(model, 0.9)
    kept = average.shadow["weight"].clone()
    nn.init.normal_(model.weight)
    own = model.weight.detach().clone()
    with average.swapped():
        assert torch.equal(model.weight, kept)
        assert torch.equal(average.shadow["weight"], own)
    assert torch.equal(model.weight, own)
    assert torch.equal(average.shadow["weight"], kept)
