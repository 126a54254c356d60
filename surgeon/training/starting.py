"""From an opened path to what an arm trains: with branches where it needs them, and without where it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.algebra.penalty_settings import PenaltySettings
from surgeon.algebra.schedule import Schedule
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.errors import UsageError
from surgeon.files.relaxed import RelaxedFiles, split_state
from surgeon.opening.adjusting import adjusted
from surgeon.opening.description import relaxed_config
from surgeon.opening.evaluation import rehearse
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.planning import empty_plan, require_group
from surgeon.opening.relaxing import PENALTY, RelaxSettings, wanted_plan
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan, StripMode
from surgeon.training.arms import ARMS, Arm, Contender, arm_named, require_single, updates_of
from surgeon.training.settings import FinetuneSettings


@dataclass(frozen=True)
class Start:
    """Where a training starts.

    Attributes:
        workspace: what is trained; its folder's configuration is that of a relaxed folder, also if there is none.
        arm: how the branches take part.
        plan: where branches, or updates, go; without sites if the arm has neither.
        bare: whether a checkpoint was named that had never been relaxed.
        said: what there is to know of such a checkpoint, and of what the task changes in it.
    """

    workspace: Workspace
    arm: Arm
    plan: Plan
    bare: bool
    said: tuple[str, ...] = ()

    def added(self, settings: FinetuneSettings) -> Relaxation | WeightUpdates | None:
        """Return what the arm trains besides the weights of the network itself; updates are put in now."""
        if self.arm.updates:
            return updates_of(self.arm, self.workspace.model, self.plan, settings)
        return self.workspace.require_relaxed()[0] if self.arm.mode is not None else None


def start_from(
    path: str | Path, arm: str | None, options: OpenOptions | None = None, relaxing: RelaxSettings | None = None
) -> Start:
    """Open a checkpoint or a relaxed folder and give it the branches that an arm needs, or take off what it has.

    A checkpoint is relaxed in memory, as ``surgeon relax`` would; branches that an arm does not need are stripped as
    their folder says, which changes nothing before a training, where theta is 0.

    Args:
        arm: name of the arm; None for that of the folder, and for ``plain`` from a checkpoint.
        options: how to find model and task.
        relaxing: where branches go in a checkpoint that was never relaxed, and its group.

    Raises:
        UsageError: if a folder without branches is named with an arm that has some.
        PlanError: if the folder is of another group than the one that is asked for, or nothing can be relaxed.
        CheckFailedError: if the group is not the model's symmetry.
    """
    chosen = None if arm is None else arm_named(arm)
    if chosen is not None:
        require_single(chosen)
    workspace = open_path(path, options, chosen.mode if chosen else None)
    relaxing = relaxing or RelaxSettings()
    if workspace.relaxation is None:
        return start_bare(workspace, chosen or ARMS["plain"], relaxing)
    relaxation, files = workspace.require_relaxed()
    require_group(relaxation.plan, relaxing.group, repr(workspace.name))
    chosen = chosen or arm_named(files.config.arm or relaxation.mode)
    plan = relaxation.plan
    if (chosen.mode is not None or chosen.updates) and not plan.sites:
        raise UsageError(
            f"expected a folder with branches for the arm {chosen.name!r}, but {workspace.name!r} has none: strip it, "
            "and start from the clean weights"
        )
    if chosen.mode is None and plan.sites:
        strip(relaxation)
        workspace.relaxation = bare = without_branches(workspace, workspace.model)
        kept: dict[str, Any] = {"plan": bare.plan, "strip_mode": bare.mode, "schedule": bare.schedule, "thetas": None}
        config = dataclasses.replace(files.config, **kept)
        workspace.files = dataclasses.replace(files, config=config, branches={})
    return Start(workspace, chosen, plan, bare=False)


def open_for_comparison(
    path: str | Path,
    arms: Sequence[str],
    options: OpenOptions | None = None,
    relaxing: RelaxSettings | None = None,
    plan: Plan | None = None,
    say: Callable[[str], None] | None = None,
) -> Workspace:
    """Open what arms are compared from; a checkpoint that was never relaxed is relaxed in memory if an arm needs it.

    Args:
        path: the checkpoint or the relaxed folder.
        arms: as they are named in a comparison.
        options: how to find model and task.
        relaxing: where branches go in a checkpoint, and its group.
        plan: the same, if it was found before.
        say: told what there is to know of a checkpoint, and of what the task changes in it.
    """
    workspace, relaxing = open_path(path, options), relaxing or RelaxSettings()
    if workspace.relaxation is not None:
        require_group(workspace.relaxation.plan, relaxing.group, repr(workspace.name))
        return workspace
    workspace, said = _adjusted(workspace)
    if say is not None:
        for sentence in said:
            say(sentence)
    if plan is None:
        given = [Contender.parse(name).arm for name in arms]
        needs = sorted(given, key=lambda arm: (arm.refolds, arm.mode is not None or arm.updates))
        plan = start_plan(workspace, needs[-1] if needs else arm_named("plain"), relaxing)
    take_up(workspace, plan, "drop" if plan.sites else None, relaxing)
    return workspace


def start_plan(workspace: Workspace, arm: Arm, relaxing: RelaxSettings) -> Plan:
    """Return where branches, or updates, go in an opened checkpoint; errors as for :func:`start_from`."""
    rehearse(workspace.model, workspace.require_task().task)
    if arm.mode is not None or arm.updates:
        if arm.refolds and relaxing.fits_rank:
            relaxing = dataclasses.replace(relaxing, dense=True)
        return wanted_plan(workspace, relaxing)
    return empty_plan(workspace, relaxing.group)


def start_bare(workspace: Workspace, arm: Arm, relaxing: RelaxSettings) -> Start:
    """Return the start from an opened checkpoint; arguments and errors as for :func:`start_from`."""
    workspace, said = _adjusted(workspace)
    plan = start_plan(workspace, arm, relaxing)
    take_up(workspace, plan, arm.mode, relaxing)
    return Start(workspace, arm, plan, bare=True, said=said)


def _adjusted(workspace: Workspace) -> tuple[Workspace, tuple[str, ...]]:
    workspace.require_task()
    workspace, said = adjusted(workspace)
    return workspace, (*(f"note: {note}" for note in workspace.found.notes), *said)


def without_branches(workspace: Workspace, model: nn.Module) -> Relaxation:
    """Return the handle on a model without branches, with the group and the schedule of an opened relaxed folder."""
    relaxation, _ = workspace.require_relaxed()
    return _bare(model, relaxation.plan, relaxation.schedule)


def _bare(model: nn.Module, plan: Plan, schedule: Schedule) -> Relaxation:
    without_sites = dataclasses.replace(schedule, sites=())
    return Relaxation(model, dataclasses.replace(plan, sites=()), "drop", without_sites, PenaltySettings())


def take_up(workspace: Workspace, plan: Plan, mode: StripMode | None, relaxing: RelaxSettings) -> None:
    """Make of an opened checkpoint what opening its relaxed folder would have made, without writing that.

    Args:
        workspace: of a checkpoint; edited.
        mode: how they will be stripped; None for no branches.
        relaxing: how they start.
    """
    model, schedule = workspace.model, relaxing.schedule
    if mode is not None:
        relaxation = relax(model, plan, dense=True, mode=mode, schedule=schedule, init_scale=relaxing.init_scale)
    else:
        relaxation = _bare(model, plan, schedule)
    config = relaxed_config(workspace, relaxation, penalty=PENALTY)
    base, branches = split_state(model.state_dict())
    branches = {name: tensor.clone() for name, tensor in branches.items()}  # as they start
    workspace.files = RelaxedFiles(config, base, branches, workspace.checkpoint.metadata, workspace.path)
    workspace.relaxation = relaxation
