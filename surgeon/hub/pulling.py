"""Bring a repository into a folder of one's own."""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.files.address import HubPath
from surgeon.files.atomic import atomic_folder
from surgeon.files.clean import check_weights
from surgeon.files.content import write_json
from surgeon.files.relaxed import CONFIG_FILE, read_relaxed
from surgeon.files.seals import seal_folder
from surgeon.opening.originals import refuse_nonfinite
from surgeon.opening.remote.client import list_files
from surgeon.opening.remote.fetch import download, wanted_files
from surgeon.opening.trust import check_config


@dataclass(frozen=True)
class Pulled:
    """What a pull wrote.

    Attributes:
        path: repository and commit.
        left_out: files of the repository that are not read: code, pickles, and whatever else lies there.
    """

    folder: Path
    path: HubPath
    files: tuple[str, ...]
    left_out: tuple[str, ...]


def pull(path: str | HubPath, folder: str | Path | None = None, *, force: bool = False) -> Pulled:
    """Download a relaxed model, with its training state if it has one, or clean weights, into a folder.

    Args:
        path: ``hf://owner/name[@revision]``.
        folder: where to write; default: the repository's name, in the current folder.
        force: replace an existing folder.

    Raises:
        CheckpointError: if the repository holds no such model, or one that is damaged or unsafe.
        HubError: if it cannot be downloaded.
        WriteError: if the system refuses; nothing half-written is left.
    """
    address = path if isinstance(path, HubPath) else HubPath.parse(path)
    if address.file is not None:
        raise CheckpointError(f"expected a repository, got {str(address)!r}: leave out the file")
    target = Path(folder) if folder is not None else Path(address.stem)
    with atomic_folder(target, force=force) as temporary:
        listing = list_files(address)
        names = wanted_files(listing)
        source = download(listing, names)
        for name in names:
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, temporary / name)
        if CONFIG_FILE in names:
            _check_and_forget_task(temporary, listing.pinned)
            seal_folder(temporary)
        else:
            check_weights(temporary)
    left_out = tuple(name for name in listing.files if name not in names)
    return Pulled(target, listing.pinned, tuple(names), left_out)


def _check_and_forget_task(folder: Path, origin: HubPath) -> None:
    """Leave out what the configuration says of a task: it is code, and names files of another machine."""
    files = read_relaxed(folder, sealed=False)
    config = files.config
    check_config(config, str(origin))
    refuse_nonfinite(files.base, files.branches, config, origin)
    if config.task is not None:
        write_json(folder / CONFIG_FILE, dataclasses.replace(config, task=None).to_data(), force=True)
