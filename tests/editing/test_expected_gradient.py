"""On data with the symmetry the expected gradient of W at W = 0 is an intertwiner (docs/theory.md)."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from torch import Tensor, nn

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import average
from surgeon.support.modes import default_dtype

pytestmark = pytest.mark.e3nn


class Net(nn.Module):
    """Vectors and scalars to one vector, with a product in between so that features are no linear map of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = o3.Linear("1x0e+2x1o", "4x0e+4x1o")
        self.product = o3.FullyConnectedTensorProduct("4x0e+4x1o", "4x0e+4x1o", "3x0e+3x1o")
        self.last = o3.Linear("3x0e+3x1o", "1x1o")

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        found: Tensor = self.last(self.product(features, features))
        return found


def turned(g: Tensor, x: Tensor) -> Tensor:
    """Turn the vectors behind at most one scalar."""
    scalars = x.shape[1] % 3
    vectors = x[:, scalars:].unflatten(1, (-1, 3))
    return torch.cat([x[:, :scalars], (vectors @ g.T).flatten(1)], 1)


@pytest.mark.parametrize("drift", [0.0, 1.0])
def test_the_mean_over_a_turned_batch_is_an_intertwiner(drift: float) -> None:
    """The 24 rotations of a cube see the same intertwiners between scalars and vectors as all rotations."""
    torch.manual_seed(3)
    with default_dtype(torch.float64):  # constants of e3nn to all their digits
        model = Net()
    x, y = torch.randn(6, 7, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    plan = surgeon.find(model, "SO3", x)
    relaxation = surgeon.relax(model, plan, dense=True)
    relaxation.set_theta(1.0)
    constant = drift * torch.eye(3, dtype=torch.float64)[0]
    losses = [
        (model(turned(g, x)) - turned(g, y) - constant).square().mean() for g in parse_group("OCTA").all_elements()
    ]
    torch.stack(losses).mean().backward()
    assert len(losses) == 24
    for site in plan.sites:
        found = relaxation.branches[site.key].weight.grad
        assert found is not None
        breaking = found - average(found, site.rho_out, site.rho_in)
        if drift == 0:
            assert breaking.norm() < 1e-12 * found.norm()
        else:
            assert breaking.norm() > 1e-3 * found.norm()
