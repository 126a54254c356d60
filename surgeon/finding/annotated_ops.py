"""Sites by annotation: adapters propose, the op itself on what it really receives disposes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgeon.algebra.groups.core import Group
from surgeon.errors import first_line
from surgeon.finding.site_check import SiteCheck, coverage_of, fold_complaint
from surgeon.finding.usage import WeightUsage, further_arguments, tied_modules
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
                notes.append(f"{name or 'the model itself'}: {_failure(adapter, error)}")
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


def _failure(adapter: Adapter, error: Exception) -> str:
    return f"{type(error).__name__} of the adapter {adapter.name!r} ({first_line(error)})"


def annotated_site(
    name: str,
    model: nn.Module,
    group: Group,
    adapters: Mapping[str, Adapter],
    proposal: tuple[str, Proposal],
    calls: Sequence[Mapping[str, Any]],
) -> Site:
    """Return the site that a proposal describes, not verified yet."""
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
    site = _with_fold(site, model.get_submodule(name), adapters[adapter_name], proposed, calls)
    tied = tied_modules(model, name) if site.fold is not None else ()
    if not tied:
        return site
    return not_foldable(site, f"its weights are tied to {', '.join(sorted(tied))}, which folding would change too")


def not_foldable(site: Site, why: str) -> Site:
    """Return a site that cannot be folded, with the reason."""
    return dataclasses.replace(site, fold=None, fold_while="", fold_note=f"not foldable: {why}")


def _with_fold(
    site: Site, module: nn.Module, adapter: Adapter, proposed: Proposal, calls: Sequence[Mapping[str, Any]]
) -> Site:
    """Say what the op's own weights can take in; a fold map that cannot be made costs the fold, not the inspection."""
    try:
        fold, note = adapter.fold_data(module, calls)
        if fold is None:
            return dataclasses.replace(site, fold_note=note)
        site = dataclasses.replace(site, fold=fold)
        own = adapter.fold_map(module, site, proposed.rho_in.group)
        note, holds_while = own.coverage(proposed.rho_out, proposed.rho_in), own.holds_while
    except Exception as error:  # an adapter may be anybody's code
        return not_foldable(site, _failure(adapter, error))
    return dataclasses.replace(site, fold_note=note, fold_while=holds_while or further_arguments(site, calls))


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
    adapters: Mapping[str, Adapter],
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
    sites, notes = [], []
    for name, (adapter_name, unresolved) in proposals.items():
        count = recording.calls.get(name, 0)
        residual, complaint, coverage = 0.0, usage.complaint(name), usage.coverage(name)
        if (not count or not calls[name]) and name not in usage.bypassed:
            complaint, coverage = "never called in the recorded forward", "unused"
        proposal = (adapter_name, unresolved if complaint else _resolved(unresolved, calls[name]))
        if not complaint:
            residual, complaint = check(model.get_submodule(name), proposal[1], calls[name][0])
            coverage = coverage_of(complaint)
        if complaint:
            skipped.append(Skipped(name, complaint, coverage))
            continue
        site = annotated_site(name, model, group, adapters, proposal, calls[name])
        why_not = _cannot_fold(model, site, group, adapters, calls[name])
        if why_not:
            site = not_foldable(site, why_not)
        sites.append(dataclasses.replace(site, verified=True, residual=residual, calls=count))
        if proposal[1].symmetrised is not None:
            own = check.own_deviation(model.get_submodule(name), proposal[1], calls[name][0])
            notes.append(
                f"{name or 'the model itself'}: approximately equivariant by design; its own weights deviate by "
                f"{own:.1e}, its symmetrised ones by {residual:.0e}"
            )
    return sites, notes


def _cannot_fold(
    model: nn.Module,
    site: Site,
    group: Group,
    adapters: Mapping[str, Adapter],
    calls: Sequence[Mapping[str, Any]],
) -> str:
    """Return why a site that its adapter calls foldable is not; empty if it is."""
    if site.fold is None:
        return ""
    op, generator = model.get_submodule(site.name), torch.Generator().manual_seed(0)
    own, tried = adapters[site.adapter].fold_map(op, site, group), calls if site.fold_while else calls[:1]
    return next(filter(None, (fold_complaint(op, site, call, own, generator) for call in tried)), "")
