"""``surgeon strip`` and ``surgeon export``: clean weights with a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from surgeon.clean import write_clean
from surgeon.errors import CheckpointError
from surgeon.files import check_writable
from surgeon.types import StripMode
from surgeon.verdict import MeasureSettings, strip_and_certify
from surgeon.workspace import OpenOptions, open_path
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import (
    ForceOption,
    JsonOption,
    Measuring,
    OutOption,
    PathArgument,
    Reopening,
    folder_or_only,
    refuse_overwriting,
)
from surgeon_cli.screen import print_json, say, show_certificate

DropOrFold = Annotated[
    bool | None,
    typer.Option("--fold/--drop", help="Strip in this way instead of as the folder says.", show_default=False),
]
SplitOption = Annotated[
    Literal["validation", "test", "none"], typer.Option("--metrics", help="Split on which metrics are recorded.")
]


@unbundled
def strip(
    path: PathArgument = None,
    *,
    opening: Reopening,
    measuring: Measuring,
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
    """
    settings, options = measuring.settings(), opening.options(json_output)
    _run(folder_or_only(path, json_output), out, fold, metrics, settings, options, False, force, json_output)


@unbundled
def export(
    path: PathArgument = None,
    *,
    opening: Reopening,
    measuring: Measuring,
    out: OutOption = None,
    fold: DropOrFold = None,
    container: Annotated[
        bool, typer.Option("--container", help="Also write a copy of the original file with only the weights replaced.")
    ] = False,
    metrics: SplitOption = "test",
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Do what `strip` does, and write the file format that came in as well.

    Examples:

        surgeon export segnn-run -o clean/ --container
    """
    settings, options = measuring.settings(), opening.options(json_output)
    _run(folder_or_only(path, json_output), out, fold, metrics, settings, options, container, force, json_output)


def _run(
    path: Path,
    out: Path | None,
    fold: bool | None,
    metrics: Literal["validation", "test", "none"],
    settings: MeasureSettings,
    options: OpenOptions,
    container: bool,
    force: bool,
    json_output: bool,
) -> None:
    target = out or Path(f"{path.resolve().name.removesuffix('-run').removesuffix('-relaxed')}-clean")
    refuse_overwriting(target, path, options.task, options.original)
    check_writable(target, force)
    workspace = open_path(path, options)
    if workspace.relaxation is None:
        raise CheckpointError(
            f"expected a relaxed folder, got the plain checkpoint {str(path)!r}: it has no branches, nothing to strip"
        )
    own_mode = workspace.relaxation.mode
    mode: StripMode = own_mode if fold is None else ("fold" if fold else "drop")
    _, source = workspace.original()
    refuse_overwriting(target, source.path, workspace.task.path if workspace.task else None)
    stripped, certificate = strip_and_certify(workspace, mode, settings, None if metrics == "none" else metrics)
    if not json_output and mode != own_mode:
        change = certificate.projection_error
        amount = "an unknown amount, without a task" if change is None else f"{change:.1e} (relative)"
        say(f"the folder was trained to be stripped by {own_mode}; by {mode} its outputs change by {amount}")
    if not certificate.identical and not json_output:
        show_certificate(certificate)
    files = write_clean(target, stripped, certificate, source, container=container, force=force)
    if json_output:
        print_json({"written": str(target), "files": files, "certificate": certificate.to_data()})
        return
    show_certificate(certificate)
    say(f"the architecture is the original's; wrote {target}/: {', '.join(files)}")
