"""Bring annotation and measurement together: each checks the other, and what neither explains is left alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.penalty import Commutator
from surgeon.algebra.representations.build import axes
from surgeon.algebra.representations.core import Representation
from surgeon.finding.annotated_ops import INVARIANT, LABELLED
from surgeon.finding.claims import NOT_CHECKED, check_claims
from surgeon.finding.combined import Combined
from surgeon.finding.fold import with_fold
from surgeon.finding.forms import row_representations
from surgeon.finding.found import Found
from surgeon.finding.influence import unmoved, without_effect
from surgeon.finding.measured_ops import Silent, measure_module, same_action
from surgeon.finding.measured_raw_ops import measure_raw
from surgeon.finding.measurement import Measurement, moved
from surgeon.finding.ops import Op
from surgeon.finding.weight_usage import WeightUsage
from surgeon.plan import Site, Skipped
from surgeon.recording.candidates import Candidate, meetings_by_parameter, reaches_output
from surgeon.recording.kernels import kernels_of
from surgeon.recording.record import Recording
from surgeon.registry import Refusal
from surgeon.support.modes import default_dtype
from surgeon.support.modules import with_parents

NO_EFFECT = (
    "no gradient of the output reaches it on the sample batch: nothing uses what it computes, it only makes a choice, "
    "or what follows is flat there"
)

_LOOKED_INTO = ("not linear", "unexplained", "bypassed")  # the last mixes any number of points; its weights may not


@dataclass(frozen=True)
class Evidence:
    """What one recorded run says of a model.

    Attributes:
        candidates: ops in which trainable parameters meet activations, by module.
        usage: who uses which weights.
        proposed: modules of which an annotation says that they are equivariant and linear.
        unmeasured: why the model was not run under the group, in words; empty if it was.
        moved: of modules without a branch, whether what they are given or make changes under the group.
    """

    model: nn.Module
    group: Group
    recording: Recording
    candidates: Mapping[str, Candidate]
    usage: WeightUsage
    proposed: frozenset[str] = frozenset()
    unmeasured: str = ""
    moved: Mapping[str, bool] = field(default_factory=dict)


def combine(
    evidence: Evidence, annotated: Sequence[Site], skipped: Sequence[Skipped], measurement: Measurement | None
) -> Combined:
    """Compare annotated with measured sites, add those found by measurement alone, and drop those without effect.

    Args:
        annotated: sites by annotation, verified.
        skipped: what the annotations say is no site.
        measurement: runs under the group; None if there are none.

    Returns:
        The sites in the order of the model's modules.
    """
    result = Combined({site.key: site for site in annotated}, {entry.name: entry for entry in skipped})
    if measurement is not None:
        by_name = {site.name: site for site in annotated}
        known = [*by_name, *(entry.name for entry in skipped if entry.reason == LABELLED)]
        for name, candidate in _modules_to_measure(evidence, known):
            _judge(result, evidence, by_name.get(name), name, candidate, measurement)
        result.moved = moved(measurement, {site.name for site in result.sites.values() if site.node is None})
        claimed = {claim.op.module for claim in result.claims}
        for probe in (measurement.own, measurement.changed):
            probe.release(claimed)
        _check_claims(result, evidence, measurement)
    _drop_without_effect(result, evidence, measurement)
    result.notes += [note for site in result.sites.values() for note in _discretisation(site, evidence)]
    order = {name: position for position, (name, _) in enumerate(evidence.model.named_modules())}
    result.sites = dict(sorted(result.sites.items(), key=lambda each: order[each[1].name]))
    return result


def _modules_to_measure(evidence: Evidence, annotated: Sequence[str]) -> list[tuple[str, Candidate | None]]:
    """Candidates that may be linear maps; one that only scales counts if no op inside it is a candidate itself."""
    multiplying = {name: candidate for name, candidate in evidence.candidates.items() if candidate.multiplies}
    around = {place for name in multiplying for place in with_parents(name)[1:]}
    chosen: list[tuple[str, Candidate | None]] = [
        (name, candidate) for name, candidate in multiplying.items() if candidate.contracts or name not in around
    ]
    names = {name for name, _ in chosen}
    return [*chosen, *((name, None) for name in annotated if name not in names)]


def _judge(
    result: Combined,
    evidence: Evidence,
    site: Site | None,
    name: str,
    candidate: Candidate | None,
    measurement: Measurement,
) -> None:
    entry = result.skipped.get(name)
    if entry is not None and not _only_doubted(entry, evidence):
        return  # the annotation knows why
    labelled = entry is not None and entry.reason == LABELLED
    module = evidence.model.get_submodule(name)
    if isinstance(module, torch.jit.ScriptModule):
        result.skip(name, Refusal("it is TorchScript, which takes no branch", "bypassed"))
        return
    if measurement.drawn and name in measurement.drawn.modules:
        if site is not None:
            del result.sites[site.key]
        result.drop_label(name)
        result.skip(name, measurement.drawn.refusal)
        return
    found = measure_module(measurement, name, kernels_of(candidate, evidence.recording))
    refusal = evidence.usage.refusal(name)
    if isinstance(found, Silent) and site is None and not labelled and refusal is None:
        result.skip(name, found)
        result.claims.append(found)
        return
    if isinstance(found, Refusal):
        if site is None and not labelled:
            _judge_raw(result, evidence, name, candidate, measurement, found)
        return
    if site is not None:
        _compare(result, evidence, site, found, measurement)
        return
    if refusal is None and all(each.invariant for each in found):
        refusal = Refusal(INVARIANT, "invariant")
        result.claims += found
    elif refusal is None and not measurement.trusted:
        refusal = Refusal(_untrusted(measurement), "unexplained")
    if refusal is not None:
        result.drop_label(name)
        result.skip(name, refusal)
    else:
        result.replace_refusal(name)
        count = evidence.recording.calls.get(name, 0)
        invariant = [each for each in found if each.invariant]
        if invariant:
            result.partly_invariant[name] = INVARIANT
            result.claims += invariant
        for each in found:
            if not each.invariant:
                _add_site(result, each, measurement, evidence, count)


def _add_site(result: Combined, found: Found, measurement: Measurement, evidence: Evidence, count: int | None) -> Site:
    """Add a measured site, with what is needed to fold it."""
    site, name = dataclasses.replace(found.site(), calls=count), found.op.module
    calls = [arguments for arguments, _ in measurement.own.first[name]]
    with default_dtype(torch.float64):
        site = with_fold(
            site, measurement.twin.get_submodule(name), calls, evidence.usage.ties.of(name), known=result.folds
        )
    result.sites[site.key] = site
    return site


def _only_doubted(entry: Skipped, evidence: Evidence) -> bool:
    """Tell whether an annotation was not confirmed, so that a measurement may know better."""
    if entry.reason == LABELLED:
        return True
    return entry.name in evidence.proposed and entry.coverage not in ("unused", "bypassed")


def _judge_raw(
    result: Combined,
    evidence: Evidence,
    name: str,
    candidate: Candidate | None,
    measurement: Measurement,
    refusal: Refusal,
) -> None:
    """Look inside a module that is not linear as a whole."""
    if candidate is None or not candidate.contracts or refusal.coverage not in _LOOKED_INTO:
        result.skip(name, refusal)
        return
    found, refusals = measure_raw(measurement, name)
    if isinstance(refusals, Refusal):  # the first reason is the true one, this is why nothing better is known
        reason = f"{refusal.reason}; {refusals.reason}" if refusal.coverage == "not linear" else refusal.reason
        result.skip(name, Refusal(reason, "unexplained" if refusal.coverage == "not linear" else refusal.coverage))
        return
    for each in found:
        if each.invariant:
            for place in _names(each.op):
                result.skip(place, Refusal(INVARIANT, "invariant"))
            result.claims.append(each)
        elif not measurement.trusted:
            for place in _names(each.op):
                result.skip(place, Refusal(_untrusted(measurement), "unexplained"))
        else:
            _add_site(result, each, measurement, evidence, evidence.recording.calls.get(name, 1))
    result.claims += list({id(why): why for _, why in refusals if isinstance(why, Silent)}.values())
    for parameter, why in refusals:
        result.skip(f"{name}.{parameter}".lstrip("."), why)
    if not found and not refusals:
        result.skip(name, refusal)


def _check_claims(result: Combined, evidence: Evidence, measurement: Measurement) -> None:
    """Call ops invariant only where any invariants would do in place of their results; the others go by their use."""
    answers = check_claims(measurement, result.claims, [*result.sites.values()])
    for claim, answer in zip(result.claims, answers, strict=True):
        op = claim.op
        names, said = _names(op), claim.reason if isinstance(claim, Silent) else INVARIANT
        entries = [result.skipped[name] for name in names if name in result.skipped]
        claimed = [entry for entry in entries if entry.reason == said]
        if isinstance(claim, Silent) and answer in (None, NOT_CHECKED):
            answer = Refusal(INVARIANT, "invariant") if answer is None and not claim.silent[0] else claim
        if answer is None:
            continue
        if isinstance(answer, Refusal) and op.module in result.partly_invariant:
            result.partly_invariant[op.module] = answer.reason
        for entry in claimed:
            del result.skipped[entry.name]
        if isinstance(answer, Found):
            site = _add_site(result, answer, measurement, evidence, evidence.recording.calls.get(op.module, 0))
            what = "0, in part," if isinstance(claim, Silent) else "invariant"
            result.notes.append(f"{site.key}: its features are {what} on the sample batch; typed by their use")
        elif claimed:
            for entry in claimed:
                result.skip(entry.name, answer)
        elif answer is not NOT_CHECKED and isinstance(claim, Found):
            result.notes.append(f"{claim.site().key}: {answer.reason}")


def _names(op: Op) -> list[str]:
    """Return under which names an op is skipped: that of its module, or of the parameters of a raw one."""
    return [op.module] if op.node is None else [f"{op.module}.{name}".lstrip(".") for name in op.parameters]


def _drop_idle_claims(result: Combined, idle: Sequence[Found]) -> set[str]:
    """Of what reaches no output nothing was tried out: any tensor would do in its place. Returns the names."""
    names = {name for found in idle for name in _names(found.op)}
    left = {id(found) for found in idle}
    busy = {name for claim in result.claims if id(claim) not in left for name in _names(claim.op)}
    claimed = {e.name for e in result.skipped.values() if e.coverage == "invariant"} & (names - busy)
    result.skipped |= {name: Skipped(name, NO_EFFECT, "no effect") for name in claimed}
    return claimed


def _untrusted(measurement: Measurement) -> str:
    if not measurement.errors:
        return "measured only: it is accepted when act_output shows that the model's output transforms"
    worst = max(measurement.errors.values())
    return f"measured only, and the model's own output does not transform as it should (relative error {worst:.1e})"


def _compare(result: Combined, evidence: Evidence, site: Site, found: list[Found], measurement: Measurement) -> None:
    """Confirm an annotated site, or use what was measured instead and say so."""
    same = next((each for each in found if each.op.argument == site.argument), None)
    if same is None:
        return
    elements = measurement.own.elements.judging_matrices
    measured = same.site()
    pairs = ((site.rho_in, measured.rho_in), (site.rho_out, measured.rho_out))
    orders = ((site.axes_in, measured.axes_in), (site.axes_out, measured.axes_out))
    reordered = [(left, _in_order(right, *order)) for (left, right), order in zip(pairs, orders, strict=True)]
    if all(right is not None and same_action(left, right, elements) for left, right in reordered):
        residual = max(site.residual or 0.0, same.residual)
        result.sites[site.key] = dataclasses.replace(site, source="both", residual=residual)
        return
    said = [" -> ".join(str(pair[end]) for pair in pairs) for end in (0, 1)]
    what = "no branch is attached" if same.invariant else "the measured representations are used"
    result.notes.append(
        f"{site.name or 'the model itself'}: annotated as {said[0]}, which its op satisfies, measured on its features "
        f"as {said[1]}; {what}"
    )
    kept = None if same.invariant else _add_site(result, same, measurement, evidence, site.calls)
    if kept is None:
        result.skip(site.name, Refusal(INVARIANT, "invariant"))
        result.claims.append(same)
    if kept is None or kept.key != site.key:
        del result.sites[site.key]


def _in_order(rho: Representation, wanted: tuple[int, ...], order: tuple[int, ...]) -> Representation | None:
    """Return a representation of axes in ``order`` for the same axes in the order that is wanted; None for others."""
    if wanted == order:
        return rho
    data = rho.to_data()
    if sorted(wanted) != sorted(order) or "axes" not in data:
        return None
    names = dict(zip(order, data["axes"].split(), strict=True))
    return axes(rho.group, " ".join(names[axis] for axis in wanted), data["sizes"], data.get("signs", ()))


def _discretisation(site: Site, evidence: Evidence) -> list[str]:
    """Say how far a kernel on a grid is from equivariance under elements that do not map the grid to itself."""
    if site.convolution is None or evidence.group.finite:
        return []
    kernels = kernels_of(evidence.candidates.get(site.name), evidence.recording)
    if len(kernels) != 1:
        return []
    kernel = kernels[0].dense().flatten(1)
    defect = float(Commutator(*row_representations(site))(kernel).norm() / kernel.norm())
    if evidence.group.rescales:
        return [
            f"{site.name}: verified where a change of scale leaves neither the image nor the range of scales; with "
            f"what is cut off there the original kernel's own defect is {defect:.2f} of its norm"
        ]
    return [
        f"{site.name}: verified under quarter turns; under small rotations of the grid the original kernel's own "
        f"defect is {defect:.2f} of its norm, which is discretisation"
    ]


def _name_unmoved(result: Combined, evidence: Evidence, measurement: Measurement, unfelt: Sequence[str]) -> None:
    """Say what became of the output when weights changed that meet zeros and constants only."""
    meetings = meetings_by_parameter(evidence.candidates.values())
    met = {name: meetings.get(name, {}).items() for name in unfelt}
    mixing = ("contraction", "convolution", "other")
    idle = [n for n, ops in met.items() if all(op.meta["silent"] or meeting not in mixing for op, meeting in ops)]
    same = unmoved(measurement, idle)
    reason = (
        "perturbed, it leaves every output as it is, to the bit, as measured and under an element of each component"
    )
    for name in same:
        result.skipped.pop(name, None)
        result.skip(name, Refusal(reason, "no effect"))


def _drop_without_effect(result: Combined, evidence: Evidence, measurement: Measurement | None) -> None:
    reached = reaches_output(evidence.recording)
    silent = {
        key: site
        for key, site in result.sites.items()
        if site.name in evidence.candidates and not any(n in reached for n in evidence.candidates[site.name].nodes)
    }
    weights: list[str] = []
    if measurement is not None:
        ops = [claim for claim in result.claims if isinstance(claim, Found)]
        claims = [found.site() for found in ops]
        asked = [*(site for key, site in result.sites.items() if key not in silent), *claims]
        more, unfelt = without_effect(measurement, asked)
        places = {site.name for site in asked}
        inside = {name: not places.isdisjoint(with_parents(name)[1:]) for name in unfelt}
        _name_unmoved(result, evidence, measurement, [name for name in unfelt if not inside[name]])
        found = {id(site) for site in more}
        silent |= {key: site for key, site in result.sites.items() if id(site) in found}
        idle = _drop_idle_claims(result, [f for f, site in zip(ops, claims, strict=True) if id(site) in found])
        weights = [name for name in unfelt if inside[name] and name.rpartition(".")[0] not in idle]
    result.sites = {key: site for key, site in result.sites.items() if key not in silent}
    kept = {site.name for site in result.sites.values()}
    nothing = Refusal(NO_EFFECT, "no effect")
    for name in weights:
        result.skip(name, nothing)
    for site in silent.values():
        if site.name in kept:
            result.notes.append(f"{site.key}: {NO_EFFECT}")
        elif site.name in result.partly_invariant:
            rest = f"what it makes of {site.slot} reaches no output; else {result.partly_invariant[site.name]}"
            result.skip(site.name, Refusal(rest, "invariant"))
        else:
            result.skip(site.name, nothing)
