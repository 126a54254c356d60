"""Relax a checkpoint: find or read a plan, narrow it, insert branches, and write the relaxed folder."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from surgeon.algebra.schedule import Schedule
from surgeon.editing.budget import with_blocks, with_fitting_rank, with_rank, within_budget
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.select import select
from surgeon.errors import PlanError, SurgeonError, UsageError
from surgeon.files.outputs import writing_alone
from surgeon.files.relaxed import Penalty, RecordedGraph, write_relaxed
from surgeon.opening.adjusting import adjusted
from surgeon.opening.description import original_graph, relaxed_config
from surgeon.opening.evaluation import evaluate, evaluate_probes, in_words, rehearse
from surgeon.opening.next_command import finetune_command, trial_command
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.planning import plan_for, read_plan
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan, StripMode
from surgeon.support.imports import one_line
from surgeon.support.memory import large_ones_apart
from surgeon.support.stages import Stages

PENALTY: Penalty = {"lambda": 0.01, "form": "gram", "scale": "relative"}
"""What a relaxed folder says of the penalty before it is trained."""


@dataclass(frozen=True)
class RelaxSettings:
    """Where branches go, of what form they are, and how they start.

    Attributes:
        group: the symmetry; None for that of the plan's file, or O3, or SO3 if only the rotations hold.
        plan: file that ``surgeon inspect --plan`` wrote; None looks for ops.
        include: shell patterns; only ops whose names match get a branch.
        exclude: shell patterns of ops that get none.
        dense: every W is dense, as in the paper. Without this, a rank or blocks, all get one rank, the highest with
            which the branches fit into the budget.
        rank: of every W, where that has fewer parameters.
        blocks: pairs (l of the input, l of the output) to which W is restricted.
        budget: most extra parameters; a float is a share of the network's own. Sites that do not fit get no branch.
            None: as many as the network has if the rank follows from the budget, else any number.
        strip_mode: "drop" is the paper's method, "fold" keeps the equivariant part of W.
        schedule: theta over time, with shares of theta per site.
        init_scale: of the initial W; 0 starts at W = 0.

    Raises:
        UsageError: if a value is unusable, or needs or excludes another.
    """

    group: str | None = None
    plan: Path | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    dense: bool = False
    rank: int | None = None
    blocks: Sequence[tuple[int, int]] | None = None
    budget: int | float | None = None
    strip_mode: StripMode = "drop"
    schedule: Schedule = field(default_factory=Schedule)
    init_scale: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.init_scale):
            raise UsageError(f"expected a finite --init-scale, got {self.init_scale}")
        if self.dense + (self.rank is not None) + (self.blocks is not None) > 1:
            raise UsageError("expected one of --dense, --rank and --blocks, got more: leave the others out")

    @property
    def fits_rank(self) -> bool:
        """Whether the rank of W follows from the budget."""
        return not self.dense and self.rank is None and self.blocks is None


@dataclass(frozen=True)
class Relaxed:
    """What :func:`relax_checkpoint` has done.

    Attributes:
        folder: what was written; None if nothing was.
        relaxation: handle on the branches, in the network that was opened.
        parameters: of the network itself.
        seconds: that opening and relaxing took.
        next: the command that goes on with the folder, or tries the task where that fails; empty without a folder.
        fails: whether the task does, so that the model cannot be trained on it.
        before: metrics of the model on the validation split, before any training.
        probes: by the names of the probes, its metrics on their test splits.
        told: what was found before the branches were inserted, in sentences.
    """

    folder: Path | None
    relaxation: Relaxation
    parameters: int
    seconds: Mapping[str, float]
    next: str = ""
    fails: bool = False
    before: Mapping[str, float] = field(default_factory=dict)
    probes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    @property
    def plan(self) -> Plan:
        """Where the branches are."""
        return self.relaxation.plan


@large_ones_apart()
def relax_checkpoint(
    path: str | Path,
    target: str | Path | None,
    settings: RelaxSettings | None = None,
    *,
    options: OpenOptions | None = None,
    force: bool = False,
) -> Relaxed:
    """Insert a branch at every relaxable op of a checkpoint, and write a relaxed folder.

    Args:
        path: the checkpoint, or its address on the Hub.
        target: the relaxed folder; None writes nothing.
        settings: where branches go.
        options: how to find model and task.
        force: replace a folder that is there.

    Raises:
        UsageError: if the checkpoint lies in the folder, or the settings cannot be used.
        ExistsError: if the folder is there, or another process is writing it.
        PlanError: if there are branches already, nothing can be relaxed, or a pattern matches nothing.
        CheckFailedError: if the group is not the model's symmetry.
        TaskError: if the model could not be trained on the task's batches.
    """
    settings = settings or RelaxSettings()
    started = time.perf_counter()
    workspace = open_path(path, options)
    if workspace.relaxation is not None:
        raise PlanError(
            f"expected a checkpoint without branches, got the relaxed model {workspace.name!r}: strip it first"
        )
    if target is None:
        return _relaxed(*adjusted(workspace), settings, started)
    workspace.refuse_output(target)
    with writing_alone(target, force):
        graph = _early_graph(workspace)
        workspace, said = adjusted(workspace)
        relaxed = _relaxed(workspace, said, settings, started)
        known = graph if workspace.adjustments is None else None
        config = relaxed_config(workspace, relaxed.relaxation, penalty=PENALTY, graph=known)
        stages = Stages(workspace.options.stage)
        write_relaxed(target, workspace.model, config, workspace.checkpoint.metadata, force)
        stages("wrote the folder")
    group = relaxed.plan.group
    goes_on = trial_command(workspace) if relaxed.fails else finetune_command(Path(target), workspace, group)
    return dataclasses.replace(relaxed, folder=Path(target), next=goes_on)


def _early_graph(workspace: Workspace) -> RecordedGraph | None:
    """Record the network while it is as it was built, so that it need not be built once more; None if that fails."""
    if workspace.task is not None:
        with contextlib.suppress(Exception):  # it is tried again, and told of, when the folder is described
            return original_graph(workspace.model, workspace.task)
    return None


def _relaxed(workspace: Workspace, said: tuple[str, ...], settings: RelaxSettings, started: float) -> Relaxed:
    if workspace.task is not None:
        rehearse(workspace.model, workspace.task.task)
    before, words, fails = _before(workspace)
    probes = evaluate_probes(workspace.model, workspace.probes)
    on_probes = [f"before, on {name}: {in_words(workspace.probes[name].task, probes[name])}" for name in probes]
    opened = time.perf_counter()
    own = sum(parameter.numel() for parameter in workspace.model.parameters())
    relaxation = relax(
        workspace.model,
        wanted_plan(workspace, settings),
        dense=True,  # what is not has its rank already
        mode=settings.strip_mode,
        schedule=settings.schedule,
        init_scale=settings.init_scale,
    )
    seconds = {"open": opened - started, "relax": time.perf_counter() - opened}
    told = tuple(filter(None, (*said, words, *on_probes)))
    return Relaxed(None, relaxation, own, seconds, fails=fails, before=before, probes=probes, told=told)


def _before(workspace: Workspace) -> tuple[Mapping[str, float], str, bool]:
    """Evaluate the model as it was opened, which shows wrong weights at once; say what is in the way, and if it is."""
    if workspace.task is None:
        return {}, "", False
    task = workspace.task.task
    try:
        metrics = evaluate(workspace.model, task, "validation")
    except SurgeonError as error:
        return {}, f"before: no metrics, {error}", True
    except Exception as error:  # of the user's code; a model can be relaxed all the same
        told = f"the task fails on the validation split with {one_line(error)}: correct it before training"
        return {}, f"before: no metrics, {told}", True
    return metrics, f"before: {in_words(task, metrics)}", False


def wanted_plan(workspace: Workspace, settings: RelaxSettings) -> Plan:
    """Return where branches go in an opened checkpoint: the plan that is given, or the one that is found, narrowed."""
    own = sum(parameter.numel() for parameter in workspace.model.parameters())
    if settings.plan is not None:
        plan = select(read_plan(settings.plan, settings.group), settings.include, settings.exclude)
    else:
        plan = plan_for(workspace, settings.group, settings.include, settings.exclude)
    return narrowed(plan, settings, own)


def narrowed(plan: Plan, settings: RelaxSettings, own_parameters: int) -> Plan:
    """Return the plan with the forms and the sites that are wanted; forms first, because they decide the costs.

    Raises:
        PlanError: if nothing would remain.
    """
    if settings.rank is not None:
        plan = with_rank(plan, settings.rank)
    if settings.blocks is not None:
        plan = with_blocks(plan, settings.blocks)
    share = isinstance(settings.budget, float)
    budget = None if settings.budget is None else int(settings.budget * (own_parameters if share else 1))
    if settings.fits_rank:
        plan = with_fitting_rank(plan, own_parameters if budget is None else budget)
    return plan if budget is None else within_budget(plan, budget)
