"""Open a container that was just written as its users will, and compare what comes out with the stripped model.

Equal keys and a strict load prove nothing: the loader of a library may rename, sort or flip weights by another entry of
the file, or read a second copy of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.errors import CheckFailedError
from surgeon.export.container import write_container
from surgeon.export.deviation import allowed_deviation, largest_deviation
from surgeon.export.stripped import Stripped, stripped_beside_original
from surgeon.files.checkpoint import Checkpoint
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.loader import LOADER, own_loader
from surgeon.opening.loading import with_computed
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.registry import installed_adapters
from surgeon.support.imports import one_line
from surgeon.support.modes import model_dtype
from surgeon.support.trees import tensors_in, to_dtype

PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5}
"""Share of an output's largest entry by which a reopened model may differ, for a loader that converts weights."""

COARSE = 1e-2
"""The same for half precision."""

BATCHES = 2
"""Validation batches that are compared."""


USAGE = "usage"
"""Under this a certificate keeps how the container is used; nothing that is verified."""


@dataclass(frozen=True)
class Reopened:
    """A container opened and compared.

    Attributes:
        opened_by: who opened it, in words.
        batches: on how many the outputs were compared; 0 without a task, when the tensors were compared.
        deviation: largest deviation of the outputs in units of the allowed one.
        bit_equal: whether there was none at all.
    """

    file: str
    opened_by: str
    batches: int
    deviation: float
    bit_equal: bool


def container_extra(workspace: Workspace, model: nn.Module, original: Checkpoint) -> Callable[[Path], dict[str, Any]]:
    """Return a function that writes the original container with new weights into a folder, and opens it again.

    Args:
        workspace: says how the original was opened, and holds the task.
        original: the checkpoint that was relaxed.
    """

    def write(folder: Path) -> dict[str, Any]:
        path = write_beside(folder, model, original)
        stripped = None if workspace.task is None else stripped_beside_original(workspace, model)
        record = dataclasses.asdict(check_container(path, workspace, model, stripped))
        found = (adapter.usage(model, path.name) for adapter in installed_adapters().values())
        return {**record, USAGE: next(filter(None, found), None)}

    return write


def write_beside(folder: Path, model: nn.Module, original: Checkpoint) -> Path:
    """Write a model's weights into a copy of the original container, under its name; return the file.

    The name becomes ``original-NAME`` if the folder has such a file: an original can be called model.safetensors.
    """
    name = original.path.name
    path = folder / (f"original-{name}" if (folder / name).exists() else name)
    tensors = {
        key if key in original.tensors else key.removeprefix(original.prefix): value
        for key, value in with_computed(model, original).items()
    }
    write_container(original, tensors, path)
    return path


def check_container(path: Path, workspace: Workspace, model: nn.Module, stripped: Stripped | None) -> Reopened:
    """Open a container as its users will and compare the model that comes out.

    Per output, ``max|a - b|`` may be ``max(10 max|f32 - f64|, s max|f64|)`` with ``s`` 1e-5 in float32 and 1e-10 in
    float64: a loader may convert the weights to another dtype. Without a task the tensors are compared, bit by bit.

    Args:
        path: the container; it was opened without running code, or is trusted.
        workspace: how the original was opened.
        stripped: the same with task and float64 twin; None without a task.

    Raises:
        CheckFailedError: if it does not open, or gives another model.
    """
    again, source = reopen(path, workspace)
    if stripped is None:
        _compare_tensors(path, source, model, again)
        return Reopened(path.name, source, 0, 0.0, True)
    dtype, task = model_dtype(model), stripped.task
    batches = sample_batches(workspace.require_task(), BATCHES)
    own = outputs_on(model, task, [to_dtype(batch, dtype) for batch in batches])
    exact = outputs_on(stripped.double, task, [to_dtype(batch, model_dtype(stripped.double)) for batch in batches])
    try:
        found = outputs_on(again, task, [to_dtype(batch, model_dtype(again)) for batch in batches])
    except Exception as error:  # the library's model can be anything
        raise CheckFailedError(
            f"the container {path.name!r}, opened by {source}, gives a model that fails with {one_line(error)}: "
            "export without --container"
        ) from error
    worst, equal = 0.0, True
    for a, b, c in zip(own, found, exact, strict=True):
        left, right = tensors_in(a), tensors_in(b)
        pairs = zip(left, tensors_in(c), strict=True)
        allowed = [allowed_deviation(x, y, PRECISION.get(dtype, COARSE)) for x, y in pairs]
        worst = max(worst, largest_deviation(right, left, allowed))
        equal = equal and len(left) == len(right) and all(map(torch.equal, left, right))
    if not worst <= 1:
        raise CheckFailedError(_other_outputs(path, source, worst, workspace))
    return Reopened(path.name, source, len(batches), worst, equal)


def reopen(path: Path, workspace: Workspace) -> tuple[nn.Module, str]:
    """Open a container through the library's own loader, if the task or an adapter knows it, else as the original.

    Returns:
        The model, and who opened it, in words.

    Raises:
        CheckFailedError: if that fails.
    """
    own = own_loader(workspace.task)
    adapters = installed_adapters().items()
    known = {f"the loader of the adapter {name}": adapter.reopen for name, adapter in adapters}
    for source, load in ({LOADER: own} if own else known).items():
        try:
            model = load(path)
        except Exception as error:  # code of a library or of the user
            raise _refused(path, source, error) from error
        if model is not None:
            return model, source
    try:
        return workspace.reopened(path)
    except Exception as error:  # the code of a trusted module runs
        raise _refused(path, workspace.found.words, error) from error


def _refused(path: Path, source: str, error: Exception) -> CheckFailedError:
    return CheckFailedError(
        f"the container {path.name!r} was written, but {source} cannot open it ({one_line(error)}): "
        "export without --container"
    )


def _compare_tensors(path: Path, source: str, model: nn.Module, again: nn.Module) -> None:
    expected, found = model.state_dict(), again.state_dict()
    differing = [key for key in expected if key not in found or not torch.equal(expected[key], found[key])]
    if differing:
        raise CheckFailedError(
            f"the container {path.name!r}, opened by {source}, gives other weights ({len(differing)} tensors, first "
            f"{differing[0]}): export without --container"
        )


def _other_outputs(path: Path, source: str, ratio: float, workspace: Workspace) -> str:
    extras = list(workspace.original()[1].extras)
    kept = f"one of the entries that were kept ({', '.join(extras[:5])})" if extras else "something in the file"
    return (
        f"the container {path.name!r}, opened by {source}, does not give the trained model back: its outputs deviate "
        f"{ratio:.1f} times as much as allowed, although the weights in it are the right ones; the loader changes "
        f"weights by {kept}, or reads others: export without --container"
    )
