"""What a relaxed folder says of the network that it was made from, and whether that is still so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from surgeon.editing.relaxation import Relaxation
from surgeon.errors import CheckpointError
from surgeon.files.reading import keys_hash
from surgeon.files.relaxed import Base, Penalty, RecordedGraph, RelaxedConfig, split_state
from surgeon.opening.task_calls import task_batches, task_forward
from surgeon.opening.tasks import LoadedTask
from surgeon.opening.workspace import Workspace
from surgeon.recording.compare import graph_hash
from surgeon.recording.record import record
from surgeon.support.attributes import tensor_sha256
from surgeon.support.modes import in_evaluation_mode, model_dtype
from surgeon.support.trees import tensors_in, to_dtype
from surgeon.support.versions import versions


def relaxed_config(
    workspace: Workspace,
    relaxation: Relaxation,
    *,
    penalty: Penalty,
    step: int = 0,
    thetas: Mapping[str, tuple[float, float]] | None = None,
    arm: str | None = None,
    graph: RecordedGraph | None = None,
) -> RelaxedConfig:
    """Describe a relaxed model for its folder; a folder made from a folder keeps the first one's base and graph.

    ``graph`` is that of the original, where it was recorded already; else the original is built for that.
    """
    thetas = thetas or relaxation.thetas
    if workspace.files is not None:
        model = workspace.files.config.model
    else:
        known = workspace.found.factory or {}
        model = {"factory": known["factory"], "args": known["args"]} if "factory" in known else None
    task = workspace.task
    if workspace.files is not None:
        graph = workspace.files.config.graph
    elif graph is None and task is not None:
        graph = original_graph(workspace.original()[0], task)
    return RelaxedConfig(
        plan=relaxation.plan,
        strip_mode=relaxation.mode,
        schedule=relaxation.schedule,
        penalty=penalty,
        theta=next(iter(thetas.values()), (0.0, 0.0)),
        thetas=dict(thetas) if len(set(thetas.values())) > 1 else None,
        step=step,
        float64=workspace.float64,
        base=base_of(workspace),
        graph=graph,
        arm=arm,
        adjustments=workspace.adjustments or None,
        model=model,
        task=None
        if task is None
        else {"path": str(task.path or task.spec), "sha256": task.sha256, "args": dict(task.arguments)},
    )


def base_of(workspace: Workspace) -> Base:
    """Describe the checkpoint that was relaxed, or is to be."""
    if workspace.files is not None:
        return workspace.files.config.base
    checkpoint = workspace.checkpoint
    origin = checkpoint.origin
    return {
        "repo": origin.repo if origin else None,
        "file": (origin.file if origin else None) or str(checkpoint.path.absolute()),
        "entry": checkpoint.entry,
        "revision": origin.revision if origin else None,
        "sha256": checkpoint.sha256,
        "keys_hash": keys_hash(split_state(workspace.model.state_dict())[0]),
        "container": "safetensors" if checkpoint.converted else checkpoint.container,
        "pickle": checkpoint.needs_trust,
    }


def recorded_graph(network: nn.Module, run: Callable[[nn.Module], Any], inputs: Any) -> RecordedGraph:
    """Record a network without branches in eval mode.

    Args:
        network: only read.
        run: one forward, ``run(network)``.
        inputs: what it runs on, a nest of tensors of any shapes.

    Returns:
        JSON-compatible: ``sha256`` of the recorded graph, ``batch`` (of the inputs' tensors), and ``versions``.
    """
    digest = hashlib.sha256("".join(tensor_sha256(tensor) for tensor in tensors_in(inputs)).encode()).hexdigest()
    with torch.random.fork_rng(devices=[]), in_evaluation_mode(network):
        graph = record(network, forward=run).graph
    return {"sha256": graph_hash(graph), "batch": digest, "versions": versions(network)}


def original_graph(original: nn.Module, task: LoadedTask) -> RecordedGraph:
    """Record the original, without branches, on the first validation batch; returned as by :func:`recorded_graph`."""
    batch = to_dtype(next(iter(task_batches(task.task, "validation", 0))), model_dtype(original))
    return recorded_graph(original, lambda model: task_forward(task.task, model, batch), batch)


def not_comparable(known: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say why two records of :func:`recorded_graph` do not tell whether the source has changed; empty if they do."""
    for name, words in (("versions", "versions of libraries"), ("batch", "data")):
        if now[name] != known[name]:
            return f"it was relaxed with other {words}"
    return ""


def check_code(workspace: Workspace, original: nn.Module | None = None) -> str:
    """Compare the original's graph with the one of its folder, if both are of one batch and the same versions.

    Args:
        original: as its code builds it now, without branches; by default it is opened, if it is still there.

    Returns:
        What was found: that the source is the same, or why that was not compared.

    Raises:
        CheckpointError: if the same batch gives another graph: the model's code has changed since.
    """
    known = None if workspace.files is None else workspace.files.config.graph
    if known is None or workspace.task is None:
        return "the network's source was not compared: no task was known when it was relaxed, or none is now"
    if original is None:
        try:
            original, _ = workspace.original()
        except CheckpointError as error:
            return f"the network's source was not compared: {error}"
    now = original_graph(original, workspace.task)
    why = not_comparable(known, now)
    if why:
        return f"the network's source was not compared: {why}"
    if now["sha256"] != known["sha256"]:
        raise CheckpointError(
            f"expected the network that {workspace.name!r} was made from, but on the same batch its code now computes "
            f"another graph (sha256 {now['sha256'][:12]}, then {known['sha256'][:12]}), if it is not another build of "
            "this version of surgeon that records it otherwise: restore the model's source, or relax again"
        )
    return "the network's source computes the graph that was recorded when it was relaxed"
