"""The command that goes on from here, as it is typed: with every flag without which it would be refused."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

from surgeon.opening.allowance import is_registered
from surgeon.opening.description import base_of
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import is_adapters_task
from surgeon.opening.workspace import Workspace


def finetune_command(folder: Path, workspace: Workspace, group: str) -> str:
    """Return the command that trains a folder that was just made of an opened checkpoint, under a group by its name."""
    module = workspace.found.factory is None and workspace.checkpoint.module is not None
    trusted = workspace.options.trust_remote_code or ":" in group  # a group that is code was named by the user
    options = dataclasses.replace(workspace.options, trust_remote_code=trusted)
    return _command("finetune", folder, options, trust_pickle=module)


def trial_command(workspace: Workspace) -> str:
    """Return the command that tries, part by part, the task of an opened checkpoint."""
    options = dataclasses.replace(workspace.options, probes={}, original=None)
    known = options.task is not None and Path(options.task).is_file()
    flags = ["--task", str(options.task), *_arguments("--task-args", options.task_arguments)] if known else []
    return _command("init", Path(workspace.name), options, *flags, trust_pickle=options.trust_pickle)


def strip_command(folder: Path, workspace: Workspace) -> str:
    """Return the command that writes clean weights of a run, in the form in which the original came."""
    base = base_of(workspace)
    verb, flags = ("strip", ()) if base["container"] == "safetensors" else ("export", ("--container",))
    return _command(verb, folder, workspace.options, *flags, trust_pickle=base["pickle"])


def strip_again(workspace: Workspace, *flags: str) -> str:
    """Return the command that strips what was opened, with further flags."""
    folder, options = Path(workspace.name), workspace.options
    return _command("strip", folder, options, *flags, trust_pickle=options.trust_pickle)


def _command(verb: str, folder: Path, options: OpenOptions, *flags: str, trust_pickle: bool) -> str:
    """Return a command on a folder, which remembers task files, registered factories and the checkpoint's place."""
    words = ["surgeon", verb, as_argument(folder), *flags]
    task, factory = options.task, options.factory
    if task is not None and not Path(task).is_file() and not is_adapters_task(task):
        words += ["--task", task, *_arguments("--task-args", options.task_arguments)]
    if factory is not None and not is_registered(factory):
        words += ["--model", factory, *_arguments("--model-args", options.factory_arguments)]
    words += [word for name, spec in options.probes.items() for word in ("--probe", f"{name}={spec}")]
    if options.original is not None:
        words += ["--original", options.original]
    flagged = {"--trust-pickle": trust_pickle, "--trust-remote-code": options.trust_remote_code}
    return shlex.join([*words, *(flag for flag, wanted in flagged.items() if wanted)])


def as_argument(path: Path) -> str:
    """Return a path as a word of a command, which begins like an option only where it is one."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _arguments(flag: str, values: object) -> list[str]:
    return [flag, json.dumps(values)] if values else []
