"""Find the sites of a model: adapters propose, one recorded run disposes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from surgeon.branch import branches_of
from surgeon.errors import GroupError, PlanError
from surgeon.graph import Recording, record
from surgeon.graph.record import fresh_copy, unchanged
from surgeon.groups import Group, parse_group
from surgeon.intertwiners import FoldMap, copy_indices
from surgeon.registry import Adapter, Proposal, Refusal, installed_adapters
from surgeon.surgery.usage import WeightUsage
from surgeon.surgery.verify import SiteCheck, captured_calls
from surgeon.trees import map_tensors
from surgeon.types import Plan, Site, Skipped


def find(
    model: nn.Module,
    group: Group | str,
    *inputs: Any,
    forward: Callable[..., Any] | None = None,
    further: Sequence[tuple[Any, ...]] = (),
    adapters: Mapping[str, Adapter] | None = None,
) -> Plan:
    """Find the equivariant linear ops of a model to which a branch can be attached. Only reads.

    With sample inputs the model is run once, in training mode, and each proposed site is verified numerically on what
    it really receives: that it is called, that its own forward is what uses its weights, that it is linear in its
    feature argument and equivariant with the proposed representations, and that its weights fold as proposed. Without
    inputs the sites come from the annotations alone and say so.

    Args:
        model: the network.
        group: a group or its name, see ``surgeon.groups.parse_group``.
        *inputs: one sample call of the model.
        forward: how to call it, ``forward(model, *inputs)``; default ``model(*inputs)``.
        further: inputs of more sample calls; what an op needs to be constant, such as the scalar of a tensor product
            that a branch is folded into, has to be so in all of them.
        adapters: adapters by name; default all installed ones.

    Returns:
        The plan; every module with trainable parameters of its own is a site, part of one, or skipped with a reason.

    Raises:
        GroupError: if no adapter knows representations of the group.
        PlanError: if the model already has branches, or nothing can be relaxed (with the reasons).
    """
    group = parse_group(group) if isinstance(group, str) else group
    adapters = installed_adapters() if adapters is None else adapters
    _check_group(group, adapters)
    if branches_of(model):
        raise PlanError("expected a model without branches, but it has some already: strip it first")
    proposals, skipped = _collect(model, group, adapters)
    notes: tuple[str, ...] = ()
    if (inputs or forward) and proposals:
        modules = {name: model.get_submodule(name) for name in proposals}
        with in_training_mode(model), unchanged(model):
            with captured_calls(modules) as calls:
                recording = record(model, *inputs, forward=forward)
                for more in further:
                    copies = map_tensors(fresh_copy, more)
                    forward(model, *copies) if forward else model(*copies)
            sites = _verify_all(model, group, adapters, proposals, recording, calls, skipped)
    else:
        notes = ("not verified: no sample batch, sites come from the layers' annotations alone",)
        sites = [_site(name, model, group, adapters, proposal, []) for name, proposal in proposals.items()]
    skipped += _without_explanation(model, {*proposals, *(entry.name for entry in skipped)})
    if not sites:
        raise PlanError(_nothing_found(model, skipped))
    return Plan(group.name, tuple(sites), tuple(skipped), notes)


def _check_group(group: Group, adapters: Mapping[str, Adapter]) -> None:
    known = sorted({name for adapter in adapters.values() for name in adapter.groups})
    if group.name not in known:
        raise GroupError(
            f"expected a group whose representations an adapter reads off the layers ({', '.join(known) or 'none'}), "
            f"got {group.name}: choose one of them"
        )


_Proposals = dict[str, tuple[str, Proposal]]


def _collect(model: nn.Module, group: Group, adapters: Mapping[str, Adapter]) -> tuple[_Proposals, list[Skipped]]:
    """Ask each adapter about each module; the first that knows it answers."""
    proposals: _Proposals = {}
    skipped: list[Skipped] = []
    for name, module in model.named_modules():
        for adapter in (adapter for adapter in adapters.values() if group.name in adapter.groups):
            answer = adapter.propose(module, group)
            if answer is None:
                continue
            if isinstance(answer, Refusal):
                skipped.append(Skipped(name, answer.reason))
            elif answer.rho_in.is_trivial and answer.rho_out.is_trivial:
                skipped.append(Skipped(name, "invariant to invariant: every linear map is equivariant here"))
            else:
                proposals[name] = (adapter.name, answer)
            break
    return proposals, skipped


def _site(
    name: str,
    model: nn.Module,
    group: Group,
    adapters: Mapping[str, Adapter],
    proposal: tuple[str, Proposal],
    calls: list[Mapping[str, Any]],
) -> Site:
    adapter_name, proposed = proposal
    module, adapter = model.get_submodule(name), adapters[adapter_name]
    fold, note = adapter.fold_data(module, calls)
    site = Site(
        name=name,
        argument=proposed.argument,
        kind=proposed.kind,
        adapter=adapter_name,
        rho_in=proposed.rho_in.to_data(),
        rho_out=proposed.rho_out.to_data(),
        shape=(proposed.rho_out.dimension, proposed.rho_in.dimension),
        fold=fold,
        fold_note=note,
    )
    if fold is None:
        return site
    return dataclasses.replace(site, fold_note=_coverage(adapter.fold_map(module, site, group), proposed))


def _coverage(fold_map: FoldMap, proposal: Proposal) -> str:
    """Say how much of the space of intertwiners the op's weights reach; empty if all of it."""
    outputs, inputs = copy_indices(proposal.rho_out), copy_indices(proposal.rho_in)
    total = sum(len(rows) * len(inputs[label]) for label, rows in outputs.items() if label in inputs)
    reached = sum(int((part.square_sums() > 0).sum()) for part in fold_map.entries.values())
    return "" if reached == total else f"its weights reach {reached} of {total} intertwiner dimensions"


