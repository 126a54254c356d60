"""Optimisers of matrices in one line of anybody's own loop."""

from __future__ import annotations

from torch import nn

from surgeon.optim.adam import BETAS
from surgeon.optim.blocks import find_blocks
from surgeon.optim.orthogonalised import Muon
from surgeon.optim.preconditioned import EVERY, LARGEST, Soap
from surgeon.plan import Plan


def soap(
    model: nn.Module,
    plan: Plan | None = None,
    lr: float = 1e-3,
    *,
    betas: tuple[float, float] = BETAS,
    weight_decay: float = 0.0,
    every: int = EVERY,
    largest: int = LARGEST,
) -> Soap:
    """Return SOAP on the matrices inside a model's trainable weights, AdamW on all others.

    Let the learning rate rise over the first ``surgeon.optim.WARMUP`` steps or more.

    Args:
        model: the network, relaxed or not.
        plan: as :func:`surgeon.find` made it; needed only for layers that no adapter knows and whose weights have
            another form than two axes, see :func:`find_blocks`.
        lr: learning rate.
        betas: decay of the mean of gradients; and of the mean square and the covariances.
        weight_decay: decoupled.
        every: steps between refreshes of the bases.
        largest: sides above this are not preconditioned.

    Raises:
        PlanError: if the plan does not fit the model.
        UsageError: if a value is unusable.
    """
    weights = find_blocks(model, plan)
    optimizer = Soap([weight.parameter for weight in weights], lr, betas, 1e-8, weight_decay, every, largest)
    optimizer.use_blocks(weights)
    return optimizer


def muon(
    model: nn.Module,
    plan: Plan | None = None,
    lr: float = 1e-3,
    *,
    momentum: float = 0.95,
    betas: tuple[float, float] = BETAS,
    weight_decay: float = 0.0,
) -> Muon:
    """Return Muon on the matrices inside a model's trainable weights, AdamW on all others.

    Args:
        model: the network, relaxed or not.
        plan: as in :func:`soap`.
        lr: learning rate.
        momentum: decay of the mean of the gradients of matrices.
        betas: those of AdamW.
        weight_decay: decoupled.

    Raises:
        PlanError: if the plan does not fit the model.
        UsageError: if a value is unusable.
    """
    weights = find_blocks(model, plan)
    optimizer = Muon([weight.parameter for weight in weights], lr, momentum, betas, 1e-8, weight_decay)
    optimizer.use_blocks(weights)
    return optimizer
