"""Sizes of grids on which windows do not lie evenly are named, with sizes on which they do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.finding.windows import uneven_windows
from surgeon.recording.record import record
from tests.families.awkward.broken import BROKEN
from tests.families.awkward.test_breaks import search


class Shrinking(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings, self.weight = settings, torch.ones(1, 1, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        if "kernel_size" in self.settings:
            return functional.max_pool2d(x, **self.settings)
        return (
            functional.pad(x, **self.settings)
            if "pad" in self.settings
            else functional.conv2d(x, self.weight, **self.settings)
        )


@pytest.mark.parametrize(
    ("size", "settings", "words"),
    [
        (
            8,
            {"stride": 2, "padding": 1},
            "of 3, in steps of 2 with padding 1, end 1 points earlier .* evenly on 7 or 9",
        ),
        (8, {"stride": 3}, "padding 0, end 2 points earlier .* evenly on 6 or 9"),
        (8, {"stride": 4, "dilation": 2}, "windows of 5, in steps of 4 .* end 3 points earlier .* evenly on 5 or 9"),
        (7, {"kernel_size": 2}, "windows of 2, in steps of 2 .* evenly on 6 or 8"),
        (7, {"kernel_size": 3, "stride": 2, "padding": 1}, ""),
        (8, {"stride": 1, "padding": 1}, ""),
        (8, {"pad": (0, 1, 0, 1)}, "pads 0 points before a grid and 1 after"),
        (8, {"pad": (1, 1, 1, 1)}, ""),
    ],
)
def test_sizes_are_named_on_which_turned_windows_are_the_same(size: int, settings: dict[str, Any], words: str) -> None:
    module, x = Shrinking(**settings), torch.randn(1, 1, size, size)
    said = uneven_windows(record(module, x))
    turned = module(x.flip(-1, -2)).flip(-1, -2)
    assert torch.allclose(turned, module(x)) == (not said)
    assert len(said) == (1 if words else 0)
    if words:
        assert re.search(words, said[0])


def test_a_break_names_the_sizes() -> None:
    pooling = next(broken for broken in BROKEN if broken.case.name == "pooling")
    found = search(pooling.case)
    assert found.first is not None
    assert "they lie evenly on 8 or 10" in "\n".join(found.told())
