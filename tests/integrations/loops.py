"""A small network, its batches, and the loop by hand that every integration is compared with."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

import surgeon
from surgeon.plan import StripMode
from surgeon.training.weighting import PenaltyScale, PenaltyWeight
from tests.tiny import Net

Batch = tuple[Tensor, Tensor, Tensor]
RATE = 1e-2


def network(hidden: int = 4, seed: int = 0) -> nn.Module:
    """In float64, so that only a different computation makes a difference."""
    torch.manual_seed(seed)
    return Net(hidden).double()


def samples(count: int, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    scalars = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    vectors = torch.randn(count, 2, 3, generator=generator, dtype=torch.float64)
    return scalars, vectors, vectors[:, 0] * scalars[:, :1] + 0.3 * vectors[:, 1]


def batches(count: int, size: int = 8) -> list[Batch]:
    parts = [tensor.split(size) for tensor in samples(count * size)]
    return list(zip(*parts, strict=True))


def plain_loop(
    model: nn.Module,
    data: Sequence[Batch],
    *,
    parts: int = 1,
    weight: float = 0.01,
    scale: PenaltyScale = "relative",
    mode: StripMode = "drop",
    factor: float = 0.1,
    clip: float | None = None,
    mean_of_all: bool = True,
) -> dict[str, Tensor]:
    """Relax, train by AdamW, strip; ``parts`` batches make one step, and a shorter rest is divided by its own number
    of batches unless ``mean_of_all``. Returns the state dict."""
    model = copy.deepcopy(model)
    relaxation = surgeon.relax(model, surgeon.find(model, "O3", *data[0][:2]), mode=mode)
    relaxation.enable_penalty(weight > 0)
    groups = [
        {"params": relaxation.base_parameters()},
        {"params": relaxation.branch_parameters(), "lr": factor * RATE},
    ]
    optimizer, lam = torch.optim.AdamW(groups, lr=RATE), PenaltyWeight(weight, scale)
    steps = math.ceil(len(data) / parts)
    for step in range(steps):
        relaxation.set_progress(step / steps)
        taken, total = data[step * parts : (step + 1) * parts], 0.0
        for scalars, vectors, target in taken:
            loss = functional.mse_loss(model(scalars, vectors), target) / (parts if mean_of_all else len(taken))
            loss.backward()
            total += float(loss.detach())
        if weight:
            (lam(total) * relaxation.penalty()).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(relaxation.base_parameters(), clip)
            torch.nn.utils.clip_grad_norm_(relaxation.branch_parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    relaxation.set_progress(1.0)
    surgeon.strip(model)
    return model.state_dict()


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Between two state dicts with the same keys in the same order."""
    assert list(one) == list(other)
    return max(float((a - b).abs().max()) for a, b in zip(one.values(), other.values(), strict=True) if a.numel())
