"""Find the sites of a model: adapters propose, measurements check them and find what no adapter knows."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from surgeon.algebra.equivariance import Symmetry, call
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import GroupError, NotASymmetryError, PlanError
from surgeon.finding.annotated_ops import LABELLED, annotated_sites, collect_proposals, verify_all
from surgeon.finding.audit import audit_parameters
from surgeon.finding.combine import Evidence, combine
from surgeon.finding.measurement import Measurement, double_twin, measure_model
from surgeon.finding.nearly import nearly_by_design
from surgeon.finding.own_symmetry import Complaint, as_another_element, judged, symmetry_complaint, unseen
from surgeon.finding.refusal import refusal
from surgeon.finding.weight_usage import WeightUsage
from surgeon.finding.windows import uneven_windows
from surgeon.plan import CHILD, AuditEntry, Plan, Site, Skipped
from surgeon.recording.calls import captured_calls
from surgeon.recording.candidates import Candidate, find_candidates
from surgeon.recording.record import Recording, record, unchanged
from surgeon.registry import Adapter, Proposal, installed_adapters, speaks_of
from surgeon.support.memory import seldom_collected
from surgeon.support.modes import in_evaluation_mode, in_training_mode
from surgeon.support.modules import require_network, with_parents
from surgeon.support.trees import fresh_copy, map_tensors

CONSTANT = "the model's output is the same for every sample of the batch: whether it transforms cannot be seen"
UNVERIFIED = "not verified: no sample batch, sites come from the layers' annotations alone"


@seldom_collected()
def find(
    model: nn.Module,
    group: Group | str,
    *inputs: Any,
    forward: Callable[..., Any] | None = None,
    further: Sequence[tuple[Any, ...]] = (),
    adapters: Mapping[str, Adapter] | None = None,
    act: Callable[..., Any] | None = None,
    act_output: Callable[[torch.Tensor, Any], Any] | None = None,
    twin: nn.Module | None = None,
    stage: Callable[[str], None] = lambda _: None,
    narrows: bool = False,
) -> Plan:
    """Find the equivariant linear ops of a model to which a branch can be attached. Only reads.

    With sample inputs the model is run once, in training mode, and each op that an adapter proposes is verified on
    what it really receives: that it is called, that its own forward uses its weights, that it is linear in its
    features, equivariant as labelled, and folds. With an action on the inputs, a float64 copy is also run on
    transformed inputs: then the representations at both ends of *every* op in which trainable weights multiply an
    activation are measured, annotated or not. Without inputs the sites come from the annotations alone.

    Args:
        model: the network.
        group: a group or its name, see ``surgeon.algebra.groups.parse_group``.
        *inputs: one sample call of the model.
        forward: how to call it, ``forward(model, *inputs)``; default ``model(*inputs)``.
        further: inputs of more sample calls; the scalar of a tensor product that is folded into is constant in all.
        adapters: adapters by name; default all installed ones.
        act: how the group acts, ``act(g, *inputs)``, g of shape (k, k), float64; of several inputs a tuple of images.
        act_output: ``act_output(g, outputs)``; ops without annotation are accepted only if the output transforms by it.
        twin: a float64 copy of the model; default ``copy.deepcopy(model).double()``.
        stage: told after each stage what was done.
        narrows: if only the rotations of the group turn out to be a symmetry, raise at once, without a full plan.

    Returns:
        The plan; its audit explains every parameter.

    Raises:
        GroupError: if no adapter knows representations of the group and there is no action to measure them by.
        TaskError: if the action is none, or the inputs cannot show anything.
        PlanError: if the model already has branches.
        NothingToRelaxError, NotASymmetryError: if nothing can be relaxed, or the group is wrong; ``plan`` tells.
    """
    group, counted = parse_group(group), Counted(forward or call)
    adapters = installed_adapters() if adapters is None else adapters
    symmetry = None if act is None else Symmetry(group, act, act_output, counted)
    _check(model, group, adapters, measures=symmetry is not None)
    proposals, skipped, failures = collect_proposals(model, group, adapters)
    if not inputs and not forward:
        return _plan(model, group, annotated_sites(model, proposals), skipped, set(proposals), (UNVERIFIED, *failures))
    with in_training_mode(model), unchanged(model):
        recording, given = _recorded(model, proposals, inputs, counted, further)
        annotated, notes = verify_all(model, group, proposals, recording, given, skipped)
        del given
    stage(f"checked {len(proposals)} annotated ops")
    refuse = _refusal(group, counted, stage) if narrows else lambda _: None  # the full plan complains
    plan = _combined(model, group, recording, annotated, skipped, proposals, symmetry, inputs, twin, stage, refuse)
    stage(f"found {len(plan.sites)} sites, after {counted.runs} runs of the network in all")
    return dataclasses.replace(plan, notes=(*failures, *notes, *plan.notes))


def _refusal(group: Group, counted: Counted, stage: Callable[[str], None]) -> Callable[[Complaint | None], None]:
    """Return what refuses a group of which only the rotations are a symmetry."""

    def refuse(complaint: Complaint | None) -> None:
        if complaint is not None and complaint.holds is not None:
            stage(f"ran it {counted.runs} times")
            raise NotASymmetryError(complaint.words, Plan(group.name, ()), complaint)

    return refuse


class Counted:
    """Runs a model, and counts how often."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward, self.runs = forward, 0

    def __call__(self, *arguments: Any) -> Any:
        """Run it."""
        self.runs += 1
        return self._forward(*arguments)


