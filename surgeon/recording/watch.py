"""Run a model once more, and keep copies of a few of the values that a recorded run has computed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.recording.record import Recording, unchanged, without_recording
from surgeon.recording.scripted import as_written
from surgeon.support.compiler import DispatchMode
from surgeon.support.trees import fresh_copy, map_tensors

_UNCOUNTED = (operator.getitem, torch.ops.aten.detach.default)
"""Parts of results, which no op makes, and what torch puts in by itself where somebody else holds a tensor."""


class Watch(DispatchMode):
    """Copies what some ops of a run return, which are known by their number.

    Attributes:
        values: of each chosen node, its value in every run so far; None once a run has dispatched other ops.
    """

    def __init__(self, recording: Recording, nodes: Collection[fx.Node]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ops = [n for n in recording.graph.nodes if n.op == "call_function" and n.target not in _UNCOUNTED]
        self.values: dict[fx.Node, list[Tensor]] | None = {node: [] for node in nodes}
        self._number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _UNCOUNTED:
            return result
        node = self._ops[self._number] if self._number < len(self._ops) else None
        self._number += 1
        if node is None or node.target is not func:
            self.values = None
        elif self.values is not None and node in self.values:
            with without_recording():
                self.values[node].append(result.detach().clone())
        return result

    def run(self, model: nn.Module, inputs: tuple[Any, ...], forward: Callable[..., Any]) -> Any:
        """Run the model that was recorded, in its present mode, on copies of other inputs."""
        given, self._number = map_tensors(fresh_copy, inputs), 0
        with unchanged(model), as_written(model), self:
            outputs = forward(model, *given)
        if self._number != len(self._ops):
            self.values = None
        return outputs