def _verify_all(
    model: nn.Module,
    group: Group,
    adapters: Mapping[str, Adapter],
    proposals: _Proposals,
    recording: Recording,
    calls: Mapping[str, list[Mapping[str, Any]]],
    skipped: list[Skipped],
) -> list[Site]:
    check = SiteCheck(group)
    usage = WeightUsage(model, recording)
    sites = []
    for name, proposal in proposals.items():
        count = recording.calls.get(name, 0)
        residual, complaint = 0.0, usage.complaint(name)
        if not count or not calls[name]:
            complaint = complaint if name in usage.bypassed else "never called in the recorded forward"
        if not complaint:
            residual, complaint = check(model.get_submodule(name), proposal[1], calls[name][0])
        if complaint:
            skipped.append(Skipped(name, complaint))
            continue
        site = _site(name, model, group, adapters, proposal, calls[name])
        why_not = _cannot_fold(model, site, group, adapters, proposal, calls[name], check, usage)
        if why_not:
            site = dataclasses.replace(site, fold=None, fold_note=f"not foldable: {why_not}")
        sites.append(dataclasses.replace(site, verified=True, residual=residual, calls=count))
    return sites


def _cannot_fold(
    model: nn.Module,
    site: Site,
    group: Group,
    adapters: Mapping[str, Adapter],
    proposal: tuple[str, Proposal],
    calls: Sequence[Mapping[str, Any]],
    check: SiteCheck,
    usage: WeightUsage,
) -> str:
    """Return why a site that its adapter calls foldable is not; empty if it is."""
    if site.fold is None:
        return ""
    tied = usage.tied_to(site.name)
    if tied:
        return f"its weights are tied to {', '.join(sorted(tied))}, which folding would change too"
    op = model.get_submodule(site.name)
    return check.fold_complaint(op, proposal[1], calls[0], adapters[site.adapter].fold_map(op, site, group))


def _without_explanation(model: nn.Module, explained: set[str]) -> list[Skipped]:
    """List the modules that own trainable parameters and are neither sites, nor refused, nor inside one of these."""
    found = []
    for name, module in model.named_modules():
        inside = any(not other or name == other or name.startswith(f"{other}.") for other in explained)
        if not inside and any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            own = ", ".join(key for key, parameter in module.named_parameters(recurse=False) if parameter.requires_grad)
            found.append(
                Skipped(name, f"own {own} of {type(module).__name__}: no equivariant linear op that an adapter knows")
            )
    return found


def _nothing_found(model: nn.Module, skipped: list[Skipped]) -> str:
    reasons = Counter(entry.reason for entry in skipped).most_common(3)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons)
    return (
        f"expected at least one equivariant linear op in {type(model).__name__}, but there is nothing to relax "
        f"({listed or 'it has no trainable parameters'}): check the group, or exclude nothing"
    )


@contextmanager
def in_training_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode and every module back into its own mode afterwards.

    In eval mode some libraries use cached kernels instead of their parameters.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
