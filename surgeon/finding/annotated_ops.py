"""Find sites by annotation: adapters propose, and the op itself is asked (annotation_check.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from surgeon.algebra.groups.core import Group
from surgeon.errors import first_line
from surgeon.finding.annotation_check import SiteCheck
from surgeon.finding.fold import Known, not_foldable, with_fold
from surgeon.finding.weight_usage import Ties, WeightUsage
from surgeon.plan import Site, Skipped
from surgeon.recording.record import Recording
from surgeon.registry import Adapter, Proposal, Refusal, proposal_for, resolved, speaks_of
from surgeon.support.trees import tensor_at

INVARIANT = "invariant to invariant: every linear map is equivariant here"
UNCHECKED = "invariant to invariant {}; whether every linear map is equivariant here was not checked"
LABELLED = UNCHECKED.format("by its annotation")

Proposals = dict[str, tuple[str, Proposal]]
"""Module name to adapter name and what it proposes."""


def collect_proposals(
    model: nn.Module, group: Group, adapters: Mapping[str, Adapter]
) -> tuple[Proposals, list[Skipped], list[str]]:
    """Ask each adapter about each module; the first that knows it answers.

    Returns:
        Proposals; refusals; and one note for each module at which an adapter failed, which is left to measurement.
    """
    proposals: Proposals = {}
    skipped: list[Skipped] = []
    notes: list[str] = []
    for name, _ in model.named_modules():
        for adapter in (adapter for adapter in adapters.values() if speaks_of(adapter, group)):
            try:
                answer = proposal_for(model, name, adapter, group)
            except Exception as error:  # an adapter may be anybody's code
                what = f"{type(error).__name__} of the adapter {adapter.name!r} ({first_line(error)})"
                notes.append(f"{name or 'the model itself'}: {what}")
                continue
            if answer is None:
                continue
            if isinstance(answer, Refusal):
                skipped.append(Skipped(name, answer.reason, answer.coverage))
            elif answer.rho_in.is_trivial and answer.rho_out.is_trivial and answer.convolution is None:
                skipped.append(Skipped(name, LABELLED, "invariant"))
            else:
                proposals[name] = (adapter.name, answer)
            break
    return proposals, skipped, notes


def annotated_sites(model: nn.Module, proposals: Proposals) -> list[Site]:
    """Return the sites that proposals describe, of which nothing was run."""
    ties, folds = Ties(model), Known()
    return [_annotated_site(name, model, ties, proposal, [], folds) for name, proposal in proposals.items()]


def _annotated_site(
    name: str,
    model: nn.Module,
    ties: Ties,
    proposal: tuple[str, Proposal],
    calls: Sequence[Mapping[str, Any]],
    folds: Known,
) -> Site:
    """Return the site that a proposal describes, not verified yet; ``folds`` are known, and more are added."""
    adapter_name, proposed = proposal[0], _resolved(proposal[1], calls)
    assert not callable(proposed.axes_in)
    assert not callable(proposed.axes_out)
    site = Site(
        name=name,
        argument=proposed.argument,
        kind=proposed.kind,
        adapter=adapter_name,
        rho_in=proposed.rho_in,
        rho_out=proposed.rho_out,
        shape=_shape(proposed),
        path_in=proposed.path_in,
        path_out=proposed.path_out,
        axes_in=proposed.axes_in,
        axes_out=proposed.axes_out,
        convolution=proposed.convolution,
    )
    if proposed.symmetrised is not None:
        return not_foldable(site, "it is equivariant only approximately, and would be changed in that, too")
    return with_fold(site, model.get_submodule(name), calls, ties.of(name), proposed.wrap, folds)


def _resolved(proposal: Proposal, calls: Sequence[Mapping[str, Any]]) -> Proposal:
    """Fix the axes by a recorded call; the output of a map of rows has as many as its input."""
    count = tensor_at(calls[0][proposal.argument], proposal.path_in).ndim if calls else None
    return resolved(proposal, count, count)


def _shape(proposal: Proposal) -> tuple[int, ...]:
    kernel = () if proposal.convolution is None else proposal.convolution.kernel
    return (proposal.rho_out.dimension, proposal.rho_in.dimension, *kernel)


def verify_all(
    model: nn.Module,
    group: Group,
    proposals: Proposals,
    recording: Recording,
    calls: Mapping[str, list[Mapping[str, Any]]],
    skipped: list[Skipped],
) -> tuple[list[Site], list[str]]:
    """Check every proposal on its op's recorded calls; those that fail are added to ``skipped`` with the reason.

    Returns:
        The sites, and one note for each op that is equivariant only approximately: how far it is from that.
    """
    check = SiteCheck(group)
    usage = WeightUsage(model, recording)
    sites, notes, folds = [], [], Known()
    for name, (adapter_name, unresolved) in proposals.items():
        count = recording.calls.get(name, 0)
        refusal = usage.refusal(name)
        if (not count or not calls[name]) and name not in usage.bypassed:
            refusal = Refusal("never called in the recorded forward", "unused")
        if refusal is None:
            proposal = _resolved(unresolved, calls[name])
            residual, refusal = check(model.get_submodule(name), proposal, calls[name][0])
        if refusal is not None:
            skipped.append(Skipped(name, refusal.reason, refusal.coverage))
            continue
        site = _annotated_site(name, model, usage.ties, (adapter_name, proposal), calls[name], folds)
        sites.append(dataclasses.replace(site, verified=True, residual=residual, calls=count))
        if proposal.symmetrised is not None:
            own = check.own_deviation(model.get_submodule(name), proposal, calls[name][0])
            notes.append(
                f"{name or 'the model itself'}: approximately equivariant by design; its own weights deviate by "
                f"{own:.1e}, its symmetrised ones by {residual:.0e}"
            )
    return sites, notes
