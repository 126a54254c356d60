"""Linearity, equivariance and foldability of single ops, on inputs that would hide a lie."""

from __future__ import annotations

import torch
from torch import nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, trivial
from surgeon.finding.annotation_check import SiteCheck
from surgeon.registry import Proposal

GROUP = parse_group("SO2")
VECTORS, SCALARS = axes(GROUP, "c v", {"c": 2}), trivial(GROUP, 4)
ZERO = {"input": torch.zeros(3, 4)}


def linear(bias: bool = False) -> nn.Linear:
    op = nn.Linear(4, 4, bias=bias)
    with torch.no_grad():
        op.weight.copy_(torch.kron(torch.randn(2, 2), torch.eye(2)))
    return op


def test_an_intertwiner_holds_and_a_random_matrix_does_not() -> None:
    proposal = Proposal("input", "linear", VECTORS, VECTORS)
    residual, refusal = SiteCheck(GROUP)(linear(), proposal, ZERO)
    assert (residual < 1e-6, refusal) == (True, None)
    # Features that are 0 in the sample would hide both of these.
    for wrong in (nn.Linear(4, 4, bias=False), linear(bias=True)):
        refusal = SiteCheck(GROUP)(wrong, proposal, ZERO)[1]
        assert refusal is not None
        assert refusal.coverage == "not equivariant"
        assert refusal.reason.startswith("not equivariant as labelled")


def test_a_bias_on_invariants_is_allowed_and_a_wrong_width_is_named() -> None:
    proposal = Proposal("input", "linear", SCALARS, SCALARS)
    assert SiteCheck(GROUP)(nn.Linear(4, 4), proposal, ZERO)[1] is None
    refusal = SiteCheck(GROUP)(nn.Linear(5, 5), proposal, {"input": torch.zeros(3, 5)})[1]
    assert refusal is not None
    assert "its input has shape (3, 5)" in refusal.reason


def test_an_op_that_cannot_be_run_is_a_complaint_not_a_crash() -> None:
    residual, refusal = SiteCheck(GROUP)(nn.Linear(4, 4), Proposal("nothing", "", SCALARS, SCALARS), ZERO)
    assert residual == float("inf")
    assert refusal is not None
    assert "could not be checked" in refusal.reason
