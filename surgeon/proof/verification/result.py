"""What a verification found: one finding per thing compared, and one sentence per difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from surgeon.algebra.equivariance import ErrorSummary

Outcome = Literal["holds", "differs", "not checked", "recorded", "not recorded"]
"""``recorded``: a figure that does not follow from the two checkpoints and the model. ``not recorded``: one that does,
and that the certificate does not hold."""

Equivariance = Mapping[str, Mapping[str, Mapping[str, ErrorSummary]]]


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
    """Return a finding that holds if there are no differences."""
    return Finding(name, "differs" if differences else "holds", note, tuple(differences))


def unchecked(name: str, note: str) -> Finding:
    """Return a finding for what could not be computed."""
    return Finding(name, "not checked", note)


def unrecorded(name: str, note: str = "the certificate does not say what it was") -> Finding:
    """Return a finding for what a certificate should hold and does not."""
    return Finding(name, "not recorded", note)


@dataclass(frozen=True)
class Verification:
    """Everything that was compared between a clean folder, its certificate, and the original, if that was given.

    Attributes:
        findings: in the order in which they were made.
        equivariance: errors computed now, of "original" and "stripped"; empty if they could not be.
        metrics: metrics computed now, of "original" and "stripped".
        recorded: the certificate's own figures for the same.
        notes: what the user should know and what is no difference.
    """

    findings: tuple[Finding, ...]
    equivariance: Equivariance = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[str, ...]:
        """All differences, one sentence each."""
        return tuple(text for finding in self.findings for text in finding.differences)

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
        return {
            "holds": self.holds,
            "complete": self.complete,
            "differences": list(self.differences),
            **dataclasses.asdict(self),
        }
