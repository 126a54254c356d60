"""Carry representations through structural ops: both terms of a sum transform as the sum does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from surgeon.finding.inference.hypotheses import Verdict, infer_type
from surgeon.finding.inference.probe import Elements, TensorProbe
from surgeon.recording.record import Recording

_ATEN = torch.ops.aten
_SUMS = (_ATEN.add.Tensor, _ATEN.add_.Tensor, _ATEN.sub.Tensor, _ATEN.sub_.Tensor)
_SAME = (_ATEN.clone.default, _ATEN.detach.default, _ATEN.alias.default, _ATEN._to_copy.default)


def type_by_use(
    recordings: Sequence[Recording],
    elements: Elements,
    name: str,
    call: int,
    index: int,
    apart: tuple[int, ...] = (),
) -> Verdict | None:
    """Find how a module's result transforms from the sums that it enters.

    Needed where some features are 0 on the whole sample batch: their own values say nothing, but what they are added to
    does.

    Args:
        recordings: equal runs, one per element of ``elements.all()``, with copies of the values.
        elements: the group elements.
        name: qualified name of the module.
        call: which of its calls.
        index: which tensor of its result.
        apart: as for :func:`~surgeon.finding.inference.hypotheses.infer_type`.

    Returns:
        The verdict on the first sum that tells; None if there is none.
    """
    positions = [{node: place for place, node in enumerate(recording.graph.nodes)} for recording in recordings]
    nodes = [list(recording.graph.nodes) for recording in recordings]
    results = recordings[0].results.get((name, call), ())
    if index >= len(results) or len({len(each) for each in nodes}) > 1:
        return None
    frontier = [results[index]]
    while frontier:
        node = frontier.pop(0)
        for user in node.users:
            if user.target in _SAME:
                frontier.append(user)
            elif user.target in _SUMS and user.meta["shape"] == node.meta["shape"]:
                verdict = infer_type(_probe(user, positions[0], nodes, recordings, elements), apart=apart)
                if verdict.type is not None and not verdict.silent:
                    return verdict
                frontier.append(user)
    return None


def _probe(
    node: fx.Node,
    position: dict[fx.Node, int],
    nodes: list[list[fx.Node]],
    recordings: Sequence[Recording],
    elements: Elements,
) -> TensorProbe:
    place = position[node]
    values = tuple(recording.values[each[place]] for recording, each in zip(recordings, nodes, strict=True))
    return TensorProbe(elements, values)
