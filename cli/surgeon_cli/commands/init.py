"""``surgeon init``: a first task file for a checkpoint."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import surgeon
from surgeon.errors import CheckFailedError
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import FindOptions, ForceOption, JsonOption, shown
from surgeon_cli.screen import print_json, print_table, say

if TYPE_CHECKING:
    from surgeon.proof.first_task import TaskStep


@unbundled
def init(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file or hf:// path.")],
    *,
    opening: FindOptions,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The task file.")] = Path("task.py"),
    group: Annotated[
        str | None,
        typer.Option("--group", "-g", help="Symmetry group that is tried; default: O3, or SO3 if only that is."),
    ] = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Write a first task file for a checkpoint, with what can be seen in it, and try it.

    A family that has a ready task needs none: then this is said, and nothing is written. With --task the given task is
    tried, and nothing is written: the model is opened, batches are drawn, a training step is made on a copy, and the
    group's action is tried. Exit code 1 if one of these fails.

    Examples:

        surgeon init model.pt --model mypackage.nets:make_net

        surgeon init model.pt --task task.py --group SO3
    """
    done = surgeon.init_task(path, out, group, options=opening.options(json_output), force=force)
    if json_output:
        print_json({**dataclasses.asdict(done), "written": None if done.written is None else str(done.written)})
    else:
        if done.seen:
            say(f"{shown(path)}: {done.seen}")
        if done.family:
            trusted = " --trust-pickle" if opening.trust_pickle else ""
            say(
                "its family has a ready task, which is enough with a file of your data, so nothing was written; next: "
                f"surgeon finetune {shlex.quote(shown(path))}{trusted} --task {done.family}:DATAFILE --arm plain"
            )
        print_table("the task", [("what", "works", "what was seen, or is missing"), *map(_row, done.steps)])
        if done.written is not None:
            again = f"surgeon init {shlex.quote(shown(path))} --task {shlex.quote(str(done.written))}"
            say(f"wrote {done.written}: complete what says TODO; next: {again}")
    if opening.task and not done.passed:
        raise CheckFailedError("the task does not do yet what is needed: see above")


def _row(step: TaskStep) -> tuple[str, str, str]:
    return step.name, step.outcome, step.note
