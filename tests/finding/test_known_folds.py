"""What the weights of one op take in is tried out on the next op that looks alike, and believed only if it holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes
from surgeon.finding import fold
from surgeon.finding.fold import Known, with_fold
from surgeon.plan import Site

RHO = axes(parse_group("SO3"), "c v", {"c": 2})
SITE = Site("", "x", "linear", "", RHO, RHO, (6, 6), axes_in=(-2, -1), axes_out=(-2, -1))


class Masked(nn.Module):
    """Mix two channels of vectors; the mask, no parameter, says which entries of the matrix are used."""

    def __init__(self, mask: Any) -> None:
        super().__init__()
        self.weight, self.mask = nn.Parameter(torch.randn(2, 2)), torch.tensor(mask)

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * self.mask) @ x


def noted(mask: Any, known: Known) -> str:
    site = with_fold(SITE, Masked(mask), [{"x": torch.randn(5, 2, 3)}], (), known=known)
    assert site.fold == {"parameters": ["weight"], "shape": [1, 2, 3], "given": {"mapping": {}}}
    return site.fold_note


def test_an_op_that_looks_alike_is_not_solved_again(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    assert noted(1.0, known) == ""
    monkeypatch.setattr(fold, "_fold_map", None)
    assert noted(1.0, known) == ""


@pytest.mark.parametrize("mask", [3.0, [[1.0, 0.0], [0.0, 1.0]]])
def test_one_that_only_looks_alike_is(mask: Any) -> None:
    known = Known()
    noted(1.0, known)
    assert (
        noted(mask, known)
        == noted(mask, Known())
        == ("" if mask == 3.0 else "its weights reach 2 of 4 intertwiner dimensions")
    )
