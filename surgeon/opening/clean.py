"""Open a clean folder beside the checkpoint that was relaxed, as far as that and its model are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.editing.adjust import other_values
from surgeon.errors import CheckpointError, ModelNotFoundError, TrustError
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import WEIGHTS_FILE, CleanFiles, forms_of, read_clean, same_form
from surgeon.opening.loader import as_loaded
from surgeon.opening.loading import load_into, named_as
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.remote.fetch import fetch_model, open_anywhere
from surgeon.opening.tasks import given_task
from surgeon.opening.workspace import Workspace

GIVE_ORIGINAL, GIVE_TASK = "give --against", "give --task"
_UNTRUSTED = (
    "the checkpoint names a factory, or a task file lies beside it, that nobody has allowed here: give --task, "
    "--model, --trust-task or --trust-remote-code"
)


@dataclass
class OpenedClean:
    """A clean folder and what it is compared with.

    Attributes:
        path: what the model is opened from: the original, without one the folder's own weights.
        options: how.
        missing: what is not known of "weights", "original", "model" and "task", and what to do about it.
        original: tensors of the checkpoint that was relaxed, by the folder's names; None if it was not given.
        source: that file.
        workspace: the opened path; None if there is no model.
        models: "stripped", with the folder's weights, and "original"; those there are.
        refusal: why the model does not take the folder's weights.
        unlisted: where the changes that the certificate lists are not those between the two files.
    """

    clean: CleanFiles
    path: Path
    options: OpenOptions
    missing: dict[str, str] = field(default_factory=dict)
    original: Mapping[str, Tensor] | None = None
    source: Checkpoint | None = None
    workspace: Workspace | None = None
    models: dict[str, nn.Module] = field(default_factory=dict)
    refusal: str = ""
    unlisted: list[str] = field(default_factory=list)

    @cached_property
    def forms(self) -> dict[str, list[Any]] | None:
        """Shape and dtype of the original's tensors; None if it was not given."""
        return None if self.original is None else forms_of(self.original)


def open_clean(folder: str | Path, against: str | Path | None, options: OpenOptions) -> OpenedClean:
    """Open a clean folder and its original, here or on the Hub; :func:`open_models` goes on from there.

    Args:
        folder: what ``surgeon strip`` or ``surgeon export`` wrote.
        against: the checkpoint that was relaxed; None if it is not at hand.
        options: how to open it, and how to find model and task.

    Raises:
        CheckFailedError: if the certificate is missing or damaged beyond reading.
        SurgeonError: one of its subclasses, if folder, original, model or task cannot be used at all.
    """
    clean = read_clean(fetch_model(folder))
    if against is None:
        opened = OpenedClean(clean, clean.path / WEIGHTS_FILE, options, {"original": GIVE_ORIGINAL})
    else:
        entry = options.entry or clean.certificate["details"]["original"]["entry"]
        opened = OpenedClean(clean, Path(against), dataclasses.replace(options, entry=entry))
        read = open_anywhere(opened.path, trust_pickle=options.trust_pickle, entry=entry)
        original = as_loaded(read, given_task(options))
        opened.original, opened.source = named_as(original, clean.tensors), original
    if clean.damage:
        opened.missing |= dict.fromkeys(("weights", "original", "model", "task"), "the weights do not open")
        return opened
    if clean.adjustments is not None:
        opened.unlisted = other_values(clean.adjustments.changes, opened.original, clean.tensors)
        usable = opened.original is not None and not opened.unlisted  # the folder's own weights hold them already
        changes = clean.adjustments if usable else dataclasses.replace(clean.adjustments, changes=())
        opened.options = dataclasses.replace(opened.options, adjustments=changes)
    if opened.forms is not None and not _same_forms(opened.forms, clean.forms):
        opened.missing |= dict.fromkeys(("model", "task"), "the architectures differ")
    return opened


def open_models(opened: OpenedClean) -> None:
    """Build the original and the result, if both files are of one form; what is in the way is said."""
    if "model" in opened.missing:
        return
    try:
        workspace = open_path(opened.path, opened.options)
    except ModelNotFoundError:
        opened.missing |= {"model": f"{GIVE_TASK} or --model", "task": GIVE_TASK}
        return
    except TrustError:
        opened.missing |= dict.fromkeys(("model", "task"), _UNTRUSTED)
        return
    if workspace.task is None:
        opened.missing["task"] = GIVE_TASK
    # what is opened is the original if that is known, and otherwise has the folder's weights already
    result = workspace.model if opened.original is None else workspace.original()[0]
    try:
        load_into(result, opened.clean.tensors, WEIGHTS_FILE)
    except CheckpointError as error:
        opened.refusal = str(error)
        opened.missing |= dict.fromkeys(("model", "task"), "the weights do not load into the model")
        return
    opened.workspace, opened.models["stripped"] = workspace, result
    if opened.original is not None:
        opened.models["original"] = workspace.model


def _same_forms(original: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    return original.keys() == result.keys() and all(same_form(original[name], result[name]) for name in original)
