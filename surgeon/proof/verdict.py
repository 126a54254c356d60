"""What comparing two models, or two records of them, finds: a finding per thing compared, and the figures measured."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.plan import Certificate

SHOWN = 5
"""Differences listed per finding."""

Outcome = Literal["holds", "differs", "not checked", "recorded", "not recorded"]
"""``recorded``: a figure that does not follow from the two checkpoints and the model. ``not recorded``: one that does,
and that the certificate does not hold."""

Equivariance = Mapping[str, Mapping[str, Mapping[str, ErrorSummary]]]
"""Model to dtype to component of the group to its errors."""


@dataclass(frozen=True)
class Finding:
    """One thing that was compared, or why it was not.

    Attributes:
        name: what, in words.
        outcome: what came of it.
        note: how it was judged, or what is missing.
        differences: one sentence each.
    """

    name: str
    outcome: Outcome
    note: str = ""
    differences: tuple[str, ...] = ()


def compared(name: str, differences: Sequence[str], note: str = "") -> Finding:
    """Return a finding that holds if there are no differences; of many the first are listed and the others counted."""
    rest = len(differences) - SHOWN
    more = [f"{name}: {rest} further difference{'s' * (rest > 1)} of this kind"] if rest > 0 else []
    return Finding(name, "differs" if differences else "holds", note, (*differences[:SHOWN], *more))


def unchecked(name: str, note: str) -> Finding:
    """Return a finding for what could not be computed."""
    return Finding(name, "not checked", note)


def unrecorded(name: str, note: str = "the certificate does not say what it was") -> Finding:
    """Return a finding for what a certificate should hold and does not."""
    return Finding(name, "not recorded", note)


@dataclass(frozen=True)
class ModelVerdict:
    """What was found on two models, or, without the original, on one.

    Attributes:
        findings: in the order in which they were made.
        buffers_written: buffers that the model's own training forward writes, to their largest change.
        equivariance: errors of "original" and "stripped"; empty if they were not measured.
        metrics: metrics of the same.
        details: versions, counts, hashes of recorded graphs: JSON-compatible.
    """

    findings: tuple[Finding, ...] = ()
    buffers_written: Mapping[str, float] = field(default_factory=dict)
    equivariance: Equivariance = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def differences(self) -> tuple[str, ...]:
        """All differences, one sentence each."""
        return tuple(text for finding in self.findings for text in finding.differences)

    def joined(self, *findings: Finding, **more: Mapping[str, Any]) -> ModelVerdict:
        """Return the verdict with further findings, and with further entries of the mappings that are named."""
        mappings = {name: {**getattr(self, name), **entries} for name, entries in more.items()}
        return dataclasses.replace(self, findings=(*self.findings, *findings), **mappings)

    def certificate(self) -> Certificate:
        """Return what a certificate records of it."""
        return Certificate(
            {finding.name: finding.outcome == "holds" for finding in self.findings},
            self.differences,
            self.buffers_written,
            equivariance=self.equivariance,
            metrics=self.metrics,
            details=self.details,
        )


@dataclass(frozen=True)
class Verification(ModelVerdict):
    """Everything that was compared between a clean folder, its certificate, and the original, if that was given.

    Attributes:
        notes: what the user should know and what is no difference.
        signing: the folder's digest in OpenSSF Model Signing, and which commands sign it and check that.
    """

    recorded: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    signing: str = ""

    def __repr__(self) -> str:
        counts = Counter(finding.outcome for finding in self.findings)
        return f"Verification({', '.join(f'{count} {outcome}' for outcome, count in counts.items())})"

    @property
    def holds(self) -> bool:
        """Whether no difference was found; what was not checked does not count."""
        return not self.differences

    def count(self, outcome: Outcome) -> int:
        """Return the number of findings with an outcome."""
        return sum(finding.outcome == outcome for finding in self.findings)

    @property
    def complete(self) -> bool:
        """Whether everything that can be checked was, and everything that can be recorded is."""
        return not (self.count("not checked") or self.count("not recorded"))

    def to_data(self) -> dict[str, Any]:
        """Return the verification as JSON-compatible data."""
        summary = {"holds": self.holds, "complete": self.complete, "differences": list(self.differences)}
        return {**summary, **dataclasses.asdict(self)}
