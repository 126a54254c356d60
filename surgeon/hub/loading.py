"""Load from the Hub, and the names under which users of the Hub's own libraries look for it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import nn

from surgeon.editing.strip import strip
from surgeon.errors import CheckpointError
from surgeon.files.address import HubPath, check_repo, check_revision, is_hub_path
from surgeon.files.relaxed import write_relaxed
from surgeon.opening.description import relaxed_config
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.workspace import Workspace
from surgeon.plan import EXACT_WHILE, StripMode


def from_hub(
    repo: str,
    *,
    model: str | Callable[[], nn.Module] | None = None,
    mode: StripMode | None = None,
    revision: str | None = None,
    options: OpenOptions | None = None,
) -> Workspace:
    """Open what a repository on the Hub holds: a relaxed model, or a checkpoint.

    Only safetensors and JSON are read, and no code of the repository is run.

    Args:
        repo: ``owner/name``, or a whole ``hf://`` path.
        model: what builds the architecture: a function, or ``module:function``; not needed if an installed package or
            adapter knows the model.
        mode: strip a relaxed model at once, by "drop" or "fold"; None leaves its branches in.
        revision: branch, tag or commit.
        options: everything else that :func:`surgeon.open_path` takes, such as a task.

    Returns:
        ``model``, ``relaxation`` (None without branches), ``task``, and where all of it came from.

    Raises:
        HubError: if it cannot be downloaded.
        SurgeonError: as for :func:`surgeon.open_path`.

    Example:
        >>> model = surgeon.from_hub("owner/net-relaxed", model=make_net, mode="fold").model  # doctest: +SKIP
    """
    path = HubPath.parse(repo) if is_hub_path(repo) else HubPath(check_repo(repo))
    if revision is not None:
        path = dataclasses.replace(path, revision=check_revision(revision))
    return _stripped(open_path(str(path), _with_model(options or OpenOptions(), model), mode), mode)


def from_pretrained(
    source: str | Path,
    model: nn.Module | Callable[[], nn.Module] | str | None = None,
    *,
    mode: StripMode | None = None,
    revision: str | None = None,
    options: OpenOptions | None = None,
) -> nn.Module:
    """Return a model without branches, from a local path or a repository on the Hub.

    Args:
        source: a local folder or file if there is one of that name, else ``owner/name`` or an ``hf://`` path.
        model: the architecture: a module that takes the weights, in place; or as for :func:`from_hub`.
        mode: "drop" or "fold"; default: the strip mode of the relaxed model.
        revision: branch, tag or commit on the Hub.
        options: everything else that :func:`surgeon.open_path` takes, such as trust in code that a file names.

    Raises:
        SurgeonError: as for :func:`from_hub`.
    """
    build = (lambda: model) if isinstance(model, nn.Module) else model
    if is_hub_path(source) or not Path(source).exists():
        opened = from_hub(str(source), model=build, revision=revision, options=options)
    else:
        opened = open_path(source, _with_model(options or OpenOptions(), build))
    return _stripped(opened, mode or (opened.relaxation.mode if opened.relaxation else None)).model


def save_pretrained(workspace: Workspace, folder: str | Path, *, force: bool = False) -> None:
    """Write an opened relaxed model, as it is now, as a relaxed folder.

    Args:
        workspace: as :func:`from_hub` or :func:`surgeon.open_path` returned it.
        folder: where to write.
        force: replace an existing folder.

    Raises:
        CheckpointError: if it has no branches.
        WriteError: if the system refuses.
    """
    relaxation, files = workspace.relaxation, workspace.files
    if relaxation is None or files is None:
        raise CheckpointError(
            f"expected a relaxed model, got {workspace.name!r} without branches: save its state dict as safetensors"
        )
    config = relaxed_config(workspace, relaxation, penalty=files.config.penalty, step=files.config.step)
    write_relaxed(folder, workspace.model, config, files.base_metadata, force)


def _with_model(options: OpenOptions, model: str | Callable[[], nn.Module] | None) -> OpenOptions:
    if model is None:
        return options
    return dataclasses.replace(options, **({"factory": model} if isinstance(model, str) else {"build": model}))


def _stripped(opened: Workspace, mode: StripMode | None) -> Workspace:
    if mode is not None and opened.relaxation is not None:
        for note in dict.fromkeys(record.note for record in strip(opened.relaxation, mode)):
            if EXACT_WHILE in note:
                warnings.warn(
                    f"{note}: whether that is so on your data, surgeon.editing.conditions.check_folds tells before",
                    stacklevel=3,
                )
        return dataclasses.replace(opened, relaxation=None)
    return opened
