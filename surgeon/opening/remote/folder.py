"""The files of a model that was pushed, from the cache."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.files.address import HubPath, is_hub_path
from surgeon.files.clean import CARD_FILE, CERTIFICATE_FILE, CLEAN
from surgeon.files.relaxed import CONFIG_FILE, RELAXED, STATE
from surgeon.opening.remote.client import Listing, list_files
from surgeon.opening.remote.fetch import download


def fetch_model(path: str | Path) -> Path:
    """Return a folder: a local one as it is, a repository on the Hub from the cache.

    Raises:
        CheckpointError: if the repository holds no model that ``surgeon push`` uploaded.
        HubError: if it cannot be downloaded.
    """
    if not is_hub_path(path):
        return Path(path)
    listing = list_files(HubPath.parse(path))
    return download(listing, wanted_files(listing))


def wanted_files(listing: Listing) -> list[str]:
    """Return the files of a repository that surgeon reads.

    Raises:
        CheckpointError: if it holds no model that ``surgeon push`` uploaded.
    """
    relaxed = CONFIG_FILE in listing.files
    if not relaxed and CERTIFICATE_FILE not in listing.files:
        raise CheckpointError(
            f"expected a model that was pushed by `surgeon push` in {listing.path}, it holds "
            f"{', '.join(list(listing.files)[:10]) or 'nothing'}: give its path to `surgeon relax` as it is"
        )
    chosen = (*RELAXED, *STATE, CARD_FILE) if relaxed else (*CLEAN, CARD_FILE)
    return [name for name in chosen if name in listing.files]
