"""The run folder: a relaxed folder with the best weights, plus records and what a resume needs; nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.editing.relaxation import Relaxation
from surgeon.editing.spectrum import branch_contents
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.errors import CheckpointError, UsageError
from surgeon.files.atomic import atomic_folder
from surgeon.files.content import write_json, write_text
from surgeon.files.ordinary import bytes_of
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import RECORDS, STATE_FOLDER, is_relaxed_folder, read_relaxed, write_relaxed
from surgeon.files.seals import seal_folder, updated_folder
from surgeon.files.tensors import write_tensors
from surgeon.opening.description import relaxed_config
from surgeon.opening.evaluation import Judging
from surgeon.opening.workspace import Workspace
from surgeon.support.plain import parse_json, read_plain
from surgeon.support.sharding import load_whole_state, sharded_like, whole, whole_state
from surgeon.training.accelerator import gathered, shards
from surgeon.training.engine import Finetuner
from surgeon.training.figures import FIGURES_FILE, Figures, read_figures
from surgeon.training.settings import FinetuneSettings
from surgeon.training.state import TrainingState, random_state, set_random_state

RECORDS_FILE, STEPS_FILE, BRANCHES_FILE = RECORDS[:3]


@dataclass(frozen=True)
class RunRecord:
    """What ``training_state/state.json`` holds.

    Attributes:
        judging: the metric that decides, and the units of all.
        processes: how many trained.
        penalty_weight: of the mean of the task loss.
        branches: theta of every branch, and which site's penalty is next; empty for an arm without branches.
        scaler: of mixed precision; None without.
    """

    arm: str
    judging: Judging
    settings: FinetuneSettings
    processes: int
    state: TrainingState
    penalty_weight: Mapping[str, Any]
    branches: Mapping[str, Any]
    scaler: Mapping[str, Any] | None


def save_run(folder: Path, finetuner: Finetuner, workspace: Workspace, force: bool = False) -> None:
    """Write the run folder as it is after a step, all or nothing; files that no save wrote stay as they are.

    Every process has to call it; the first one writes.

    Args:
        force: replace, as a whole, a folder that holds something else.

    Raises:
        WriteError: if the system refuses; the save before is still there.
    """
    states = gathered(finetuner.accelerator, random_state())
    tensors = {f"random.{rank}.{name}": value for rank, state in enumerate(states) for name, value in state.items()}
    main = finetuner.accelerator.is_main_process
    if main or shards(finetuner.accelerator):  # the parts of sharded weights are put together by all processes
        tensors |= _state_tensors(finetuner)
    if main:
        _write_run(folder, finetuner, workspace, tensors, force)
    finetuner.accelerator.wait_for_everyone()


def _state_tensors(finetuner: Finetuner) -> dict[str, Tensor]:
    """Return weights, the optimiser's tensors under the names of their parameters, and the average; all whole."""
    # Not torch's get_optimizer_state_dict: it refuses thetas, which are buffers, and steps where there is no state.
    names = _named_trainable(finetuner)
    tensors = {f"model.{key}": value for key, value in whole_state(finetuner.plain_model).items()}
    for parameter, slots in finetuner.optimizer.state.items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{slot}.{names[id(parameter)]}"] = whole(value).detach().clone()
    if finetuner.ema is not None:
        tensors |= {f"ema.{key}": whole(value) for key, value in finetuner.ema.shadow.items()}
    if finetuner.arm.updates:  # the folder holds the best weights merged, which cannot be undone
        tensors |= {f"best.{key}": value for key, value in finetuner.selection.best_weights.items()}
    return tensors


def _write_run(
    folder: Path, finetuner: Finetuner, workspace: Workspace, tensors: dict[str, Tensor], force: bool
) -> None:
    relaxation, state, settings = finetuner.relaxation, finetuner.state, finetuner.settings
    config = relaxed_config(
        workspace,
        relaxation or workspace.require_relaxed()[0],
        penalty={
            "lambda": finetuner.penalty_weight.value,
            "form": settings.penalty_form,
            "scale": settings.penalty_scale,
        },
        step=state.step,
        thetas=state.best_theta,
        arm=finetuner.arm.name,
    )
    metadata = workspace.files.base_metadata if workspace.files else workspace.checkpoint.metadata
    model = finetuner.given_model
    anew = force and not is_relaxed_folder(folder)
    with atomic_folder(folder, force=True) if anew else updated_folder(folder) as temporary:
        model.load_state_dict(finetuner.selection.best_weights)
        try:
            added = finetuner.given_added
            merged = added.merged_state() if isinstance(added, WeightUpdates) else None
            write_relaxed(temporary / "relaxed", model, config, metadata, state=merged)
            branches = added if isinstance(added, Relaxation) and state.ended(settings.epochs) else None
            contents = [] if branches is None else branch_contents(branches)
            figures = Figures(finetuner.selection.pairs, None if branches is None else workspace.flow)
        finally:
            model.load_state_dict(_under("model.", tensors))
        for path in (temporary / "relaxed").iterdir():
            path.rename(temporary / path.name)
        (temporary / "relaxed").rmdir()
        (temporary / STATE_FOLDER).mkdir()
        states = {} if relaxation is None else relaxation.state_dict()
        tensors |= {f"penalty.{key}": value for key, value in states.pop("penalty", {}).items()}
        write_tensors(temporary / STATE_FOLDER / "state.safetensors", tensors)
        scaler = getattr(finetuner.accelerator, "scaler", None)
        record = RunRecord(
            arm=finetuner.arm.name,
            judging=Judging.of(finetuner.task),
            settings=settings,
            processes=finetuner.accelerator.num_processes,
            state=state,
            penalty_weight=finetuner.penalty_weight.state_dict(),
            branches=states,
            scaler=None if scaler is None else scaler.state_dict(),
        )
        write_json(temporary / STATE_FOLDER / "state.json", dataclasses.asdict(record))
        inside = [dataclasses.asdict(content) for content in contents]
        for name, entries in ((RECORDS_FILE, state.history), (STEPS_FILE, state.steps), (BRANCHES_FILE, inside)):
            write_text(temporary / name, "".join(json.dumps(entry) + "\n" for entry in entries))
        write_json(temporary / FIGURES_FILE, dataclasses.asdict(figures))
        seal_folder(temporary)


