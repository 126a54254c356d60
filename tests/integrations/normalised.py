"""A network with BatchNorm, whose statistics do not fit the clean model where the relaxed one gathered them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from surgeon.editing.branch import branches_of
from surgeon.editing.recalibration import recalibrate
from surgeon.editing.strip import strip
from tests.integrations.loops import Batch
from tests.tiny import Net


class Normalised(Net):
    """Gates its vectors by BatchNorm of their squared norms, as point-cloud networks do."""

    def __init__(self, hidden: int = 4) -> None:
        super().__init__(hidden)
        self.norm = nn.BatchNorm1d(hidden)

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        mixed = self.first(torch.cat([scalars, vectors.flatten(1)], 1))
        features = mixed[:, self.hidden :].unflatten(1, (self.hidden, 3))
        gates = torch.tanh(self.norm(features.square().sum(2)))
        result: Tensor = self.second((features * gates.unsqueeze(2)).flatten(1))
        return result


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return Normalised().double()


def expected_error(network: nn.Module, train: Sequence[Batch], held_out: Batch, anew: bool = True) -> float:
    """The error of a network, stripped if it is relaxed, with statistics taken anew or as training gathered them."""
    clean = copy.deepcopy(network)
    if branches_of(clean):
        strip(clean)
    if anew:
        recalibrate(clean, train, lambda model, batch: model(*batch[:2]))
    return float(functional.mse_loss(clean.eval()(*held_out[:2]), held_out[2]).detach())
