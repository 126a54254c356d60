"""Why nothing in a model can be relaxed: by design, because it is not understood, or because the group is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from surgeon.errors import NotASymmetryError, NothingToRelaxError, SurgeonError
from surgeon.finding.annotated_ops import INVARIANT
from surgeon.finding.inference.hypotheses import TOLERANCE
from surgeon.finding.measured_ops import CHANGE_PLACES
from surgeon.finding.measurement import OUTPUT_TOLERANCE, Measurement
from surgeon.finding.own_symmetry import judged
from surgeon.plan import AuditEntry, Plan

_SMALLER = {"O2": "SO2", "O3": "SO3", "SE3": "SO3", "E3": "O3", "O13": "SO13"}
"""Groups by those whose reflections, or translations, features may not transform under although the output does."""


def refusal(model: nn.Module, plan: Plan, measurement: Measurement | None) -> SurgeonError:
    """Return the error that says why a plan has no sites; it carries the plan, whose audit has all reasons.

    Args:
        plan: a plan without sites.
        measurement: runs under the group; None if there are none.
    """
    if measurement is not None and not measurement.trusted:
        errors, group = measurement.errors, measurement.symmetry.group
        complaint = judged(group, errors, torch.float64, limit=OUTPUT_TOLERANCE)
        if complaint is not None:
            return NotASymmetryError(complaint.words, plan, complaint)
    reasons = Counter(entry.reason for entry in plan.skipped).most_common(3)
    listed = "; ".join([f"{count} x {reason}" for reason, count in reasons] + list(plan.notes))
    return NothingToRelaxError(
        f"expected at least one equivariant linear op in {type(model).__name__}, but there is nothing to relax "
        f"({listed or 'it has no trainable parameters'}): {_verdict(plan, measurement)}",
        plan,
    )


def _verdict(plan: Plan, measurement: Measurement | None) -> str:
    """Tell apart what is so by design from what is not known and from a wrong group."""
    trained = [entry for entry in plan.audit if entry.coverage != "frozen"]
    broken, unknown = (_share(trained, coverage) for coverage in ("not equivariant", "unexplained"))
    if broken > unknown:
        return (
            f"{plan.group} is not the group of this model, {broken:.0%} of its parameters belong to ops that do not "
            "commute with it; choose a smaller group"
        )
    if unknown:
        return (
            f"this model is not understood, {unknown:.0%} of its parameters are unexplained, so that this says nothing "
            f"about it; {_advice(plan, measurement)}"
        )
    bypassed = _share(trained, "bypassed")
    if bypassed:
        return f"{bypassed:.0%} of its parameters are used where a branch cannot act"
    invariant = [entry for entry in trained if entry.coverage == "invariant"]
    if not invariant:
        return "check the group, or exclude nothing"
    known = [entry for entry in invariant if entry.reason in (INVARIANT, CHANGE_PLACES)]
    sure = sum(entry.size for entry in known) / sum(entry.size for entry in invariant)
    if sure == 1:
        return (
            "it is so by design, all linear maps that it trains and uses act on invariants; no other setting will "
            "change that"
        )
    return (
        "as far as could be seen, all linear maps that it trains and uses act on invariants, but that every linear map "
        f"is equivariant there was not checked for {1 - sure:.0%} of their weights: the audit says why"
    )


def _advice(plan: Plan, measurement: Measurement | None) -> str:
    if measurement is None:
        return "give a task with act and act_output to measure it by, or give an adapter"
    error = max(measurement.errors.values(), default=0.0)
    if error > TOLERANCE:
        return (
            f"under {plan.group} its own output deviates by {error:.1e}, more than rounding explains: choose a smaller "
            "group, or look for the place with `surgeon inspect --find-breaks`"
        )
    smaller = _SMALLER.get(plan.group)
    other = f" try {smaller}, under which more features may have a representation," if smaller else ""
    return f"see why in its audit,{other} or give an adapter"


def _share(entries: Sequence[AuditEntry], coverage: str) -> float:
    total = sum(entry.size for entry in entries)
    return sum(entry.size for entry in entries if entry.coverage == coverage) / total if total else 0.0
