"""A picture of where a network's equivariance breaks: the errors of the tensors on the way to its output."""

from __future__ import annotations

from surgeon.finding.breaks import Breaks, Judged
from surgeon.finding.measurement import OUTPUT_TOLERANCE
from surgeon.report.figures import ErrorRow, errors_on_log_axis
from surgeon.report.page import standalone

ROWS = 24
"""Drawn at most: those around the break."""

WHOLE = "the model's output"


def breaks_picture(breaks: Breaks) -> str:
    """Draw the tensors that a search looked at, in the order of execution, with their errors on a logarithmic axis.

    Args:
        breaks: as :func:`surgeon.finding.breaks.find_breaks` returns it.

    Returns:
        SVG, a file of its own. Neighbours of one module with one verdict are one row. The output comes last, with the
        largest error that counts as none.

    Raises:
        UsageError: if matplotlib is missing.
    """
    rows = [ErrorRow(_name(each), {_verdict(each): each.error}, None) for each in _merged(breaks)]
    output = {"does not transform" if breaks.broken else "transforms": max(breaks.output_error.values())}
    found = [*rows, ErrorRow(WHOLE, output, OUTPUT_TOLERANCE)]
    words = " ".join(breaks.told()[:2])
    return standalone(errors_on_log_axis("breaks", "relative equivariance error", found, words))


def _merged(breaks: Breaks) -> list[Judged]:
    """Return the tensors to draw: of neighbours that are alike one, the first that fails or the worst."""
    kept: list[Judged] = []
    for each in breaks.judged:
        if kept and (kept[-1].owner, kept[-1].holds) == (each.owner, each.holds):
            kept[-1] = max(kept[-1], each, key=lambda judged: judged.error) if each.holds else kept[-1]
        else:
            kept.append(each)
    first = next((place for place, each in enumerate(kept) if not each.holds), 0)
    start = max(0, min(first - ROWS // 2, len(kept) - ROWS))
    return kept[start : start + ROWS]


def _name(judged: Judged) -> str:
    return f"{judged.owner or 'the model itself'}: {judged.op.removeprefix('aten.').partition('.')[0]}"


def _verdict(judged: Judged) -> str:
    return "transforms" if judged.holds else "does not transform"
