"""The ops of a recorded run in which trainable parameters meet an activation: what could be a linear map."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import fx

from surgeon.recording.record import Recording

Meeting = Literal["contraction", "convolution", "product", "shift", "lookup", "normalisation", "other"]

_NAMES: Mapping[Meeting, str] = {
    "contraction": "mm bmm addmm baddbmm mv addmv dot linear",
    "convolution": "convolution",
    "product": "mul.Tensor mul_.Tensor addcmul div.Tensor",
    "shift": "add.Tensor add_.Tensor sub.Tensor sub_.Tensor",
    "normalisation": "native_batch_norm _native_batch_norm_legit cudnn_batch_norm _batch_norm_with_update "
    "native_layer_norm native_group_norm",
    "lookup": "embedding index.Tensor index_select",
}


def _aten(name: str) -> object:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


MEETINGS: Mapping[object, Meeting] = {
    _aten(name): meeting for meeting, names in _NAMES.items() for name in names.split()
}


@dataclass(frozen=True)
class Candidate:
    """Ops of one module, as far as parameters and activations meet there.

    Attributes:
        module: the innermost module that holds both the ops and the parameters.
        parameters: first qualified names of the parameters, in the order of their use.
        meetings: what each op does with the two.
    """

    module: str
    parameters: tuple[str, ...]
    nodes: tuple[fx.Node, ...]
    meetings: tuple[Meeting, ...]

    @property
    def multiplies(self) -> bool:
        """True if some op may be a linear map of the activation."""
        return any(meeting in ("contraction", "convolution", "product") for meeting in self.meetings)

    @property
    def contracts(self) -> bool:
        """True if some op sums over an axis of the activation."""
        return any(meeting in ("contraction", "convolution") for meeting in self.meetings)


def find_candidates(recording: Recording, trainable: frozenset[str]) -> dict[str, Candidate]:
    """Collect, per module, the ops of the forward in which its trainable parameters meet an activation.

    Args:
        trainable: qualified names of the parameters that are trained.

    Returns:
        Module name to candidate, in the order of execution.
    """
    found: dict[str, tuple[dict[str, None], list[fx.Node], list[Meeting]]] = {}
    first_names = {name: first for first, names in recording.aliases.items() for name in names}
    for node in recording.graph.nodes:
        if node.op != "call_function" or node.meta["backward"] or node.meta["parameters"]:
            continue
        inputs = [argument for argument in node.meta["sources"] if argument.meta["shape"] is not None]
        parameters = {name: None for part in inputs for name in sorted(part.meta["parameters"]) if name in trainable}
        if not parameters:
            continue
        names_of_user = recording.aliases.get(node.meta["owner"], (node.meta["owner"],))
        module = max((_common(recording, user, list(parameters)) for user in names_of_user), key=len)
        module = first_names.get(module, module)
        names, nodes, meetings = found.setdefault(module, ({}, [], []))
        names.update(parameters)
        nodes.append(node)
        meetings.append(MEETINGS.get(node.target, "other"))
    return {
        module: Candidate(module, tuple(names), tuple(nodes), tuple(meetings))
        for module, (names, nodes, meetings) in found.items()
    }


def meetings_by_parameter(candidates: Iterable[Candidate]) -> dict[str, dict[fx.Node, Meeting]]:
    """Return, per parameter, the ops in which it, or what is made of it, meets an activation, and what they do."""
    found: dict[str, dict[fx.Node, Meeting]] = {}
    for candidate in candidates:
        own = set(candidate.parameters)
        for node, meeting in zip(candidate.nodes, candidate.meetings, strict=True):
            met = set().union(*(part.meta["parameters"] for part in node.meta["sources"]))
            for parameter in own & met:
                found.setdefault(parameter, {})[node] = meeting
    return found


def _common(recording: Recording, user: str, parameters: list[str]) -> str:
    """The innermost module that holds an op and, under some name each, its parameters."""
    owners = []
    for parameter in parameters:
        names = recording.aliases.get(parameter, (parameter,))
        choices = [name.rpartition(".")[0] for name in names]
        owners.append(max(choices, key=lambda owner: len(common_module([user, owner]))))
    return common_module([user, *owners])


def common_module(names: list[str]) -> str:
    """Return the innermost module that all the named modules are in (or are)."""
    parts = [name.split(".") if name else [] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def reaches_output(recording: Recording) -> set[fx.Node]:
    """Return the nodes from which a path leads to the output."""
    reached: set[fx.Node] = set()
    for node in reversed(recording.graph.nodes):
        if node.op == "output" or node in reached:
            reached |= {node, *node.meta["sources"]}
    return reached