def _named_trainable(finetuner: Finetuner) -> dict[int, str]:
    names = {id(parameter): name for name, parameter in finetuner.plain_model.named_parameters()}
    if finetuner.relaxation is not None:
        names |= {id(branch.theta): f"theta.{key}" for key, branch in finetuner.relaxation.branches.items()}
    return names


def has_run(folder: Path) -> bool:
    """Tell whether a folder holds a run that can be resumed."""
    return (folder / STATE_FOLDER / "state.json").is_file()


def restore_run(folder: Path, finetuner: Finetuner) -> None:
    """Put a run back to where :meth:`save_run` left it: weights, optimiser, random state, history.

    Raises:
        CheckpointError: if the state is damaged or belongs to another model.
        UsageError: if the run was started with another arm or other settings; the differences are named.
    """
    record = read_record(folder)
    theirs = {"arm": record.arm, "processes": record.processes, **record.settings.to_data()}
    mine = {"arm": finetuner.arm.name, "processes": finetuner.accelerator.num_processes, **finetuner.settings.to_data()}
    different = [f"{key} {theirs[key]!r} against {mine[key]!r}" for key in mine if mine[key] != theirs[key]]
    if different:
        raise UsageError(
            f"expected the settings with which the run in {str(folder)!r} was started, got others "
            f"({'; '.join(different)}): repeat the first command, or start anew with `--force` or another `-o`"
        )
    tensors = dict(open_checkpoint(folder / STATE_FOLDER / "state.safetensors").tensors)
    files = read_relaxed(folder)
    best = _with_all_names(finetuner.plain_model, _under("best.", tensors) or {**files.base, **files.branches})
    current = _under("model.", tensors)
    try:
        load_whole_state(finetuner.plain_model, current)
        finetuner.selection.best_weights = {key: best[key].clone() for key in current}
        finetuner.selection.pairs = dict(read_figures(folder).pairs)
        _restore_optimizer(finetuner, tensors)
        if finetuner.ema is not None:
            finetuner.ema.load(_under("ema.", tensors))
        if finetuner.relaxation is not None:
            finetuner.relaxation.load_state_dict({**record.branches, "penalty": _under("penalty.", tensors)})
        finetuner.penalty_weight.load_state_dict(record.penalty_weight)
        if record.scaler is not None:
            finetuner.accelerator.scaler.load_state_dict(record.scaler)
        finetuner.state = record.state
        set_random_state(_under(f"random.{finetuner.sharing.process}.", tensors))
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected the training state of this model in {str(folder / STATE_FOLDER)!r}, got "
            f"another or a damaged one ({str(error).splitlines()[0]}): start anew with `--force`"
        ) from error


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _with_all_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the further names of parameters in shared modules, by which the file does not list them."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {name: tensors[other] for name, other in every.items() if other in tensors} | dict(tensors)


def read_record(folder: Path) -> RunRecord:
    """Return arm, settings and state of a run.

    Raises:
        CheckpointError: if they cannot be read.
    """
    path = folder / STATE_FOLDER / "state.json"
    try:
        return read_plain(parse_json(bytes_of(path)), RunRecord, "the state of a run", ValueError)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read {str(path)!r} ({error}): start anew with `--force`") from error


def _restore_optimizer(finetuner: Finetuner, tensors: Mapping[str, Tensor]) -> None:
    names = _named_trainable(finetuner)
    for group in finetuner.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            slots = {
                key.split(".")[1]: value
                for key, value in tensors.items()
                if key.startswith("optimizer.") and key.split(".", 2)[2] == name
            }
            if slots:
                fitted = {k: sharded_like(v, parameter) if k != "step" else v for k, v in slots.items()}
                finetuner.optimizer.state[parameter] = fitted
