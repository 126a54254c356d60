"""Folds that are exact only while an op's other arguments act as on the sample batch: said in words, and looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from surgeon.editing.relaxation import Relaxation
from surgeon.errors import SurgeryError
from surgeon.finding.fold import fold_complaint
from surgeon.recording.calls import captured_calls
from surgeon.support.modes import each_with, in_evaluation_mode


def check_folds(
    relaxation: Relaxation, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any], where: str = "what was given"
) -> dict[str, int]:
    """Try every fold that takes an op's other arguments for constant on all calls of the op; only reads.

    On each batch the model runs in eval mode as stripping by "fold" would leave it. Each such op, given what it was
    given there, then has to do with changed weights what the fold says.

    Args:
        relaxation: the relaxed model, not yet stripped.
        batches: the data to look at.
        run: ``run(model, batch)``, one forward.
        where: what the batches are, for the message.

    Returns:
        Per such fold, ``module.argument``, on how many batches its op was called. Without any, nothing is run.

    Raises:
        SurgeryError: if a fold is wrong on some batch.
    """
    folds = [(site, relaxation.branches[site.key].fold_map) for site in relaxation.plan.sites]
    conditional = {site.key: (site, own) for site, own in folds if own is not None and own.holds_while}
    seen = dict.fromkeys(conditional, 0)
    if not conditional:
        return seen
    model, generator = relaxation.model, torch.Generator().manual_seed(0)
    ops = {key: model.get_submodule(site.name) for key, (site, _) in conditional.items()}
    as_folded = each_with(relaxation.branches.values(), "mode", "fold")
    with as_folded, in_evaluation_mode(model), relaxation.clean():
        for number, batch in enumerate(batches, start=1):
            with captured_calls(ops) as calls:
                run(model, batch)
            for key, (site, own) in conditional.items():
                seen[key] += bool(calls[key])
                complaints = (fold_complaint(ops[key], site, call, own, generator) for call, _ in calls[key])
                complaint = next((each for each in complaints if each), "")
                if complaint:
                    raise SurgeryError(
                        f"expected the fold at {key!r} to be exact on every batch of {where}, as it is while "
                        f"{own.holds_while}, but on batch {number} it is not ({complaint}): strip by drop (`--drop`)"
                    )
    return seen
