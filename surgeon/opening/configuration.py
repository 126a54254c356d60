"""Describe an opened model that was relaxed, for the folder it is written to."""

from __future__ import annotations

from collections.abc import Mapping

from surgeon.editing.relaxation import Relaxation
from surgeon.files.reading import keys_hash
from surgeon.files.relaxed import RelaxedConfig, split_state
from surgeon.opening.source import graph_of
from surgeon.opening.workspace import Workspace


def relaxed_config(
    workspace: Workspace,
    relaxation: Relaxation,
    *,
    penalty_weight: float,
    penalty_scale: str,
    penalty_form: str = "gram",
    step: int = 0,
    thetas: Mapping[str, tuple[float, float]] | None = None,
) -> RelaxedConfig:
    """Describe a relaxed model for its folder; a folder made from a folder keeps the first one's base."""
    schedule = relaxation.schedule.to_data()
    thetas = thetas or relaxation.thetas
    if workspace.files is not None:
        base, model = workspace.files.config.base, workspace.files.config.model
    else:
        checkpoint = workspace.checkpoint
        origin = checkpoint.origin
        base = {
            "repo": origin.repo if origin else None,
            "file": origin.file if origin else str(checkpoint.path.absolute()),
            "entry": checkpoint.entry,
            "revision": origin.revision if origin else None,
            "sha256": checkpoint.sha256,
            "keys_hash": keys_hash(split_state(relaxation.model.state_dict())[0]),
        }
        model = workspace.found.factory if "factory" in (workspace.found.factory or {}) else None
    task = workspace.task
    if workspace.files is not None:
        graph = workspace.files.config.graph
    else:
        graph = None if task is None else graph_of(workspace.original()[0], task)
    return RelaxedConfig(
        group=relaxation.plan.group,
        plan=relaxation.plan,
        strip_mode=relaxation.mode,
        schedule={"name": schedule.pop("name"), "settings": schedule},
        penalty={"lambda": penalty_weight, "form": penalty_form, "scale": penalty_scale},
        theta=next(iter(thetas.values())),
        thetas=dict(thetas) if len(set(thetas.values())) > 1 else None,
        step=step,
        float64=workspace.float64,
        base=base,
        graph=graph,
        model=model,
        task=None
        if task is None
        else {"path": str(task.path or task.spec), "sha256": task.sha256, "args": dict(task.arguments)},
    )
