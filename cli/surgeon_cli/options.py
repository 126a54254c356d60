"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from surgeon.checkpoint import find_only_folder, is_relaxed_folder
from surgeon.errors import UsageError
from surgeon.training import has_run
from surgeon.workspace import OpenOptions
from surgeon_cli.screen import say

MODEL = "How to find the model"
TRUST = "Trust"

TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="FILE",
        help="Task file (or module:attribute): data, loss, group action, model.",
        rich_help_panel=MODEL,
    ),
]
TaskArgsOption = Annotated[
    str | None,
    typer.Option("--task-args", metavar="JSON", help="Arguments of the task file's make_task.", rich_help_panel=MODEL),
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="MODULE:FUNCTION", help="Factory that builds the model.", rich_help_panel=MODEL),
]
ModelArgsOption = Annotated[
    str | None,
    typer.Option("--model-args", metavar="JSON", help="Arguments of the factory.", rich_help_panel=MODEL),
]
EntryOption = Annotated[
    str | None,
    typer.Option(
        "--entry",
        metavar="NAME",
        help="Which entry of a checkpoint with several sets of weights (model, ema, ...) to take.",
        rich_help_panel=MODEL,
    ),
]
OriginalOption = Annotated[
    str | None,
    typer.Option(
        "--original",
        metavar="FILE",
        help="Where the original checkpoint is now, if it was moved.",
        rich_help_panel=MODEL,
    ),
]
AcceptChangedTaskOption = Annotated[
    bool,
    typer.Option(
        "--accept-changed-task", help="Go on although the task file has changed since `relax`.", rich_help_panel=TRUST
    ),
]
TrustPickleOption = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="Open files that run code when opened (whole pickled modules).", rich_help_panel=TRUST
    ),
]
TrustRemoteCodeOption = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Import a factory that is named inside a file.", rich_help_panel=TRUST),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.")]
ElementsOption = Annotated[
    int, typer.Option("--elements", min=1, help="Random group elements per component and batch for measurements.")
]
BatchesOption = Annotated[int, typer.Option("--batches", min=1, help="Validation batches for measurements.")]


def as_object(text: str | None, flag: str) -> dict[str, Any]:
    """Parse a JSON object given as option.

    Raises:
        UsageError: if it is not one.
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"expected a JSON object after {flag}, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"expected a JSON object after {flag}, for example '{{\"hidden\": 32}}', got {text!r}")
    return value


def open_options(
    task: str | None = None,
    task_args: str | None = None,
    model: str | None = None,
    model_args: str | None = None,
    original: str | None = None,
    accept_changed_task: bool = False,
    trust_pickle: bool = False,
    trust_remote_code: bool = False,
    quiet: bool = False,
    entry: str | None = None,
) -> OpenOptions:
    """Collect the shared options."""
    return OpenOptions(
        task=task,
        task_arguments=as_object(task_args, "--task-args"),
        accept_changed_task=accept_changed_task,
        factory=model,
        factory_arguments=as_object(model_args, "--model-args"),
        entry=entry,
        original=original,
        trust_pickle=trust_pickle,
        trust_remote_code=trust_remote_code,
        announce=None if quiet else lambda path: say(f"running the task file {path}"),
    )


def refuse_overwriting(target: Path, *inputs: str | Path | None) -> None:
    """Refuse an output folder in which an input of the command lies, which `--force` would delete.

    Raises:
        UsageError: naming the input.
    """
    for given in inputs:
        if given is not None and Path(given).resolve().is_relative_to(target.resolve()):
            raise UsageError(
                f"expected an output apart from the input, but {str(given)!r} lies in {str(target)!r}: "
                "choose another `-o`"
            )


def folder_or_only(path: Path | None, quiet: bool = False, untrained: bool = False) -> Path:
    """Return the path, or the only relaxed folder in the current directory, which is named on screen.

    Args:
        path: what the user named, if anything.
        quiet: print nothing.
        untrained: leave run folders aside where there is one other folder, so that `finetune` repeats itself.
    """
    if path is not None:
        return path
    fresh = [place for place in Path.cwd().iterdir() if place.is_dir() and is_relaxed_folder(place)]
    fresh = [place for place in fresh if not place.name.startswith(".") and not has_run(place)]
    found = Path.cwd() / fresh[0].name if untrained and len(fresh) == 1 else find_only_folder(Path.cwd())
    if not quiet:
        say(f"using {found.name}/, the only relaxed folder here")
    return found