def _recorded(
    model: nn.Module,
    names: Iterable[str],
    inputs: tuple[Any, ...],
    forward: Callable[..., Any],
    further: Sequence[tuple[Any, ...]],
) -> tuple[Recording, dict[str, list[Mapping[str, Any]]]]:
    """Record one run, and return what some modules are given in it and in further ones."""
    with captured_calls({name: model.get_submodule(name) for name in names}) as calls:
        recording = record(model, *inputs, forward=forward)
        for more in further:
            forward(model, *map_tensors(fresh_copy, more))
    return recording, {name: [arguments for arguments, _ in each] for name, each in calls.items()}


def _combined(
    model: nn.Module,
    group: Group,
    recording: Recording,
    annotated: Sequence[Site],
    skipped: Sequence[Skipped],
    proposals: Mapping[str, tuple[str, Proposal]],
    symmetry: Symmetry | None,
    inputs: tuple[Any, ...],
    twin: nn.Module | None,
    stage: Callable[[str], None],
    refuse: Callable[[Complaint | None], None],
) -> Plan:
    """Measure what can be measured, compare with the annotations, and explain the rest."""
    trainable = frozenset(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    candidates, proposed = find_candidates(recording, trainable), set(proposals)
    labelled = {entry.name for entry in skipped if entry.reason == LABELLED}
    modules = proposed | labelled
    approximate = any(proposal.symmetrised for _, proposal in proposals.values())

    def judge(errors: Mapping[str, float]) -> None:
        if not approximate:
            refuse(judged(group, errors, torch.float64))

    measurement, unmeasured = _runs_under_group(model, symmetry, inputs, recording, candidates, modules, twin, judge)
    if measurement is not None:
        stage(f"ran it under {len(measurement.changed.elements.all()) - 1} elements of {group.name}")
    measurement = measurement and nearly_by_design(measurement)
    complaint = None
    if symmetry is not None:
        with in_evaluation_mode(model), torch.enable_grad(), unchanged(model):  # buffers of this mode, so inside
            complaint = symmetry_complaint(model, symmetry, inputs, measurement, proposals)
    refuse(complaint)
    if complaint is not None and measurement is not None:
        hints = [as_another_element(measurement), *(uneven_windows(recording) if group.finite else [])]
        complaint = dataclasses.replace(complaint, words="; ".join([complaint.words, *filter(None, hints)]))
    notes = (f"representations were not {unmeasured}",) if unmeasured and symmetry is not None else ()
    notes = (*notes, CONSTANT) if measurement is not None and measurement.constant else notes
    if measurement is not None and measurement.errors and (measurement.sampled or not measurement.exact):
        errors = ", ".join(f"{error:.1e} under {component}" for component, error in measurement.errors.items())
        notes = (*notes, f"the model's own output deviates from equivariance by {errors}", measurement.sampled)
    hidden = unseen(measurement.symmetry, measurement.inputs) if measurement is not None else ""
    notes = tuple(filter(None, (*notes, hidden)))
    usage = WeightUsage(model, recording)
    evidence = Evidence(model, group, recording, candidates, usage, frozenset(proposed), unmeasured)
    combined = combine(evidence, annotated, skipped, measurement)
    evidence = dataclasses.replace(evidence, moved=combined.moved)
    notes, sites, skipped = (*notes, *combined.notes), [*combined.sites.values()], [*combined.skipped.values()]
    return _plan(model, group, sites, skipped, proposed, notes, evidence, measurement, complaint)


def _check(model: nn.Module, group: Group, adapters: Mapping[str, Adapter], measures: bool) -> None:
    """Refuse what is no model or one that has branches, and a group that nothing can be said of."""
    require_network(model)
    if any(CHILD in name.split(".") for name, _ in model.named_modules()):
        raise PlanError("expected a model without branches, but it has some already: strip it first")
    if not measures and not any(speaks_of(adapter, group) for adapter in adapters.values()):
        known = {name for adapter in adapters.values() for name in adapter.groups}
        families = ", ".join(sorted({re.sub(r"^([CD])\d+$", r"\1<n>", name) for name in known}))
        raise GroupError(
            f"expected a group whose representations an adapter reads off the layers ({families or 'none'}), "
            f"or a task with `act` and `act_output` to measure them by, got {group.name}: choose another group or give "
            "the actions"
        )


def _runs_under_group(
    model: nn.Module,
    symmetry: Symmetry | None,
    inputs: tuple[Any, ...],
    recording: Recording,
    candidates: Mapping[str, Candidate],
    proposed: set[str],
    twin: nn.Module | None,
    judge: Callable[[Mapping[str, float]], None],
) -> tuple[Measurement | None, str]:
    """Measure; if the model cannot be run as that needs, annotations have to do, and it is said why."""
    if symmetry is None:
        return None, "measured: there is no action of the group to measure it by"
    modules = {name for name, candidate in candidates.items() if candidate.multiplies} | proposed
    script = torch.jit.ScriptModule
    hookable = [name for name, each in model.named_modules() if name in modules and not isinstance(each, script)]
    try:
        twin = twin if twin is not None else double_twin(model)
        return measure_model(twin, symmetry, inputs, hookable, recording, judge=judge), ""
    except PlanError as error:
        if not proposed:
            raise
        return None, f"measured: {error}"


def _plan(
    model: nn.Module,
    group: Group,
    sites: Sequence[Site],
    skipped: Sequence[Skipped],
    known: set[str],
    notes: tuple[str, ...],
    evidence: Evidence | None = None,
    measurement: Measurement | None = None,
    complaint: Complaint | None = None,
) -> Plan:
    audit = () if evidence is None else audit_parameters(evidence, sites, skipped)
    explained = known | {entry.name for entry in skipped} | {site.name for site in sites}
    skipped = [*skipped, *_without_explanation(model, explained, audit)]
    plan = Plan(group.name, tuple(sites), tuple(skipped), notes, audit)
    if complaint is not None:
        raise NotASymmetryError(complaint.words, dataclasses.replace(plan, sites=()), complaint)
    if not sites:
        raise refusal(model, plan, measurement)
    return plan


def _without_explanation(model: nn.Module, explained: set[str], audit: Sequence[AuditEntry]) -> list[Skipped]:
    """List the modules that own trainable parameters and are neither sites, nor refused, nor inside one of these."""
    found, entries = [], {entry.parameter: entry for entry in audit}
    for name, module in model.named_modules():
        inside = any(place in explained for place in with_parents(name) if place or not name)
        own = {
            f"{name}.{key}" if name else key: key
            for key, p in module.named_parameters(recurse=False)
            if p.requires_grad
        }
        if inside or not own:
            continue
        known = [entries[key] for key in own if key in entries]
        if known and all(entry.coverage != "site" for entry in known):
            reasons = "; ".join(dict.fromkeys(entry.reason for entry in known))
            found.append(Skipped(name, reasons, known[0].coverage))
        elif not known:
            what = f"own {', '.join(own.values())} of {type(module).__name__}"
            found.append(Skipped(name, f"{what}: no equivariant linear op that an adapter knows"))
    return found
