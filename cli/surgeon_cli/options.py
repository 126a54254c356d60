"""Options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import surgeon
from surgeon.errors import UsageError
from surgeon.files.address import HubPath, is_hub_path
from surgeon.files.atomic import put_back
from surgeon.files.seals import finish_update
from surgeon.proof.amounts import MeasureSettings
from surgeon.support.plain import parse_json
from surgeon_cli.screen import say

if TYPE_CHECKING:
    from surgeon.opening.options import OpenOptions

model_option = functools.partial(typer.Option, rich_help_panel="How to find the model")
trust_option = functools.partial(typer.Option, rich_help_panel="Trust")

_GROUP = typer.Option(
    "--group",
    "-g",
    help="Symmetry group: SO2, O2, SO3, O3, SE3, E3, SO13, O13, U1, SU2, SU3, C<n>, D<n>, OCTA, OCTAH, ICOSA, ICOSAH, "
    "P4, P4M, S<n>, Z<n>, SCALE<n>, or your module:function.",
)
GroupOption = Annotated[str, _GROUP]
OptionalGroupOption = Annotated[str | None, _GROUP]
PathArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[PATH]", help="Checkpoint, relaxed folder or hf:// path; default: the only one here."),
]
ActionOption = Annotated[
    str | None,
    typer.Option(
        "--action",
        metavar="MODULE:NAME",
        help="How the group acts, instead of the task's own: an object with act(g, batch) and act_output(g, outputs).",
    ),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="keep|estimate|FILE",
        help='Reference energies of a potential: kept, fitted to the labels, or per element from FILE ({"H": -13.6, '
        "...}); default: fitted if the labels are far off.",
    ),
]
ProbeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--probe",
        metavar="NAME=TASK",
        help="Evaluate original and result on the data of another task, too; may be repeated.",
    ),
]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Also print every table that was made.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
OutOption = Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write.")]


@dataclass(frozen=True)
class FindOptions:
    """How to find the model of a checkpoint, and what is trusted."""

    task: Annotated[
        str | None,
        model_option(
            "--task",
            metavar="FILE",
            help="Task file, module:attribute, or ADAPTER:DATAFILE: data, loss, group action, model.",
        ),
    ] = None
    task_args: Annotated[
        str | None, model_option("--task-args", metavar="JSON", help="Arguments of the task file's make_task.")
    ] = None
    model: Annotated[
        str | None, model_option("--model", metavar="MODULE:FUNCTION", help="Factory that builds the model.")
    ] = None
    model_args: Annotated[
        str | None, model_option("--model-args", metavar="JSON", help="Arguments of the factory.")
    ] = None
    entry: Annotated[
        str | None,
        model_option(
            "--entry",
            metavar="NAME",
            help="Which entry of a checkpoint with several sets of weights (model, ema, ...) to take.",
        ),
    ] = None
    trust_pickle: Annotated[
        bool, trust_option("--trust-pickle", help="Open files that run code when opened (whole pickled modules).")
    ] = False
    trust_remote_code: Annotated[
        bool, trust_option("--trust-remote-code", help="Import a factory, group or task that is named inside a file.")
    ] = False

    trust_task: Annotated[
        bool,
        trust_option(
            "--trust-task",
            help="Run the task file beside the checkpoint, or that of the folder, though it was never given here.",
        ),
    ] = False

    def options(self, quiet: bool) -> OpenOptions:
        """Return what the engine needs to open a path; ``quiet`` keeps the screen for one JSON object.

        Raises:
            UsageError: if a JSON argument is not an object.
        """
        return surgeon.OpenOptions(
            task=self.task,
            task_arguments=as_object(self.task_args, "--task-args"),
            factory=self.model,
            factory_arguments=as_object(self.model_args, "--model-args"),
            entry=self.entry,
            trust_pickle=self.trust_pickle,
            trust_remote_code=self.trust_remote_code,
            trust_task=self.trust_task,
            ask=_ask if not quiet and sys.stdin.isatty() and sys.stderr.isatty() else None,
            announce=None if quiet else _say_task,
            stage=None if quiet else say,
        )


def _ask(question: str) -> bool:
    return typer.confirm(question, err=True)


def _say_task(spec: str) -> None:
    say(f"running the task file {spec}" if spec.endswith(".py") else f"taking the task {spec}")


def with_reference(options: OpenOptions, reference: str | None, opened: Path) -> OpenOptions:
    """Hand ``--reference`` on to the task, whose argument it is.

    Raises:
        UsageError: if a relaxed folder is opened, of which that was decided before.
    """
    from surgeon.files.relaxed import is_relaxed_folder

    if reference is None:
        return options
    if is_relaxed_folder(opened):
        raise UsageError(
            f"expected --reference for a checkpoint only, since those of {str(opened)!r} were decided when it was "
            "relaxed: leave it out, or relax again"
        )
    path = Path(reference)
    value = str(path.absolute()) if path.is_file() else reference
    return dataclasses.replace(options, task_arguments={**options.task_arguments, "reference": value})


def with_probes(options: OpenOptions, given: list[str] | None) -> OpenOptions:
    """Hand ``--probe NAME=TASK`` on.

    Raises:
        UsageError: if a name or a task is missing, or a name is given twice.
    """
    probes: dict[str, str] = {}
    for text in given or ():
        name, _, spec = text.partition("=")
        if not name or not spec or name in probes:
            raise UsageError(f"expected --probe NAME=TASK with a name of its own each time, got {text!r}")
        probes[name] = spec
    return dataclasses.replace(options, probes=probes)


@dataclass(frozen=True)
class ReopenOptions(FindOptions):
    """The same for a relaxed folder, which remembers its task and its original."""

    original: Annotated[
        str | None,
        model_option("--original", metavar="FILE", help="Where the original checkpoint is now, if it was moved."),
    ] = None
    accept_changed_task: Annotated[
        bool, trust_option("--accept-changed-task", help="Go on although the task file has changed since `relax`.")
    ] = False

    def options(self, quiet: bool) -> OpenOptions:
        """Return what the engine needs to open a path."""
        return dataclasses.replace(
            super().options(quiet), original=self.original, accept_changed_task=self.accept_changed_task
        )


@dataclass(frozen=True)
class Measuring:
    """How much to measure."""

    elements: Annotated[
        int, typer.Option("--elements", min=1, help="Random group elements per component and batch.")
    ] = MeasureSettings.elements
    batches: Annotated[int, typer.Option("--batches", min=1, help="Validation batches to measure on.")] = (
        MeasureSettings.batches
    )
    measure_seed: Annotated[int, typer.Option("--measure-seed", help="Seed of the group elements.")] = (
        MeasureSettings.seed
    )

    def settings(self) -> MeasureSettings:
        """Return the engine's settings."""
        return MeasureSettings(self.elements, self.batches, self.measure_seed)


