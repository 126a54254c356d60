"""``surgeon strip`` and ``surgeon export``: clean weights with a certificate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from torch import nn

from surgeon.clean import write_clean
from surgeon.errors import CheckpointError
from surgeon.export import onnx_extra
from surgeon.files import check_writable
from surgeon.groups import parse_group
from surgeon.tasks import can_act
from surgeon.types import Certificate, StripMode
from surgeon.verdict import RECALIBRATION_BATCHES, MeasureSettings, strip_and_certify
from surgeon.workspace import OpenOptions, Workspace, open_path
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
    refuse_overwriting,
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
class Formats:
    """What is written beside safetensors: the original container, and ONNX of an operator set, if one is given."""

    container: bool = False
    opset: int | None = None


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
    out: OutOption = None,
    fold: DropOrFold = None,
    metrics: SplitOption = "test",
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Remove the branches and write clean safetensors with a certificate; the relaxed folder stays as it is.

    Examples:

        surgeon strip segnn-run -o clean/

        surgeon strip segnn-run --fold --metrics none

        surgeon strip pointnet-run --recalibrate 200
    """
    settings, options = measuring.settings(), opening.options(json_output)
    folder, batches = folder_or_only(path, json_output), recalibrating.batches()
    _run(folder, out, fold, metrics, settings, batches, options, Formats(), force, json_output)


@unbundled
def export(
    path: PathArgument = None,
    *,
    opening: Reopening,
    measuring: Measuring,
    recalibrating: Recalibrating,
    out: OutOption = None,
    fold: DropOrFold = None,
    container: Annotated[
        bool, typer.Option("--container", help="Also write a copy of the original file with only the weights replaced.")
    ] = False,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Also write model.onnx, checked in ONNX Runtime; takes a minute or two.")
    ] = False,
    opset: Annotated[int, typer.Option("--opset", help="Version of the ONNX operator set.")] = 18,
    metrics: SplitOption = "test",
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Do what `strip` does, and write ONNX or the file format that came in as well.

    Examples:

        surgeon export segnn-run -o clean/ --container

        surgeon export segnn-run -o clean/ --onnx
    """
    settings, options = measuring.settings(), opening.options(json_output)
    folder, batches = folder_or_only(path, json_output), recalibrating.batches()
    formats = Formats(container, opset if onnx else None)
    _run(folder, out, fold, metrics, settings, batches, options, formats, force, json_output)


def _run(
    path: Path,
    out: Path | None,
    fold: bool | None,
    metrics: Literal["validation", "test", "none"],
    settings: MeasureSettings,
    recalibration_batches: int,
    options: OpenOptions,
    formats: Formats,
    force: bool,
    json_output: bool,
) -> None:
    target = out or Path(f"{output_stem(path).removesuffix('-run').removesuffix('-relaxed')}-clean")
    refuse_overwriting(target, path, options.task, options.original)
    check_writable(target, force)
    workspace = open_path(path, options)
    if workspace.relaxation is None:
        raise CheckpointError(
            f"expected a relaxed folder, got the plain checkpoint {shown(path)!r}: it has no branches, nothing to strip"
        )
    own_mode = workspace.relaxation.mode
    mode: StripMode = own_mode if fold is None else ("fold" if fold else "drop")
    _, source = workspace.original()
    refuse_overwriting(target, source.path, workspace.task.path if workspace.task else None)
    split = None if metrics == "none" else metrics
    stripped, certificate = strip_and_certify(workspace, mode, settings, split, recalibration_batches)
    if not json_output and mode != own_mode:
        change = certificate.projection_error
        amount = "an unknown amount, without a task" if change is None else f"{change:.1e} (relative)"
        say(f"the folder was trained to be stripped by {own_mode}; by {mode} its outputs change by {amount}")
    if not certificate.identical and not json_output:
        _show(certificate)
    extras = {} if formats.opset is None else {"onnx": _onnx(workspace, stripped, formats.opset, json_output)}
    files = write_clean(target, stripped, certificate, source, container=formats.container, extras=extras, force=force)
    if json_output:
        print_json({"written": str(target), "files": files, "certificate": certificate.to_data()})
        return
    _show(certificate)
    say(f"the architecture is the original's; wrote {target}/: {', '.join(files)}")


def _onnx(workspace: Workspace, stripped: nn.Module, opset: int, json_output: bool) -> Callable[[Path], Any]:
    """Return what writes and checks ``model.onnx``."""
    task, relaxation = workspace.require_task().task, workspace.relaxation
    assert relaxation is not None
    original, _ = workspace.original()
    group = parse_group(relaxation.plan.group) if can_act(task) else None
    announce = (lambda _: None) if json_output else say
    return onnx_extra(stripped, original, workspace.double(stripped), task, group, opset=opset, announce=announce)


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
