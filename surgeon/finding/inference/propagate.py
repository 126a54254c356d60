"""Carry representations through structural ops: both terms of a sum transform as the sum does."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from surgeon.finding.inference.hypotheses import Verdict, infer_type
from surgeon.finding.inference.probe import TensorProbe
from surgeon.finding.inference.sums import sums_entered
from surgeon.recording.record import Recording


def type_by_use(
    recording: Recording,
    values: Mapping[fx.Node, TensorProbe],
    name: str,
    index: int,
    apart: tuple[int, ...] = (),
) -> Verdict | None:
    """Find how a module's result transforms from the sums that it enters.

    Needed where some features are 0 on the whole sample batch: their own values say nothing, but what they are added to
    does.

    Args:
        values: the values of the sums that the result enters, in all runs.
        index: which tensor of what it returns first.
        apart: as for :func:`~surgeon.finding.inference.hypotheses.infer_type`.

    Returns:
        The verdict on the first sum that tells; None if there is none.
    """
    for node in sums_entered(recording, [(name, index)]):
        verdict = infer_type(values[node], apart=apart) if node in values else None
        if verdict is not None and verdict.type is not None and not verdict.silent:
            return verdict
    return None
