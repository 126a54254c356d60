"""Take the branches out: drop them, or fold what the base weights can hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surgeon.branch import Branch, branches_child, branches_of
from surgeon.errors import SurgeryError, UsageError
from surgeon.sharding import sharded_like
from surgeon.surgery.insert import detach
from surgeon.surgery.relaxation import Relaxation
from surgeon.types import SiteRecord, StripMode


def strip(relaxed: nn.Module | Relaxation, mode: StripMode | None = None) -> tuple[SiteRecord, ...]:
    """Remove all branches, in place; nothing is left behind.

    Args:
        relaxed: the relaxed model or its handle.
        mode: "drop" discards the branches (the paper's projection); "fold" first adds ``theta_par P_op(W)`` to the
            op's own weights. Default: the mode with which the branches were inserted.

    Returns:
        Per site: the norm of W, of the folded part, and of what was lost (the effective matrix minus the folded one),
        all Frobenius norms. ``lost`` is exactly the change of the op's linear map.

    Raises:
        UsageError: if the mode is unknown; the model is unchanged.
        SurgeryError: if there is no branch, or a branch holds a non-finite number; the model is unchanged then.
    """
    if mode not in ("drop", "fold", None):
        raise UsageError(f"expected mode 'drop' or 'fold', got {mode!r}")
    model = relaxed.model if isinstance(relaxed, Relaxation) else relaxed
    branches = branches_of(model)
    if not branches:
        raise SurgeryError("expected a model with branches, but it has none: it may be stripped already")
    for key, branch in branches.items():
        if not torch.isfinite(branch.weight).all():
            raise SurgeryError(
                f"expected finite weights in the branch at {key!r}, got NaN or infinity: nothing was stripped, "
                "go back to an earlier checkpoint"
            )
    found = ((name, op, branches_child(op)) for name, op in model.named_modules())
    for key, branch in branches.items():
        if (mode or branch.mode) == "fold" and not branch.theta_was_set and branch.weight.any():
            raise SurgeryError(
                f"expected theta to be set before folding, but that of the branch at {key!r} was not: theta is not "
                "part of the state dict, so call set_progress(1.0) after loading one, or strip by 'drop'"
            )
    ops = [(name, op, child) for name, op, child in found if child is not None]
    records, changes = [], []
    with torch.no_grad():
        for name, op, child in ops:
            for slot, branch in child.items():
                folded = _folded_part(branch, mode or branch.mode)
                records.append(_record(name, slot, branch, folded))
                if folded is not None and branch.fold_map is not None:
                    parameter = op.get_parameter(branch.fold_map.parameter)
                    change = branch.fold_map.weight_change(folded, parameter.numel())
                    changes.append((parameter, change.reshape(parameter.shape).to(parameter)))
        # Nothing was touched so far: from here on nothing can fail half-way.
        for parameter, change in changes:
            parameter.add_(change)
    for _, op, _ in ops:
        detach(op)
    return tuple(records)


@torch.no_grad()
def refold(relaxed: nn.Module | Relaxation) -> None:
    """Move ``theta P_op(W)`` into the base weights and take P_op(W) off W, in place; the function does not change.

    The gradient with respect to W stays the same, so that the optimiser's state may stay, too (docs/method.md, "Fold
    instead of drop"). Branches with theta = 0 are left alone, since there nothing would be moved.
    """
    model = relaxed.model if isinstance(relaxed, Relaxation) else relaxed
    for op in model.modules():
        child = branches_child(op)
        for _, branch in child.items() if child is not None else ():
            theta = branch.theta[0] if branch.mode == "drop" else branch.theta[1]
            if branch.fold_map is None or not theta:
                continue
            part = branch.foldable_part()
            parameter = op.get_parameter(branch.fold_map.parameter)
            change = branch.fold_map.weight_change(theta * part, parameter.numel()).reshape(parameter.shape)
            parameter.add_(sharded_like(change, parameter))
            branch.subtract(part)


def _folded_part(branch: Branch, mode: StripMode) -> Tensor | None:
    """Return ``theta_par P_op(W)``, or None if nothing is folded."""
    if mode == "drop" or branch.fold_map is None:
        return None
    return branch.theta[1] * branch.foldable_part()


def _record(name: str, argument: str, branch: Branch, folded: Tensor | None) -> SiteRecord:
    effective, norm = branch.effective_weight(), float(branch.weight.norm())
    if folded is None:
        return SiteRecord(name, argument, norm, 0.0, float(effective.norm()), "dropped")
    return SiteRecord(name, argument, norm, float(folded.norm()), float((effective - folded).norm()), "folded")
