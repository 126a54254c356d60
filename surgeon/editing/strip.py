"""Take the branches out: drop them, or fold what the base weights can hold."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from surgeon.algebra.intertwiners import frobenius
from surgeon.editing.branch import Branch, Branches, branched_ops, branches_of
from surgeon.editing.insert import detach
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import SurgeryError, UsageError
from surgeon.plan import EXACT_WHILE, SiteRecord, StripMode
from surgeon.support.modes import renew
from surgeon.support.modules import require_network
from surgeon.support.sharding import sharded_like, whole
from surgeon.support.trees import in_dtype


def strip(relaxed: nn.Module | Relaxation, mode: StripMode | None = None) -> tuple[SiteRecord, ...]:
    """Remove all branches, in place; nothing is left behind.

    Args:
        relaxed: the relaxed model or its handle.
        mode: "drop" discards the branches (the paper's projection); "fold" first adds ``theta_par P_op(W)`` to the
            op's own weights. Default: the mode with which the branches were inserted.

    Returns:
        Per site the norm of W, of the folded part, and of what was lost (the effective matrix minus the folded one),
        all Frobenius norms. ``lost`` is the change of the op's linear map, in float64, with its parameters as they
        are stored: in low precision a fold may lose more than half of itself by rounding. A fold that takes an op's
        other arguments for constant says so in its note ("exact while"); :func:`check_folds` looks at them.

    Raises:
        UsageError: if the mode is unknown; the model is unchanged.
        SurgeryError: if there is no branch, or a branch holds a non-finite number; the model is unchanged then.
    """
    if mode not in ("drop", "fold", None):
        raise UsageError(f"expected mode 'drop' or 'fold', got {mode!r}")
    model = relaxed.model if isinstance(relaxed, Relaxation) else relaxed
    require_network(model)
    branches = branches_of(model)
    if not branches and isinstance(relaxed, Relaxation) and not relaxed.plan.sites:  # it never had any
        return ()
    if not branches:
        raise SurgeryError("expected a model with branches, but it has none: it may be stripped already")
    for key, branch in branches.items():
        if not torch.isfinite(branch.weight).all():
            raise SurgeryError(
                f"expected finite weights in the branch at {key!r}, got NaN or infinity: nothing was stripped, "
                "go back to an earlier checkpoint"
            )
    for key, branch in branches.items():
        if (mode or branch.mode) == "fold" and not branch.theta_was_set and branch.weight.any():
            raise SurgeryError(
                f"expected theta to be set before folding, but that of the branch at {key!r} was not: theta is not "
                "part of the state dict, so call set_progress(1.0) after loading one, or strip by 'drop'"
            )
    ops, records = branched_ops(model), []
    with torch.no_grad():
        after = [_folded_parameters(child, op, mode) for _, op, child in ops]
        for (name, op, child), own in zip(ops, after, strict=True):
            records += [_record(name, slot, branch, op, own, mode or branch.mode) for slot, branch in child.items()]
        # Nothing was touched so far: from here on nothing can fail half-way.
        for (_, op, _), own in zip(ops, after, strict=True):
            _write(op, own)
    for _, op, _ in ops:
        detach(op)
    if isinstance(relaxed, Relaxation):
        relaxed.branches = {}  # which may be as large as the network
    return tuple(records)


@torch.no_grad()
def refold(relaxed: nn.Module | Relaxation) -> None:
    """Move ``theta P_op(W)`` into the base weights and take P_op(W) off W, in place; the function does not change.

    It does where a fold is exact only while an op's other arguments are constant, and they are not.
    The gradient with respect to W stays the same, so that the optimiser's state may stay, too (docs/method.md, "Fold
    instead of drop"). Branches with theta = 0 are left alone, since there nothing would be moved.
    """
    model = relaxed.model if isinstance(relaxed, Relaxation) else relaxed
    for _, op, child in branched_ops(model):
        for _, branch in child.items():
            theta = branch.theta[0] if branch.mode == "drop" else branch.theta[1]
            if not theta or branch.fold_map is None:
                continue
            part, own = branch.foldable_part(), branch.fold_map
            moved: dict[str, Tensor] = {}
            after: dict[str, Tensor] = {}
            for key, change in own.weight_change(theta * part).items():
                parameter = op.get_parameter(key)
                after[key] = parameter + sharded_like(change, parameter)
                moved[key] = whole(
                    in_dtype(after[key], torch.float64) - in_dtype(parameter, torch.float64)
                )  # where the parameter's dtype rounds
            branch.subtract((own.map_change(moved) / theta.double()).to(part))
            _write(op, after)


def _write(op: nn.Module, values: Mapping[str, Tensor]) -> None:
    for key, value in values.items():
        op.get_parameter(key).copy_(value)
    if values:
        renew(op)


def _folded_parameters(child: Branches, op: nn.Module, mode: StripMode | None) -> dict[str, Tensor]:
    """Return what the op's parameters become, by name and in their own dtypes; the sums are taken in float64."""
    sums: dict[str, Tensor] = {}
    for _, branch in child.items():
        if (mode or branch.mode) == "drop" or branch.fold_map is None:
            continue
        for key, change in branch.fold_map.weight_change(_folded(branch)).items():
            parameter = op.get_parameter(key)
            sums[key] = sums.get(key, in_dtype(parameter, torch.float64)) + change.to(parameter.device)
    return {key: value.to(op.get_parameter(key).dtype) for key, value in sums.items()}


def _folded(branch: Branch) -> Tensor:
    """Return the part of what a branch adds to its op's linear map that can be folded; float64, shaped as W."""
    return branch.theta[1].double() * branch.foldable_part(torch.float64)


def _record(
    name: str, slot: str, branch: Branch, op: nn.Module, after: Mapping[str, Tensor], mode: StripMode
) -> SiteRecord:
    """Compare what a branch adds with what the op's parameters, as they will be stored, add instead."""
    own, norm = None if mode == "drop" else branch.fold_map, frobenius(branch.masked)
    if own is None:
        return SiteRecord(name, slot, norm, 0.0, frobenius(branch.effective_weight()), "dropped")
    moved = {
        key: in_dtype(after[key], torch.float64) - in_dtype(op.get_parameter(key), torch.float64)
        for key in own.parameters
    }
    effective = branch.effective_weight(torch.float64)
    lost = effective - own.map_change(moved).to(effective)
    note = f"folded, {EXACT_WHILE} {own.holds_while}" if own.holds_while else "folded"
    return SiteRecord(name, slot, norm, float(_folded(branch).norm()), float(lost.norm()), note)
