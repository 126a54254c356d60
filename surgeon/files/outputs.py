"""What is checked before something is written: that no input lies there, and that nobody else is writing it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from surgeon.errors import UsageError
from surgeon.files.address import is_hub_path
from surgeon.files.atomic import check_writable
from surgeon.files.seals import sole_writer


def refuse_overwriting(target: str | Path, *inputs: str | Path | None) -> None:
    """Refuse an output in which an input lies, which replacing it would delete.

    Raises:
        UsageError: naming the input.
    """
    for given in inputs:
        if (
            given is not None
            and not is_hub_path(given)
            and Path(given).resolve().is_relative_to(Path(target).resolve())
        ):
            raise UsageError(
                f"expected an output apart from the input, but {str(given)!r} lies in {str(target)!r}: "
                "choose another `-o`"
            )


@contextmanager
def writing_alone(target: str | Path, force: bool = True) -> Iterator[None]:
    """Keep other processes from writing an output meanwhile; of several processes of one run, the first one does.

    Args:
        target: the file or folder that is going to be written.
        force: something may be there already.

    Raises:
        ExistsError: if another process is writing it, or something is there and may not be.
        WriteError: if the place cannot be written to.
    """
    check_writable(target, force)
    if not is_first_process():
        yield
        return
    with sole_writer(target) as taken_over:
        if taken_over:
            logging.getLogger("surgeon").warning(taken_over)
        yield


def is_first_process() -> bool:
    """Tell whether this is the first of the processes that a launcher has started, or the only one."""
    return os.environ.get("RANK", "0") == "0"
