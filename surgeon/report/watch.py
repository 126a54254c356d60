"""A report that follows its records while they are being written."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path

from surgeon.errors import CheckpointError
from surgeon.files.atomic import check_writable
from surgeon.files.content import write_text
from surgeon.files.seals import SEAL_FILE
from surgeon.report.page import Page
from surgeon.report.write import read_page

PAUSE, REFRESH = 2.0, 5
"""Seconds between two looks at the records, and after which a browser opens the page again."""

TRIES = 5
"""Looks at records that cannot be read, in a row: a save moves several files to their places."""


def watch_report(path: str | Path, target: str | Path, *, force: bool = False) -> Generator[Page, None, None]:
    """Write the page of :func:`surgeon.write_report` anew whenever its records change, until they are complete.

    While they are not, a browser opens the page again by itself; however the watching ends, the page that is left does
    not. What is not there yet is waited for.

    Args:
        path: a run folder, the record of a comparison, or a clean folder.
        target: the file to write.
        force: replace an existing file.

    Yields:
        What the page says, each time it was written.

    Raises:
        UsageError, CheckpointError, ExistsError, WriteError: as :func:`surgeon.write_report` does.
    """
    path, page, seen, failed = Path(path), None, None, 0
    check_writable(target, force)
    try:
        while page is None or page.unfinished:
            now = _stamp(path)
            if now is not None and now != seen:
                try:
                    page, seen, failed = read_page(path), now, 0
                except CheckpointError:
                    failed += 1
                    if failed == TRIES:
                        raise
                else:
                    write_text(target, page.html(REFRESH if page.unfinished else None), force=True)
                    yield page
                    continue
            time.sleep(PAUSE)
    finally:
        if page is not None and page.unfinished:
            write_text(target, page.html(), force=True)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return what differs once records were written again; None if nothing is there."""
    try:
        found = (path / SEAL_FILE if path.is_dir() and (path / SEAL_FILE).exists() else path).stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino
