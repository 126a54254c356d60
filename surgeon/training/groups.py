"""The groups of weights that get learning rates of their own: base, branches, gauge, theta."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.representations.core import Representation
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.errors import TrainingError
from surgeon.optim.blocks import WeightBlocks, find_blocks
from surgeon.plan import Plan
from surgeon.training.arms import Arm
from surgeon.training.settings import FinetuneSettings


def parameter_groups(
    model: nn.Module, added: Relaxation | WeightUpdates | None, arm: Arm, settings: FinetuneSettings
) -> list[dict[str, Any]]:
    """Return the optimiser's groups, each with its ``name`` and ``base_rate``.

    "base" are the model's own weights; "branch" the weights of branches; "gauge" added weights that can only do what
    the base weights could do themselves.

    Raises:
        TrainingError: if there is nothing to train.
    """
    rate = settings.chosen_rate
    extra = [] if added is None else added_parameters(added)
    known = {id(parameter) for parameter in extra}
    base = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    if not base and not (extra and settings.freeze_base):
        raise TrainingError("expected trainable parameters, but all of the model are frozen: unfreeze some")
    groups: list[dict[str, Any]] = []
    if base:
        groups.append({"params": base, "name": "base", "base_rate": rate})
    if extra:
        factor = settings.gauge_factor if arm.updates else settings.branch_factor
        name = "gauge" if arm.updates else "branch"
        group: dict[str, Any] = {"params": extra, "name": name, "base_rate": rate * factor}
        if settings.normalisation == "block" and isinstance(added, Relaxation):
            group["blocks"] = _blocks(added)
        groups.append(group)
    return groups


def optimised_matrices(
    model: nn.Module, relaxation: Relaxation | None, plan: Plan | None, sharded: bool
) -> list[WeightBlocks]:
    """Return the matrices inside the trainable weights of a network, with or without branches.

    Raises:
        TrainingError: if the weights are sharded.
    """
    if sharded:
        raise TrainingError(
            "expected whole weights for an optimizer that treats them as matrices, but FSDP shards them: choose adamw, "
            "or launch without FSDP"
        )
    if relaxation is None:
        return find_blocks(model, plan)
    folds = {key: branch.fold_map for key, branch in relaxation.branches.items()}
    return find_blocks(model, relaxation.plan, folds=folds)


def added_parameters(added: Relaxation | WeightUpdates) -> list[nn.Parameter]:
    """Return the weights that an arm adds to a network."""
    return added.branch_parameters() if isinstance(added, Relaxation) else list(added.parameters())


def freeze_base(model: nn.Module, added: Relaxation | WeightUpdates) -> list[nn.Parameter]:
    """Let the added weights alone be trained; return those that could be trained before."""
    kept = {id(parameter) for parameter in added_parameters(added)}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in kept]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen


def theta_group(relaxation: Relaxation, settings: FinetuneSettings) -> dict[str, Any]:
    """Return the group of the coefficients that are learned, called "theta"."""
    thetas = [branch.theta for branch in relaxation.branches.values()]
    return {"params": thetas, "name": "theta", "base_rate": settings.chosen_rate, "weight_decay": 0.0}


def _blocks(relaxation: Relaxation) -> list[tuple[Tensor, Tensor]]:
    """Return, for every weight of every branch, the blocks of its first two axes."""
    found = []
    for site in relaxation.plan.sites:
        out, into = _block_numbers(site.rho_out), _block_numbers(site.rho_in)
        if site.rank is None:
            found.append((out, into))
        else:  # A and B; the rank is one block
            whole = torch.zeros(site.rank, dtype=torch.long)
            found += [(whole, into), (out, whole)]
    return found


def _block_numbers(rho: Representation) -> Tensor:
    numbers = torch.zeros(rho.dimension, dtype=torch.long)
    for number, block in enumerate(rho.blocks):
        numbers[block.start : block.start + block.size] = number
    return numbers
