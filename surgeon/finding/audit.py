"""The coverage audit: every parameter of a model ends in exactly one class, with the reason in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import fx, nn

from surgeon.plan import AuditEntry, Coverage, Site, Skipped
from surgeon.recording.candidates import Meeting, meetings_by_parameter
from surgeon.recording.provenance import used_parameters
from surgeon.support.modules import with_parents

if TYPE_CHECKING:
    from surgeon.finding.combine import Evidence

_BY_MEETING: Mapping[str, str] = {
    "shift": "it is only added to an activation",
    "lookup": "rows of it are looked up",
    "product": "it only scales an activation",
    "normalisation": "it scales and shifts what a normalisation leaves",
}

_MAY_ACT = ("not linear", "not equivariant", "bypassed", "excluded", "unexplained")

_MULTIPLYING = frozenset(("product", "contraction", "convolution"))


def audit_parameters(evidence: Evidence, sites: Sequence[Site], skipped: Sequence[Skipped]) -> tuple[AuditEntry, ...]:
    """Classify every parameter of a model.

    Args:
        skipped: modules that get none, with reasons.

    Returns:
        One entry per parameter, in the order of ``named_parameters``.
    """
    auditor = _Auditor(evidence, sites, skipped)
    return tuple(auditor.entry(name, parameter) for name, parameter in evidence.model.named_parameters())


class _Auditor:
    def __init__(self, evidence: Evidence, sites: Sequence[Site], skipped: Sequence[Skipped]) -> None:
        self.evidence = evidence
        self.used = used_parameters(evidence.recording)
        self.skipped = {entry.name: entry for entry in reversed(skipped)}
        self.meetings = meetings_by_parameter(evidence.candidates.values())
        self.holders: dict[str, list[str]] = {}
        for candidate in evidence.candidates.values():
            for name in candidate.parameters:
                self.holders.setdefault(name, []).append(candidate.module)
        self.whole = {site.name for site in sites if site.node is None}
        self.raw = {f"{site.name}.{name}".lstrip("."): site for site in sites for name in site.parameters}

    def entry(self, name: str, parameter: nn.Parameter) -> AuditEntry:
        """Classify one parameter."""
        coverage, reason = self._classify(name, parameter)
        return AuditEntry(name, parameter.numel(), coverage, reason, self._moves(name, coverage))

    def _moves(self, name: str, coverage: Coverage) -> bool | None:
        """Tell whether a parameter is multiplied with, or makes, what the group changes; what is only added is not."""
        if coverage == "site" or coverage not in _MAY_ACT:
            return coverage == "site"
        ops = self.meetings.get(name, {})
        if ops and set(ops.values()) <= {"shift", "lookup"}:
            return False
        moved = self.evidence.moved
        known = [moved[module] for module in self.holders.get(name, ()) if module in moved]
        return any(known) if known else None

    def _classify(self, name: str, parameter: nn.Parameter) -> tuple[Coverage, str]:
        if not parameter.requires_grad:
            return "frozen", "it is not trained"
        if name not in self.used:
            return "unused", "no op of the recorded forward uses it"
        owner = name.rpartition(".")[0]
        if name in self.skipped:  # by itself, perhaps inside of a site
            return self.skipped[name].coverage, self.skipped[name].reason
        site = next((module for module in with_parents(owner) if module in self.whole), None)
        if site is not None:
            return "site", f"weights of the site {site or 'that is the model itself'}"
        if name in self.raw:
            return "site", f"weights of the op {self.raw[name].node}"
        return self._left_alone(name, owner)

    def _left_alone(self, name: str, owner: str) -> tuple[Coverage, str]:
        places = [name, *self.holders.get(name, ()), *with_parents(owner)]
        entry = next((self.skipped[place] for place in places if place in self.skipped), None)
        if entry is not None:
            return entry.coverage, entry.reason
        ops = self.meetings.get(name, {})
        meetings = set(ops.values())
        if not meetings:
            return "supplied", "it meets no activation: the run makes constants of it"
        if meetings <= _MULTIPLYING and all(node.meta["silent"] for node in ops):
            return "unexplained", "all that it meets is 0 on the sample batch"
        if meetings <= set(_BY_MEETING):
            return "not linear", "; ".join(_BY_MEETING[meeting] for meeting in sorted(meetings))
        if self.evidence.unmeasured:
            return "unexplained", f"no adapter knows its op, and it was not {self.evidence.unmeasured}"
        return "unexplained", _not_followed(ops)


def _not_followed(ops: Mapping[fx.Node, Meeting]) -> str:
    """Say of weights with which op, and where, an activation meets them, as far as it is none that could be a site."""
    nodes = [node for node, meeting in ops.items() if meeting not in _BY_MEETING] or list(ops)
    met = dict.fromkeys(f"{node.target} in {node.meta['owner'] or 'the forward of the model itself'}" for node in nodes)
    more = f" and {len(met) - 1} more" if len(met) > 1 else ""
    return (
        f"it meets an activation in {next(iter(met))}{more}, of which no linear map of features is known: an adapter "
        "would have to name it as a site"
    )


def acting(audit: Iterable[AuditEntry]) -> tuple[int, int, int]:
    """Count the weights that act on features which the group changes.

    Returns:
        All of them; those that belong to no site; and of how many more this was not measured.
    """
    found, entries = [0, 0, 0], list(audit)
    for entry in entries:
        found[0] += entry.size * bool(entry.moves)
        found[1] += entry.size * (bool(entry.moves) and entry.coverage != "site")
        found[2] += entry.size * (entry.moves is None)
    return found[0], found[1], found[2]
