"""The sums that results enter which are 0 on the whole batch: what they are added to tells how they transform."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.recording.calls import Calls, captured_calls
from surgeon.recording.record import Recording, record
from surgeon.recording.watch import Watch
from surgeon.support.trees import tensors_in

_ATEN = torch.ops.aten
_SUMS = (_ATEN.add.Tensor, _ATEN.add_.Tensor, _ATEN.sub.Tensor, _ATEN.sub_.Tensor)
_SAME = (_ATEN.clone.default, _ATEN.detach.default, _ATEN.alias.default, _ATEN._to_copy.default)

Result = tuple[str, int]
"""A module, and which tensor of what it returns first."""


def silent_results(calls: Mapping[str, Calls]) -> list[Result]:
    """Return the tensors that modules return first of which some features are 0."""
    return [
        (name, index)
        for name, own in calls.items()
        if own
        for index, tensor in enumerate(tensors_in(own[0][1]))
        if tensor.is_floating_point() and tensor.numel() and silent_axes(tensor)
    ]


def silent_axes(x: Tensor) -> tuple[int, ...]:
    """Return the axes, by negative positions, along which some entries of a tensor are 0; it has entries."""
    if bool(x.all()):
        return ()
    profiles = ((axis, x.movedim(axis, 0).reshape(x.shape[axis], -1)) for axis in range(-x.ndim, 0))
    return tuple(axis for axis, profile in profiles if bool((profile == 0).all(1).any()))


def sums_entered(recording: Recording, results: Iterable[Result]) -> Iterator[fx.Node]:
    """Yield the sums of a recorded run that some results enter, for each the nearest first; each once."""
    seen: set[fx.Node] = set()  # sums enter sums, in many ways
    for name, index in results:
        nodes = recording.results.get((name, 0), ())
        frontier = deque(nodes[index : index + 1])
        while frontier:
            current = frontier.popleft()
            for user in current.users:
                sums = user.target in _SUMS and user.meta["shape"] == current.meta["shape"]
                if user not in seen and (sums or user.target in _SAME):
                    seen.add(user)
                    frontier.append(user)
                    if sums:
                        yield user


class KeptSums:
    """The values in several runs of a model of the sums that silent results enter.

    Where each is what some module returns, it is taken there; else every op is watched, which takes longer.

    Attributes:
        values: of each sum, one tensor per run so far; None once a run was another.
    """

    def __init__(
        self, model: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], recording: Recording, silent: list[Result]
    ) -> None:
        """Keep nothing yet.

        Args:
            model: as it will be run.
            recording: a run of it, perhaps in another mode, which tells what modules return.
        """
        self._model, self._symmetry, self._inputs, self._silent = model, symmetry, inputs, silent
        self.recording = recording
        self._watch: Watch | None = None
        self._places = _places(model, recording, list(sums_entered(recording, silent)))
        self.values: dict[fx.Node, list[Tensor]] | None = {node: [] for node in self._places or ()}

    def run(self, g: Tensor | None) -> Any:
        """Run the model under an element of the group; return its outputs."""
        if self._places is None:
            return self._watched(g)
        modules = {name: self._model.get_submodule(name) for name, _, _ in self._places.values()}
        with captured_calls(modules) as calls:
            output = self._symmetry.run(self._model, self._inputs, g)
        for node, (name, call, index) in self._places.items():
            results = tensors_in(calls[name][call][1]) if call < len(calls[name]) else []
            if self.values is not None and index < len(results):
                self.values[node].append(results[index])
            else:
                self.values = None
        return output

    def _watched(self, g: Tensor | None) -> Any:
        symmetry, inputs = self._symmetry, self._inputs
        if self._watch is None:
            self.recording = record(self._model, *inputs, forward=symmetry.forward)
            self._watch = Watch(self.recording, list(sums_entered(self.recording, self._silent)))
        moved = inputs if g is None else symmetry.moved(g, inputs)
        output = self._watch.run(self._model, moved, symmetry.forward)
        self.values = self._watch.values
        return output


def _places(model: nn.Module, recording: Recording, nodes: list[fx.Node]) -> dict[fx.Node, tuple[str, int, int]] | None:
    """Return for each node of which module it is a result: its name, the call, the tensor; None unless all are any."""
    known = {
        node: (name, call, index)
        for (name, call), results in recording.results.items()
        if not isinstance(model.get_submodule(name), torch.jit.ScriptModule)
        for index, node in enumerate(results)
    }
    return {node: known[node] for node in nodes} if all(node in known for node in nodes) else None
