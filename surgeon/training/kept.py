"""The weights that a comparison keeps: a relaxed folder for each run, ``ARM/SEED``, which can be stripped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from torch import nn

from surgeon.editing.relaxation import Relaxation
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.files.atomic import remove_entry, translated
from surgeon.files.relaxed import is_relaxed_folder, write_relaxed
from surgeon.opening.description import relaxed_config
from surgeon.opening.evaluation import is_better
from surgeon.opening.workspace import Workspace
from surgeon.training.arms import Contender
from surgeon.training.outcomes import ArmRun
from surgeon.training.starting import without_branches
from surgeon.training.state import FinetuneResult

Keep = Literal["best", "all", "none"]


def write_run(
    folder: Path,
    workspace: Workspace,
    contender: Contender,
    seed: int,
    model: nn.Module,
    added: Relaxation | WeightUpdates | None,
    result: FinetuneResult,
) -> None:
    """Write the best weights of a run of a comparison before they are stripped; what an earlier try wrote is replaced.

    Args:
        folder: that of the comparison's weights.
        workspace: from which the comparison starts.
        model: with the best weights.
        added: its branches, or its low-rank updates, which are merged in what is written.
    """
    _, files = workspace.require_relaxed()
    relaxation = added if isinstance(added, Relaxation) else without_branches(workspace, model)
    config = relaxed_config(
        workspace,
        relaxation,
        penalty=files.config.penalty,
        step=result.steps,
        thetas=result.thetas,
        arm=contender.arm.name,
    )
    state = added.merged_state() if isinstance(added, WeightUpdates) else None
    place = folder / contender.name
    with translated(place, place):
        place.mkdir(parents=True, exist_ok=True)
    write_relaxed(place / str(seed), model, config, files.base_metadata, force=True, state=state)


def settle(folder: Path, runs: Iterable[ArmRun], keep: Keep, metric: str, direction: str) -> dict[str, list[int]]:
    """Delete the weights of runs that are not to be kept; return arm to the seeds whose weights are there.

    Args:
        folder: that of the comparison's weights.
        keep: "best" keeps the best seed of every arm by its validation metric, "all" every one.
        direction: "min" or "max".
    """
    wanted: dict[str, list[ArmRun]] = {}
    for run in runs:
        own = wanted.setdefault(run.arm, [])
        if keep == "all" or not own:
            own.append(run)
        elif keep == "best" and is_better(run.validation[metric], own[0].validation[metric], direction):
            wanted[run.arm] = [run]
    seeds: Mapping[str, list[int]] = {arm: [run.seed for run in own] for arm, own in wanted.items()}
    for place in [] if keep == "none" else sorted(folder.glob("*/*")):
        if is_relaxed_folder(place) and place.name not in map(str, seeds.get(place.parent.name, ())):
            remove_entry(place)
            with suppress(OSError):  # the last seed of its arm
                place.parent.rmdir()
    there = {arm: [seed for seed in own if is_relaxed_folder(folder / arm / str(seed))] for arm, own in seeds.items()}
    return {} if keep == "none" else there
