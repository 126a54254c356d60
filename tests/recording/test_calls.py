"""What chosen modules are given and return is copied, while somebody asks for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surgeon.recording.calls import captured_calls


def test_calls_are_captured_by_name_and_only_while_open() -> None:
    op = nn.Linear(4, 2)
    x = torch.randn(3, 4, requires_grad=True)
    with captured_calls({"op": op}) as calls:
        op(x)
        op(input=2 * x)
    op(x)
    (first, y), (second, _) = calls["op"]
    assert [list(first), list(second)] == [["input"], ["input"]]
    assert torch.equal(second["input"], 2 * x.detach())
    assert torch.equal(y, op(x).detach())
    assert not first["input"].requires_grad
    assert not y.requires_grad
    assert not op._forward_pre_hooks


def test_hooks_go_even_if_the_model_fails() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(RuntimeError), captured_calls({"0": model[0]}):
        model(torch.ones(1, 3))
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks
