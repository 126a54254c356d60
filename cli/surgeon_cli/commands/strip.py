"""``surgeon strip`` and ``surgeon export``: clean weights with a certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import nn

from surgeon.errors import CheckpointError, UsageError
from surgeon.export.onnx_file import onnx_extra
from surgeon.export.outputs import Selection
from surgeon.export.pt2_file import pt2_extra
from surgeon.export.reopening import container_extra
from surgeon.export.stripped import stripped_beside_original
from surgeon.files.atomic import check_writable
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import CERTIFICATE_FILE
from surgeon.files.content import read_json
from surgeon.files.outputs import refuse_overwriting
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.workspace import Workspace
from surgeon.plan import Certificate, StripMode
from surgeon.proof.certificate_words import grade_words
from surgeon.proof.clean import write_clean
from surgeon.proof.verdict import RECALIBRATION_BATCHES, MeasureSettings, strip_and_certify
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import (
    ForceOption,
    JsonOption,
    Measuring,
    OutOption,
    PathArgument,
    Reopening,
    folder_or_only,
    output_stem,
    shown,
)
from surgeon_cli.screen import print_json, say, show_certificate

DropOrFold = Annotated[
    bool | None,
    typer.Option("--fold/--drop", help="Strip in this way instead of as the folder says.", show_default=False),
]
SplitOption = Annotated[
    Literal["validation", "test", "none"], typer.Option("--metrics", help="Split on which metrics are recorded.")
]


@dataclass(frozen=True)
class Stripping:
    """How to strip, where to write, and what is told."""

    out: OutOption = None
    fold: DropOrFold = None
    metrics: SplitOption = "test"
    force: ForceOption = False
    json_output: JsonOption = False


@dataclass(frozen=True)
class Formats:
    """What is written beside safetensors."""

    container: Annotated[
        bool, typer.Option("--container", help="Also write a copy of the original file with only the weights replaced.")
    ] = False
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write model.onnx, checked in ONNX Runtime; takes a minute or two.")
    ] = False
    pt2: Annotated[
        bool, typer.Option("--pt2", help="Also write model.pt2, an archive of torch.export, checked after loading.")
    ] = False
    opset: Annotated[int, typer.Option("--opset", help="Version of the ONNX operator set.")] = 18
    outputs: Annotated[
        str | None, typer.Option("--outputs", metavar="NAME,...", help="Only these outputs in model.onnx.")
    ] = None
    energy_only: Annotated[
        bool,
        typer.Option(
            "--energy-only",
            help="Only outputs in model.onnx that need no derivative inside the forward: energies, but no forces.",
        ),
    ] = False

    def selection(self) -> Selection:
        """Return which outputs ``model.onnx`` has.

        Raises:
            UsageError: if there is nothing to select from.
        """
        if not self.onnx and (self.outputs is not None or self.energy_only):
            given = "--energy-only" if self.outputs is None else "--outputs"
            raise UsageError(f"expected {given} together with --onnx, whose outputs it chooses: add --onnx")
        if self.outputs is None:
            return Selection(None, self.energy_only)
        return Selection(tuple(name.strip() for name in self.outputs.split(",") if name.strip()), self.energy_only)


@dataclass(frozen=True)
class Recalibrating:
    """Whether statistics of normalisation layers are measured anew on the stripped model."""

    recalibrate: Annotated[
        int,
        typer.Option(
            "--recalibrate",
            metavar="N",
            min=1,
            help="Measure statistics of normalisation layers anew, on at most N training batches.",
        ),
    ] = RECALIBRATION_BATCHES
    no_recalibrate: Annotated[
        bool, typer.Option("--no-recalibrate", help="Leave these statistics as the relaxed model gathered them.")
    ] = False

    def batches(self) -> int:
        """Return the largest number of batches; 0 for none."""
        return 0 if self.no_recalibrate else self.recalibrate


@unbundled
def strip(
    path: PathArgument = None,
    *,
    opening: Reopening,
    measuring: Measuring,
    recalibrating: Recalibrating,
    stripping: Stripping,
) -> None:
    """Remove the branches and write clean safetensors with a certificate; the relaxed folder stays as it is.

    Examples:

        surgeon strip segnn-run -o clean/

        surgeon strip segnn-run --fold --metrics none

        surgeon strip pointnet-run --recalibrate 200
    """
    options = opening.options(stripping.json_output)
    _run(path, options, measuring.settings(), recalibrating.batches(), stripping, Formats())


@unbundled
def export(
    path: PathArgument = None,
    *,
    opening: Reopening,
    measuring: Measuring,
    recalibrating: Recalibrating,
    formats: Formats,
    stripping: Stripping,
) -> None:
    """Do what `strip` does, and write ONNX, a torch.export archive, or the file format that came in as well.

    Examples:

        surgeon export segnn-run -o clean/ --container

        surgeon export segnn-run -o clean/ --onnx --pt2

        surgeon export potential-run -o clean/ --onnx --energy-only
    """
    formats.selection()  # refused before anything is computed
    options = opening.options(stripping.json_output)
    _run(path, options, measuring.settings(), recalibrating.batches(), stripping, formats)


def _run(
    named: Path | None,
    options: OpenOptions,
    settings: MeasureSettings,
    recalibration_batches: int,
    how: Stripping,
    formats: Formats,
) -> None:
    path = folder_or_only(named, how.json_output)
    target = how.out or Path(f"{output_stem(path).removesuffix('-run').removesuffix('-relaxed')}-clean")
    refuse_overwriting(target, path, options.task, options.original)
    check_writable(target, how.force)
    workspace = open_path(path, options)
    if workspace.relaxation is None:
        raise CheckpointError(
            f"expected a relaxed folder, got the plain checkpoint {shown(path)!r}: it has no branches, nothing to strip"
        )
    if named is None and workspace.files is not None and workspace.files.config.step == 0:
        raise UsageError(
            f"expected a trained folder here, found only {path.name!r}, which has done no step: give its `surgeon "
            "finetune` (again, if it was killed), or name the folder to strip it as it is"
        )
    own_mode = workspace.relaxation.mode
    mode: StripMode = own_mode if how.fold is None else ("fold" if how.fold else "drop")
    _, source = workspace.original()
    refuse_overwriting(target, source.path, workspace.task.file if workspace.task else None)
    split = None if how.metrics == "none" else how.metrics
    model, certificate = strip_and_certify(workspace, mode, settings, split, recalibration_batches)
    if not how.json_output and mode != own_mode:
        change = certificate.projection_error
        amount = "an unknown amount, without a task" if change is None else f"{change:.1e} (relative)"
        say(f"the folder was trained to be stripped by {own_mode}; by {mode} its outputs change by {amount}")
    elif not how.json_output:
        _tell_theta(certificate, mode)
    if not certificate.passed and not how.json_output:
        _show(certificate)
    extras = _extras(workspace, model, source, formats, (lambda _: None) if how.json_output else say)
    statement = workspace.found.factory
    files = write_clean(target, model, certificate, source, extras=extras, statement=statement, force=how.force)
    if how.json_output:
        print_json({"written": str(target), "files": files, "certificate": read_json(target / CERTIFICATE_FILE)})
        return
    _show(certificate)
    recalibrated = bool(certificate.details.get("recalibration", {}).get("done"))
    say(grade_words(certificate.grade, recalibrated))
    if certificate.grade == "same form":
        say("note: without a task neither graph nor function nor equivariance was compared: give `--task FILE`")
    say(f"wrote {target}/: {', '.join(files)}")


def _tell_theta(certificate: Certificate, mode: StripMode) -> None:
    """Say it if the branches were still at work, so that stripping changes what the model computes."""
    perpendicular, parallel = certificate.details["theta"]
    lost = max(perpendicular, parallel) if mode == "drop" else perpendicular
    if lost > 0:
        change, other = certificate.projection_error, "--fold" if mode == "drop" else "--drop"
        amount = "by an unknown amount, without a task" if change is None else f"by {change:.1e} (relative)"
        say(
            f"note: the branches are still at theta {lost:g}; stripped by {mode}, the outputs change {amount}; "
            f"train on until theta is 0, or compare with {other}"
        )


def _extras(
    workspace: Workspace, model: nn.Module, source: Checkpoint, formats: Formats, announce: Callable[[str], None]
) -> dict[str, Callable[[Path], Any]]:
    """Return what writes and checks each further format."""
    found: dict[str, Callable[[Path], Any]] = {}
    if formats.container:
        found["container"] = container_extra(workspace, model, source)
    if not (formats.onnx or formats.pt2):
        return found
    stripped = stripped_beside_original(workspace, model)
    if formats.pt2:
        found["pt2"] = pt2_extra(stripped, announce=announce)
    if formats.onnx:
        selection = formats.selection()
        found["onnx"] = onnx_extra(stripped, opset=formats.opset, selection=selection, announce=announce)
    return found


def _show(certificate: Certificate) -> None:
    show_certificate(certificate)
    if "recalibration" in certificate.details:
        _tell_recalibration(certificate.details["recalibration"])


def _tell_recalibration(record: Mapping[str, Any]) -> None:
    """Say what became of the statistics of normalisation layers."""
    if not record["done"]:
        say(f"statistics of normalisation layers were not recalibrated: {record['why']}")
        return
    layers = record["layers"]
    done = {name: max(layer["mean"], layer["variance"]) for name, layer in layers.items() if not layer["note"]}
    largest = max(done, key=lambda name: done[name])
    say(
        f"statistics of {len(done)} normalisation layers recalibrated on {record['batches']} training batches: "
        f"validation {record['metric']} {record['before']:.6g} before, {record['after']:.6g} after; "
        f"largest relative change {done[largest]:.2g} ({largest})"
    )
    for name, layer in layers.items():
        if layer["note"]:
            say(f"statistics of {name} were not recalibrated: {layer['note']}")
    if record["worse"]:
        say("note: validation was better with the statistics that training gathered; --no-recalibrate keeps them")
