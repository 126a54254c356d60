"""The run folder: a relaxed folder with the best weights, plus records and what a resume needs; nothing is pickled."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.checkpoint import open_checkpoint, read_relaxed, write_relaxed
from surgeon.errors import CheckpointError, UsageError
from surgeon.files import atomic_folder, write_json, write_tensors, write_text
from surgeon.training.engine import Finetuner, TrainingState
from surgeon.training.settings import FinetuneSettings
from surgeon.workspace import Workspace, relaxed_config

STATE_FOLDER = "training_state"
RECORDS_FILE = "records.jsonl"


def save_run(folder: Path, finetuner: Finetuner, workspace: Workspace) -> None:
    """Write the run folder as it is after an epoch, all or nothing; the one of the epoch before is replaced.

    Args:
        folder: the run folder.
        finetuner: the run.
        workspace: what is being trained.

    Raises:
        WriteError: if the system refuses; the folder of the epoch before is still there.
    """
    relaxation, state, settings = finetuner.relaxation, finetuner.state, finetuner.settings
    assert relaxation is not None
    config = relaxed_config(
        workspace,
        relaxation,
        penalty_weight=finetuner.penalty_weight,
        penalty_scale=settings.penalty_scale,
        step=state.step,
        theta=state.best_theta,
    )
    current = {key: value.detach().clone() for key, value in finetuner.plain_model.state_dict().items()}
    metadata = workspace.files.base_metadata if workspace.files else workspace.checkpoint.metadata
    with atomic_folder(folder, force=True) as temporary:
        finetuner.plain_model.load_state_dict(finetuner.best_weights)
        try:
            write_relaxed(temporary / "relaxed", finetuner.plain_model, config, metadata)
        finally:
            finetuner.plain_model.load_state_dict(current)
        for path in (temporary / "relaxed").iterdir():
            path.rename(temporary / path.name)
        (temporary / "relaxed").rmdir()
        (temporary / STATE_FOLDER).mkdir()
        tensors = {f"model.{key}": value for key, value in current.items()}
        tensors |= _optimizer_tensors(finetuner)
        tensors["rng"] = torch.get_rng_state()
        write_tensors(temporary / STATE_FOLDER / "state.safetensors", tensors)
        record = {"arm": finetuner.arm.name, "settings": settings.to_data(), "state": dataclasses.asdict(state)}
        write_json(temporary / STATE_FOLDER / "state.json", record)
        lines = [json.dumps(entry) for entry in state.history]
        write_text(temporary / RECORDS_FILE, "\n".join(lines) + "\n")


def _named_trainable(finetuner: Finetuner) -> dict[int, str]:
    return {id(parameter): name for name, parameter in finetuner.plain_model.named_parameters()}


def _optimizer_tensors(finetuner: Finetuner) -> dict[str, Tensor]:
    """Return the optimiser's tensors under the names of their parameters."""
    names = _named_trainable(finetuner)
    return {
        f"optimizer.{slot}.{names[id(parameter)]}": value.detach().clone()
        for parameter, slots in finetuner.optimizer.state.items()
        for slot, value in slots.items()
        if isinstance(value, Tensor)
    }


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
    mine = {"arm": finetuner.arm.name, **finetuner.settings.to_data()}
    theirs = {"arm": record["arm"], **record["settings"]}
    different = [f"{key} {theirs.get(key)!r} against {mine.get(key)!r}" for key in mine if mine[key] != theirs.get(key)]
    if different:
        raise UsageError(
            f"expected the settings with which the run in {str(folder)!r} was started, got others "
            f"({'; '.join(different)}): repeat the first command, or start anew with `--force` or another `-o`"
        )
    tensors = dict(open_checkpoint(folder / STATE_FOLDER / "state.safetensors").tensors)
    files = read_relaxed(folder)
    best = _with_all_names(finetuner.plain_model, {**files.base, **files.branches})
    current = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    try:
        finetuner.plain_model.load_state_dict(current, strict=True)
        finetuner.best_weights = {key: best[key].clone() for key in current}
        _restore_optimizer(finetuner, tensors)
        torch.set_rng_state(tensors["rng"])
        state = dict(record["state"])
        best_value = math.nan if state["best_value"] is None else state["best_value"]
        finetuner.state = TrainingState(**{**state, "best_theta": tuple(state["best_theta"]), "best_value": best_value})
    except (RuntimeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"expected the training state of this model in {str(folder / STATE_FOLDER)!r}, got "
            f"another or a damaged one ({str(error).splitlines()[0]}): start anew with `--force`"
        ) from error


def _with_all_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the further names of parameters in shared modules, by which the file does not list them."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {name: tensors[other] for name, other in every.items() if other in tensors} | dict(tensors)


def read_record(folder: Path) -> Mapping[str, Any]:
    """Return arm, settings and state of a run as JSON data."""
    path = folder / STATE_FOLDER / "state.json"
    try:
        record: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        FinetuneSettings.from_data(record["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"could not read {str(path)!r} ({error}): start anew with `--force`") from error
    return record


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
                moved = {k: v.to(parameter.device) if k != "step" else v for k, v in slots.items()}
                finetuner.optimizer.state[parameter] = moved
