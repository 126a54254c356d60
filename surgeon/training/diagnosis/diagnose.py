"""Diagnose what is in a path: will relaxation change anything?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.select import select
from surgeon.editing.strip import strip
from surgeon.errors import UsageError
from surgeon.files.atomic import check_writable
from surgeon.files.content import write_json
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.planning import plan_for
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan
from surgeon.training.diagnosis.result import Diagnosis, DiagnosisSettings
from surgeon.training.diagnosis.work import diagnose_model


def diagnose(
    path: str | Path,
    settings: DiagnosisSettings | None = None,
    *,
    group: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    options: OpenOptions | None = None,
    on_product: Callable[[int, int], None] | None = None,
    out: str | Path | None = None,
    force: bool = False,
) -> Diagnosis:
    """Ask whether relaxation will change anything: does the loss bend down where W breaks the symmetry?

    Args:
        path: a checkpoint, a relaxed folder, whose branches are left out, or an address on the Hub.
        settings: how much is computed.
        group: the symmetry; None for that of the relaxed folder, or O3.
        include: shell patterns; only ops whose names match are looked at.
        exclude: shell patterns of ops that are left out.
        options: how to find model and task.
        on_product: called after every Hessian-vector product with how many are done and how many there are at most.
        out: JSON file to which the record is written, too.
        force: replace a file that is there.

    Raises:
        ExistsError: if the file is there.
        UsageError: if a relaxed folder has another group.
        TaskError: if there is no task, or its loss cannot be used.
        PlanError: if there is no op to look at, or a pattern matches nothing.
    """
    workspace = open_path(path, options)
    if out is not None:
        workspace.refuse_output(out)
        check_writable(out, force)
    task = workspace.require_task().task
    plan = _plan(workspace, group, include, exclude)
    if workspace.relaxation is not None:
        strip(workspace.relaxation)
    found = diagnose_model(workspace.model, plan, task, settings, on_product)
    found = dataclasses.replace(found, path=workspace.name)
    if out is not None:
        write_json(out, found.to_data(), force=force)
    return found


def _plan(workspace: Workspace, group: str | None, include: Sequence[str], exclude: Sequence[str]) -> Plan:
    """Return the folder's own plan, or look for one."""
    if workspace.relaxation is None:
        return plan_for(workspace, group, include, exclude)
    plan = workspace.relaxation.plan
    if group is not None and parse_group(group).name != parse_group(plan.group).name:
        raise UsageError(
            f"expected the group {plan.group} that {workspace.name!r} was relaxed with, got {group}: leave out "
            "--group, or give the checkpoint"
        )
    return select(plan, include, exclude)
