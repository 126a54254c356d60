"""What checking a plan leaves behind: nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.testing.soundness import Model, check_plan


class Counting(nn.Module):
    """A layer that counts its calls, in a buffer that it writes to and in one that it replaces."""

    written: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4, bias=False, dtype=torch.float64)
        self.register_buffer("written", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.written += 1
        self.replaced = self.replaced + 1
        y: Tensor = self.mix(x)
        return y


def test_what_a_forward_writes_to_buffers_is_put_back() -> None:
    model, x = Counting(), torch.randn(9, 3, 4, dtype=torch.float64)

    def act(g: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("ij,njc->nic", g, x)

    plan = surgeon.find(model, "SO3", x, adapters={}, act=act, act_output=act)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    check_plan(Model(model, (x,), Symmetry(parse_group("SO3"), act, act)), plan)
    assert [site.name for site in plan.sites] == ["mix"]
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
