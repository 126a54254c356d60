"""What is known of the ops of a model while annotation and measurement are brought together."""

from __future__ import annotations

from dataclasses import dataclass, field

from surgeon.finding.annotated_ops import LABELLED
from surgeon.finding.fold import Known
from surgeon.finding.found import Found
from surgeon.finding.measured_ops import Silent
from surgeon.plan import Site, Skipped
from surgeon.registry import Refusal


@dataclass
class Combined:
    """The sites that remain, what is skipped, and what the user should know.

    Sites are held by their keys, and what is skipped by its names, in the order in which they were found.
    ``partly_invariant`` says of the modules of which some argument is mapped from invariants to invariants what is
    known of that; ``claims`` are all ops, measured, of which that is said; ``folds`` are those of the sites so far.
    """

    sites: dict[str, Site] = field(default_factory=dict)
    skipped: dict[str, Skipped] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    partly_invariant: dict[str, str] = field(default_factory=dict)
    claims: list[Found | Silent] = field(default_factory=list)
    folds: Known = field(default_factory=dict)
    moved: dict[str, bool] = field(default_factory=dict)

    def skip(self, name: str, refusal: Refusal) -> None:
        """Add a reason, unless an annotation gave one already."""
        self.skipped.setdefault(name, Skipped(name, refusal.reason, refusal.coverage))

    def drop_label(self, name: str) -> None:
        """Drop what only an annotation says, now that more is known."""
        if name in self.skipped and self.skipped[name].reason == LABELLED:
            del self.skipped[name]

    def replace_refusal(self, name: str) -> None:
        """Where an annotation was found wrong and the measurement holds, the measured representations are used."""
        entry = self.skipped.pop(name, None)
        if entry is not None:
            what = f"the annotation does not hold ({entry.reason}); what was measured is used"
            self.notes.append(f"{name or 'the model itself'}: {what}")
