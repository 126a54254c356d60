"""``surgeon strip`` and ``surgeon export``: clean weights with a certificate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import surgeon
from surgeon.errors import UsageError
from surgeon.files.content import read_json
from surgeon.proof.amounts import RECALIBRATION_BATCHES
from surgeon.support.stages import silent
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import (
    ForceOption,
    JsonOption,
    Measuring,
    OutOption,
    PathArgument,
    ProbeOption,
    ReopenOptions,
    VerboseOption,
    folder_or_only,
    output_stem,
    with_probes,
)
from surgeon_cli.screen import print_json, say, show_certificate

if TYPE_CHECKING:
    from surgeon.opening.options import OpenOptions
    from surgeon.plan import Certificate, StripMode
    from surgeon.proof.strip_folder import CleanFolder, StripSettings

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
    probe: ProbeOption = None
    force: ForceOption = False
    verbose: VerboseOption = False
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

    def settings(self) -> dict[str, Any]:
        """Return the engine's settings of the formats.

        Raises:
            UsageError: if outputs are chosen of a file that is not asked for.
        """
        if not self.onnx and (self.outputs is not None or self.energy_only):
            given = "--energy-only" if self.outputs is None else "--outputs"
            raise UsageError(f"expected {given} together with --onnx, whose outputs it chooses: add --onnx")
        from surgeon.export.outputs import Selection

        names = None
        if self.outputs is not None:
            names = tuple(name.strip() for name in self.outputs.split(",") if name.strip())
        chosen = Selection(names, self.energy_only)
        return {"container": self.container, "onnx": self.onnx, "pt2": self.pt2, "opset": self.opset, "outputs": chosen}


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
    opening: ReopenOptions,
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
    settings = surgeon.StripSettings(measure=measuring.settings(), recalibrate=recalibrating.batches())
    _run(path, opening.options(stripping.json_output), settings, stripping)


@unbundled
def export(
    path: PathArgument = None,
    *,
    opening: ReopenOptions,
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
    settings = surgeon.StripSettings(measure=measuring.settings(), recalibrate=recalibrating.batches())
    _run(path, opening.options(stripping.json_output), settings, stripping, formats)


def _run(
    named: Path | None, options: OpenOptions, settings: StripSettings, how: Stripping, formats: Formats | None = None
) -> None:
    from surgeon.files.clean import CERTIFICATE_FILE
    from surgeon.files.relaxed import read_relaxed

    path, options = folder_or_only(named, how.json_output), with_probes(options, how.probe)
    if named is None and read_relaxed(path).config.step == 0:
        raise UsageError(
            f"expected a trained folder here, found only {path.name!r}, which has done no step: give its `surgeon "
            "finetune` (again, if it was killed), or name the folder to strip it as it is"
        )
    target = how.out or Path(f"{output_stem(path).removesuffix('-run').removesuffix('-relaxed')}-clean")
    mode: StripMode | None = None if how.fold is None else ("fold" if how.fold else "drop")
    split = None if how.metrics == "none" else how.metrics
    settings = dataclasses.replace(settings, mode=mode, split=split, **({} if formats is None else formats.settings()))
    quiet = how.json_output
    done = surgeon.strip_folder(
        path,
        target,
        settings,
        options=options,
        force=how.force,
        announce=silent if quiet else say,
        on_certificate=None if quiet else _tell_modes,
    )
    if quiet:
        certificate = read_json(target / CERTIFICATE_FILE)
        print_json({"written": str(target), "files": done.files, "certificate": certificate})
        return
    _show(done.certificate, how.verbose)
    _tell_ports(target)
    if done.certificate.grade == "same form":
        say("note: without a task neither graph nor function nor equivariance was compared: give `--task FILE`")
    say(f"wrote {target}/: {', '.join(done.files)}")


def _tell_ports(target: Path) -> None:
    """Say what the exported files take and give, one line each, so that no column is lost on a narrow screen."""
    from surgeon.files.clean import CERTIFICATE_FILE
    from surgeon.proof.words import INPUTS_AND_OUTPUTS, one_size, sections

    certificate = read_json(target / CERTIFICATE_FILE)
    for files, name, what, axes, irreps, unit in sections(certificate)[INPUTS_AND_OUTPUTS].table[1:]:
        more = (f"transforms as {irreps}" if irreps else "", f"in {unit}" if unit else "")
        say(f"{files.replace('`', '')}: {what} {name}, {', '.join(filter(None, (axes, *more)))}")
    for told in one_size(certificate["details"]):
        say(f"note: {told}")


def _tell_modes(found: CleanFolder) -> None:
    """Say what stripping changes, and show a certificate that does not hold before it is refused."""
    certificate, mode = found.certificate, found.certificate.strip_mode
    change = certificate.projection_error
    if mode != found.trained_for:
        amount = "an unknown amount, without a task" if change is None else f"{change:.1e} (relative)"
        say(f"the folder was trained to be stripped by {found.trained_for}; by {mode} its outputs change by {amount}")
    else:
        perpendicular, parallel = certificate.details["theta"]
        lost = max(perpendicular, parallel) if mode == "drop" else perpendicular
        if lost > 0:
            amount = "by an unknown amount, without a task" if change is None else f"by {change:.1e} (relative)"
            other = "--fold" if mode == "drop" else "--drop"
            say(
                f"note: the branches are still at theta {lost:g}; stripped by {mode}, the outputs change {amount}; "
                f"train on until theta is 0, or compare with {other}"
            )
    if not certificate.passed:
        _show(certificate, verbose=True)


def _show(certificate: Certificate, verbose: bool) -> None:
    show_certificate(certificate, verbose)
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