def as_object(text: str | None, flag: str) -> dict[str, Any]:
    """Parse a JSON object given as option.

    Raises:
        UsageError: if it is not one.
    """
    if text is None:
        return {}
    try:
        value = parse_json(text)
    except ValueError as error:
        raise UsageError(f"expected a JSON object after {flag}, got {text!r} ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"expected a JSON object after {flag}, for example '{{\"hidden\": 32}}', got {text!r}")
    return value


def shown(path: str | Path) -> str:
    """Return a path as the user wrote it; ``pathlib`` makes one slash of the two in ``hf://``."""
    return str(HubPath.parse(path)) if is_hub_path(path) else str(path)


def output_stem(path: Path) -> str:
    """Return what outputs made from a path are named after: the file, the folder, or the repository."""
    if is_hub_path(path):
        return HubPath.parse(path).stem
    from surgeon.files.relaxed import is_relaxed_folder

    place = Path(os.path.realpath(path))  # also of a link to itself
    if is_relaxed_folder(place) and place.name.isdigit():  # ARM/SEED of a comparison
        return "-".join(place.parts[-3:])
    return place.name if path.is_dir() else path.stem


def folder_or_only(path: Path | None, quiet: bool, trained: bool = True) -> Path:
    """Return the path, or the only suitable relaxed folder in the current directory, which is named on screen.

    Args:
        path: what the user named, if anything.
        trained: whether run folders are meant; the others, such as what `surgeon relax` wrote, otherwise. Only if there
            is not exactly one of the wanted kind does every relaxed folder count.
    """
    if path is not None:
        return path
    from surgeon.files.relaxed import find_only_folder, is_relaxed_folder
    from surgeon.training.runs import has_run

    here = Path.cwd()
    put_back(here)  # else the only folder could be another than the one that a killed process was replacing
    folders = [place for place in here.iterdir() if is_relaxed_folder(place) and not place.name.startswith(".")]
    for place in folders:
        finish_update(place)
    wanted = [place for place in folders if has_run(place) == trained]
    found = wanted[0] if len(wanted) == 1 else find_only_folder(here)
    if not quiet:
        say(f"using {found.name}/, the only {'run' if has_run(found) else 'relaxed'} folder here")
    return found
