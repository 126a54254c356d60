"""Open a path that a user names: a checkpoint, a relaxed folder, or a repository on the Hub."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import nn

from surgeon.algebra.penalty_settings import PenaltySettings
from surgeon.editing.adjust import Adjustments, adjust
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import CheckpointError, TaskError
from surgeon.files.address import HubPath, is_hub_path
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import CONFIG_FILE, is_relaxed_folder, read_relaxed, split_state
from surgeon.files.seals import recover
from surgeon.opening.loading import load_branches
from surgeon.opening.models import find_for_folder, find_model
from surgeon.opening.options import OpenOptions
from surgeon.opening.originals import refuse_nonfinite
from surgeon.opening.remote.client import list_files
from surgeon.opening.remote.fetch import fetch_relaxed, open_listed
from surgeon.opening.tasks import LoadedTask, given_task, task_beside, task_of_folder, with_action
from surgeon.opening.trust import check_config
from surgeon.opening.workspace import Workspace
from surgeon.plan import StripMode
from surgeon.support.stages import Stages


def open_path(path: str | Path, options: OpenOptions | None = None, mode: StripMode | None = None) -> Workspace:
    """Open a checkpoint file or a relaxed folder.

    Args:
        path: what the user named.
        options: how to find the model and the task.
        mode: for a relaxed folder, how its branches will be stripped; default as it says itself.

    Raises:
        SurgeonError: one of its subclasses, saying what is wrong with the file, the model, or the task.
    """
    options = options or OpenOptions()
    stages = Stages(options.stage)
    workspace = _opened(path, options, mode)
    for name in workspace.probes:  # what is wrong with them is found now
        stages(f"took the probe {name}")
    size = sum(parameter.numel() for parameter in workspace.model.parameters())
    stages(f"opened a network of {size:,} parameters")
    return workspace


def _opened(path: str | Path, options: OpenOptions, mode: StripMode | None) -> Workspace:
    if is_hub_path(path):
        return _open_hub(HubPath.parse(path), options, mode)
    recover(path)
    if is_relaxed_folder(path):
        return _open_relaxed(Path(path), options, mode)
    if Path(path).is_dir():
        raise CheckpointError(
            f"expected a checkpoint file or a folder made by `surgeon relax`, got the folder {str(path)!r}: "
            "name the file inside it"
        )
    return _open_plain(open_checkpoint(path, trust_pickle=options.trust_pickle, entry=options.entry), options)


def _open_plain(checkpoint: Checkpoint, options: OpenOptions) -> Workspace:
    changes = options.adjustments
    options = with_further_arguments(options, changes)
    task = given_task(options)
    found = find_model(checkpoint, options, task)
    checkpoint = found.checkpoint or checkpoint
    if changes is not None:
        adjust(found.model, changes, str(checkpoint.path))
    if task is None and found.task is None and checkpoint.origin is None:
        task = task_beside(found.model, checkpoint.path, options.task_arguments, options.announce)
    task = bound(task or found.task, found.model, options, checkpoint.path)
    return Workspace(
        checkpoint.path, found.model, found, checkpoint, options, task, origin=checkpoint.origin, adjustments=changes
    )


def _open_hub(path: HubPath, options: OpenOptions, mode: StripMode | None) -> Workspace:
    """Open what is on the Hub: a relaxed model if the repository holds one and no file is named."""
    for flag, trusted in (("--trust-pickle", options.trust_pickle), ("--trust-remote-code", options.trust_remote_code)):
        if trusted:
            path.require_pinned(flag)
    listing = list_files(path)
    if path.file is None and CONFIG_FILE in listing.files:
        return _open_relaxed(fetch_relaxed(listing), options, mode, listing.pinned)
    return _open_plain(open_listed(listing, trust_pickle=options.trust_pickle, entry=options.entry), options)


def _open_relaxed(
    folder: Path, options: OpenOptions, mode: StripMode | None, origin: HubPath | None = None
) -> Workspace:
    files = read_relaxed(folder, sealed=origin is None)
    config = files.config
    check_config(config, str(origin or repr(str(folder))), options.trust_remote_code, remote=origin is not None)
    options = with_further_arguments(options, config.adjustments)
    task = task_of_folder(folder, config, options, origin)
    checkpoint, found = find_for_folder(files, task, options, origin)
    chosen = mode or config.strip_mode
    schedule, form = config.schedule, config.penalty["form"]
    if config.plan.sites:
        relaxation = relax(found.model, config.plan, dense=True, mode=chosen, schedule=schedule, penalty_form=form)
    else:
        relaxation = Relaxation(found.model, config.plan, chosen, schedule, PenaltySettings(form))
    load_branches(found.model, files.branches)
    relaxation.set_theta(*config.theta)
    if config.thetas is not None:
        relaxation.set_thetas(config.thetas)
    task = bound(task, found.model, options, folder)
    if origin is not None:
        refuse_nonfinite(*split_state(found.model.state_dict()), config, origin, options)
    return Workspace(
        folder, found.model, found, checkpoint, options, task, relaxation, files, origin, config.adjustments
    )


def with_further_arguments(options: OpenOptions, adjustments: Adjustments | None) -> OpenOptions:
    """Return options with the arguments that a task which the user names gets by what it has changed."""
    if adjustments is None or not adjustments.arguments:
        return options
    return dataclasses.replace(options, task_arguments={**options.task_arguments, **adjustments.arguments})


def bound(task: LoadedTask | None, model: nn.Module, options: OpenOptions, path: Path) -> LoadedTask | None:
    """Return the task for an opened model, and with the action that the user names.

    Raises:
        TaskError: if it is for other models than this one, or there is no task to act on.
    """
    if task is None and options.action is not None:
        raise TaskError(
            f"expected a task with data for {str(path)!r} to act on by {options.action}, none is known: give "
            "`--task FILE`"
        )
    bound = None if task is None else task.for_model(model)
    return bound if bound is None or options.action is None else with_action(bound, options.action)
