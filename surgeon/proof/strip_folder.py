"""Strip a relaxed folder: clean weights with a certificate, and further formats beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.errors import SurgeonError
from surgeon.export.onnx_file import ONNX_FILE, export_onnx
from surgeon.export.outputs import ALL_OUTPUTS, Selection
from surgeon.export.pt2_file import PT2_FILE, export_pt2
from surgeon.export.reopening import container_extra
from surgeon.export.stripped import stripped_beside_original
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.outputs import writing_alone
from surgeon.opening.next_command import strip_again
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import told
from surgeon.opening.workspace import Workspace
from surgeon.plan import Certificate, Split, StripMode
from surgeon.proof.amounts import RECALIBRATION_BATCHES, MeasureSettings
from surgeon.proof.clean_folder import write_clean
from surgeon.proof.strip_and_certify import strip_and_certify
from surgeon.support.memory import large_ones_apart
from surgeon.support.stages import Announce, Stage, silent, timed

FORMATS, WRITING = "preparing further formats", "writing the clean folder"


@dataclass(frozen=True)
class StripSettings:
    """How to strip, how much to measure, and what is written.

    Attributes:
        mode: "drop" or "fold"; None for what the folder was trained for.
        measure: how much of the equivariance is measured.
        split: on which metrics are recorded; None for no metrics.
        recalibrate: training batches, at most, on which the statistics of normalisation layers are measured anew.
        container: also a copy of the original file with only the weights replaced.
        onnx: also ``model.onnx``, checked in ONNX Runtime.
        pt2: also ``model.pt2``, an archive of torch.export, checked after loading.
        opset: version of the ONNX operator set.
        outputs: which outputs ``model.onnx`` has.
    """

    mode: StripMode | None = None
    measure: MeasureSettings = field(default_factory=MeasureSettings)
    split: Split | None = "test"
    recalibrate: int = RECALIBRATION_BATCHES
    container: bool = False
    onnx: bool = False
    pt2: bool = False
    opset: int = 18
    outputs: Selection = ALL_OUTPUTS


@dataclass(frozen=True)
class CleanFolder:
    """What :func:`strip_folder` has written.

    Attributes:
        certificate: what was compared with the original, and what came out.
        files: names of the files; empty if nothing was written.
        trained_for: how the folder was trained to be stripped.
    """

    folder: Path
    certificate: Certificate
    files: Sequence[str]
    trained_for: StripMode


@large_ones_apart()
def strip_folder(
    path: str | Path,
    target: str | Path,
    settings: StripSettings | None = None,
    *,
    options: OpenOptions | None = None,
    force: bool = False,
    announce: Announce = silent,
    on_certificate: Callable[[CleanFolder], None] | None = None,
) -> CleanFolder:
    """Remove the branches and write clean weights with a certificate; the relaxed folder stays as it is.

    Args:
        path: the relaxed or run folder, or its address on the Hub.
        target: the clean folder.
        settings: how to strip, and what is written.
        options: how to find model and task.
        force: replace a folder that is there.
        announce: told what takes long, and how long each stage took.
        on_certificate: told what was found before anything is written, or refused.

    Raises:
        UsageError: if an input lies in the clean folder.
        ExistsError: if the clean folder is there, or another process is writing it.
        CheckpointError: if the folder is not a relaxed one, or its original is gone or has changed.
        CheckFailedError: if the certificate, or a further format, does not hold; nothing is written.
        SurgeonError: if anything else fails on the way; it says where the trained weights are, and what to do next.
    """
    settings, workspace = settings or StripSettings(), open_path(path, options)
    own: StripMode = workspace.require_relaxed()[0].mode
    workspace.refuse_output(target)
    stage = partial(_kept, announce, workspace, Path(target), settings.mode or own)
    with writing_alone(target, force):
        model, certificate = strip_and_certify(
            workspace, settings.mode or own, settings.measure, settings.split, settings.recalibrate, stage
        )
        source = workspace.reference[1]
        found = CleanFolder(Path(target), certificate, (), own)
        if on_certificate is not None:
            on_certificate(found)
        extras: dict[str, Callable[[Path], Any]] = {}
        if certificate.passed:
            with stage(FORMATS):
                extras = _extras(workspace, model, source, settings, announce)
        written = {name: partial(_written, stage, name, write) for name, write in extras.items()}
        statement = workspace.found.factory
        with stage(WRITING):
            files = write_clean(target, model, certificate, source, extras=written, statement=statement, force=force)
    return dataclasses.replace(found, files=files)


def _written(stage: Stage, name: str, write: Callable[[Path], Any], folder: Path) -> Any:
    with stage(f"writing the format {name}"):
        return write(folder)


@contextmanager
def _kept(announce: Announce, workspace: Workspace, target: Path, mode: StripMode, name: str) -> Iterator[None]:
    """Time a stage; if it fails, say where the trained weights are and which command does without it."""
    where = f"the trained weights stay in {workspace.name}"
    try:
        with timed(name, announce):
            yield
    except Exception as error:
        by_the_system = isinstance(error, OSError) and not isinstance(error, SurgeonError)
        if where in str(error) or (by_the_system and "format" in name):  # the stage around this one tells it
            raise
        if mode == "drop":
            where += ", whose model.safetensors holds them without branches"
        words = f"{where}; next: {_without(name, workspace, target)}"
        found = told(error, name)
        found.args = (f"{found}; {words}",)
        if found is error:
            raise
        raise found from error


def _without(name: str, workspace: Workspace, target: Path) -> str:
    """Return, in words, the command that does without a stage; of one that has to be, the one that shows what fails."""
    if name == "computing metrics":
        return f"`{strip_again(workspace, '-o', str(target), '--metrics', 'none')}` leaves the metrics out"
    command = strip_again(workspace, "-o", str(target))
    if "format" in name:
        return f"`{command}` writes weights and certificate alone"
    if name == WRITING:
        return f"give `{command}` again when that is mended"
    return f"`{command.replace('surgeon', 'surgeon --debug', 1)}` shows where it fails"


def _extras(
    workspace: Workspace, model: nn.Module, source: Checkpoint, settings: StripSettings, announce: Announce
) -> dict[str, Callable[[Path], Any]]:
    """Return what writes and checks each further format."""
    found: dict[str, Callable[[Path], Any]] = {}
    if settings.container:
        found["container"] = container_extra(workspace, model, source)
    if not (settings.onnx or settings.pt2):
        return found
    stripped = stripped_beside_original(workspace, model)
    if settings.pt2:
        found["pt2"] = lambda folder: export_pt2(folder / PT2_FILE, stripped, announce=announce)
    if settings.onnx:
        chosen: dict[str, Any] = {"opset": settings.opset, "selection": settings.outputs}
        found["onnx"] = lambda folder: export_onnx(folder / ONNX_FILE, stripped, **chosen, announce=announce)
    return found
