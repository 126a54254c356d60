"""Write ``model.pt2``, a ``torch.export`` archive, but only after it was shown to do what the model does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckFailedError
from surgeon.export.archive import Archive, read_archive
from surgeon.export.capture import quiet
from surgeon.export.checks import check_run
from surgeon.export.ports import axes_of_program
from surgeon.export.program import OWNER, inputs_of, require_same_run, to_program
from surgeon.export.sample import Sample, sample_for, with_free_axes
from surgeon.export.stripped import Stripped
from surgeon.export.unscript import eager
from surgeon.support.modes import in_evaluation_mode
from surgeon.support.trees import tensors_in

PT2_FILE = "model.pt2"


def export_pt2(path: Path, stripped: Stripped, *, announce: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Export a stripped model and prove the file; the caller removes it if this raises.

    Checked are: a run of the model against one of the original, see :func:`require_same_run`; every tensor by its bits;
    and what ``torch.export.load`` makes of the file, by its outputs and its equivariance on batches of other sizes.

    Args:
        path: the file to write; its name ends in ``.pt2``.
        stripped: the model, on the CPU, and what it is compared with; no equivariance check without a group.
        announce: told what is being done, since it takes a while.

    Returns:
        JSON-compatible: names, sizes, hashes and what was measured.

    Raises:
        CheckFailedError: if a check fails; it says what differs.
    """
    sample = sample_for(stripped)
    stripped = eager(stripped, sample.batch)
    announce("exporting the model with torch.export")
    require_same_run(stripped.model, stripped.original, stripped.task, sample)
    record, one_size = with_free_axes(sample, lambda own: _checked_file(path, stripped, own, announce))
    return {**record, "one_size": one_size}


def _checked_file(path: Path, stripped: Stripped, sample: Sample, announce: Callable[[str], None]) -> dict[str, Any]:
    """Export a model, write the archive and check it."""
    program = to_program(stripped.model, stripped.task, sample)
    inputs, axes = inputs_of(program), axes_of_program(program, sample.titles())
    save_program(program, path)
    written = read_archive(path)
    differing = differing_tensors(written, stripped.model)
    if differing:
        raise CheckFailedError(f"the exported program is not the model's: {differing[0]}; nothing was written")
    announce("comparing the archive with the model")
    figures = check_run(archive_runner(path, sample, inputs), "the torch.export archive", stripped, sample).figures()
    outputs = [name for name in axes if name not in inputs]
    return {**describe(written, inputs), "outputs": outputs, "axes": axes, **figures}


def describe(archive: Archive, inputs: Sequence[str]) -> dict[str, Any]:
    """Return what a certificate says of an archive, apart from what was measured."""
    return {
        "nodes": len(archive.nodes),
        "graph_sha256": archive.digest,
        "inputs": list(inputs),
        "tensors": len(archive.weights),
    }


def save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    """Write a program as an archive, without stack traces, which hold paths of this machine.

    It is put together in memory: torch's own writer ends the process where the disk is full.
    """
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    archive = io.BytesIO()
    with quiet():
        torch.export.save(program, archive)
    path.write_bytes(archive.getbuffer())


def differing_tensors(archive: Archive, model: nn.Module) -> list[str]:
    """Say which tensors of an archive are not, bit by bit, those of a model under the same names."""
    with in_evaluation_mode(model):  # some libraries compute tensors from the parameters for it
        state = model.state_dict()
    found = []
    for key, stored in archive.weights.items():
        name = key.removeprefix(OWNER)
        if name not in state:
            found.append(f"{name} is no tensor of the model")
        elif not stored.equals(state[name]):
            found.append(f"{name} has not the values of the model")
    return found


def archive_runner(path: Path, sample: Sample, inputs: Sequence[str]) -> Callable[[Any], list[Tensor]]:
    """Return a function from a batch to the outputs of an archive, which must be trusted: loading can run code."""
    with quiet():
        module = torch.export.load(path).module()

    def run(batch: Any) -> list[Tensor]:
        named = dict(zip(sample.names, tensors_in(batch), strict=True))
        return [tensor.detach() for tensor in tensors_in(module({name: named[name] for name in inputs}))]

    return run
