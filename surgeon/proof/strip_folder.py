"""Strip a relaxed folder: clean weights with a certificate, and further formats beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.export.onnx_file import onnx_extra
from surgeon.export.outputs import ALL_OUTPUTS, Selection
from surgeon.export.pt2_file import pt2_extra
from surgeon.export.reopening import container_extra
from surgeon.export.stripped import stripped_beside_original
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.outputs import writing_alone
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.workspace import Workspace
from surgeon.plan import Certificate, Split, StripMode
from surgeon.proof.clean_folder import write_clean
from surgeon.proof.equivariance import MeasureSettings
from surgeon.proof.recalibrated import RECALIBRATION_BATCHES
from surgeon.proof.strip_and_certify import strip_and_certify


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
        folder: where.
        certificate: what was compared with the original, and what came out.
        files: names of the files; empty if nothing was written.
        trained_for: how the folder was trained to be stripped.
    """

    folder: Path
    certificate: Certificate
    files: Sequence[str]
    trained_for: StripMode


def strip_folder(
    path: str | Path,
    target: str | Path,
    settings: StripSettings | None = None,
    *,
    options: OpenOptions | None = None,
    force: bool = False,
    announce: Callable[[str], None] | None = None,
    on_certificate: Callable[[CleanFolder], None] | None = None,
) -> CleanFolder:
    """Remove the branches and write clean weights with a certificate; the relaxed folder stays as it is.

    Args:
        path: the relaxed or run folder, or its address on the Hub.
        target: the clean folder.
        settings: how to strip, and what is written.
        options: how to find model and task.
        force: replace a folder that is there.
        announce: told what takes long.
        on_certificate: told what was found before anything is written, or refused.

    Raises:
        UsageError: if an input lies in the clean folder.
        ExistsError: if the clean folder is there, or another process is writing it.
        CheckpointError: if the folder is not a relaxed one, or its original is gone or has changed.
        CheckFailedError: if the certificate, or a further format, does not hold; nothing is written.
    """
    settings, workspace = settings or StripSettings(), open_path(path, options)
    own: StripMode = workspace.require_relaxed()[0].mode
    workspace.refuse_output(target)
    with writing_alone(target, force):
        source = workspace.reference[1]
        model, certificate = strip_and_certify(
            workspace, settings.mode or own, settings.measure, settings.split, settings.recalibrate
        )
        found = CleanFolder(Path(target), certificate, (), own)
        if on_certificate is not None:
            on_certificate(found)
        extras = _extras(workspace, model, source, settings, announce or (lambda _: None)) if certificate.passed else {}
        statement = workspace.found.factory
        files = write_clean(target, model, certificate, source, extras=extras, statement=statement, force=force)
    return dataclasses.replace(found, files=files)


def _extras(
    workspace: Workspace, model: nn.Module, source: Checkpoint, settings: StripSettings, announce: Callable[[str], None]
) -> dict[str, Callable[[Path], Any]]:
    """Return what writes and checks each further format."""
    found: dict[str, Callable[[Path], Any]] = {}
    if settings.container:
        found["container"] = container_extra(workspace, model, source)
    if not (settings.onnx or settings.pt2):
        return found
    stripped = stripped_beside_original(workspace, model)
    if settings.pt2:
        found["pt2"] = pt2_extra(stripped, announce=announce)
    if settings.onnx:
        found["onnx"] = onnx_extra(stripped, opset=settings.opset, selection=settings.outputs, announce=announce)
    return found
