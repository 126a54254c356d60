"""Matrix work is counted as torch counts it, also in a forward that takes derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from surgeon.training.costs import flops_of

ROWS = 5


class Energy(nn.Module):
    """Strains vectors by a leaf that the caller derives by."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor, strain: Tensor) -> Tensor:
        energy: Tensor = self.linear(x @ strain).square().sum()
        return energy


class Stress(nn.Module):
    """Hands that leaf to its child, and takes the derivative in its forward, as potentials do."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = Energy()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            strain = torch.eye(3, requires_grad=True)
            return torch.autograd.grad(self.energy(x, strain), strain)[0]


def flops(model: nn.Module) -> int:
    task: Any = object()  # without a forward of its own
    return flops_of(model, task, torch.ones(ROWS, 3))


def test_the_count_is_that_of_torch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(ROWS, 3))
    assert flops(model) == counter.get_total_flops() == 2 * ROWS * (3 * 4 + 4 * 2)


def test_a_forward_that_derives_by_what_its_child_was_given() -> None:
    """Two products forward, and back through the linear layer and to the strain one each."""
    assert flops(Stress()) == 2 * (2 * ROWS * 3 * 3 + 2 * ROWS * 3 * 4)
