"""Write a report of whatever has records."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import CheckpointError, SurgeonError, UsageError, first_line
from surgeon.files.atomic import check_writable
from surgeon.files.clean import CERTIFICATE_FILE
from surgeon.files.content import write_text
from surgeon.files.relaxed import is_relaxed_folder
from surgeon.report.page import Page
from surgeon.training.compare import runs_beside, weights_beside
from surgeon.training.runs import has_run
from surgeon.training.store import IDENTITY_FILE


def write_report(path: str | Path, target: str | Path, *, force: bool = False) -> Page:
    """Write one HTML file that shows what a run, a comparison or a certificate records.

    The page needs no other file, no network and no script. It is made of the records alone: no model is opened and
    nothing is computed again.

    Args:
        path: a run folder, the record of a comparison or the folder beside it, or a clean folder.
        target: the file to write.
        force: replace an existing file.

    Returns:
        What the page says.

    Raises:
        UsageError: if the path is something else, or matplotlib is missing.
        CheckpointError: if the records are damaged.
        ExistsError: if the file is there and ``force`` is False.
        WriteError: if it cannot be written.
    """
    check_writable(target, force)
    page = read_page(Path(path))
    write_text(target, page.html(), force=force)
    return page


def _record_beside(path: Path) -> Path:
    """Return the record of the comparison that a folder holds the runs or the weights of; any other path as it is."""
    record = path.with_name(f"{path.name.removesuffix('.runs')}.json")
    runs = runs_beside(record)
    return record if path in (runs, weights_beside(record)) and (runs / IDENTITY_FILE).is_file() else path


def read_page(path: Path) -> Page:
    """Return the page of a path; errors as in :func:`write_report`."""
    from surgeon.report.clean import clean_page
    from surgeon.report.comparison import comparison_page
    from surgeon.report.run import run_page

    try:
        if is_relaxed_folder(path) and has_run(path):
            return run_page(path)
        if (path / CERTIFICATE_FILE).is_file():
            return clean_page(path)
        record = path if path.suffix == ".json" else _record_beside(path)
        if record.is_file() and record.suffix == ".json":
            return comparison_page(record)
        if path.is_dir() and record != path:
            raise UsageError(
                f"expected the record {str(record)!r} of the comparison that {str(path)!r} belongs to, which is not "
                "there yet: `surgeon finetune --compare` writes it when it ends or is interrupted"
            )
    except SurgeonError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"could not make a report of {str(path)!r}, whose records are damaged or of another version "
            f"({type(error).__name__}: {first_line(error)[:80]}): write them anew"
        ) from error
    what = "a folder without their records" if path.is_dir() else "a file" if path.exists() else "nothing"
    raise UsageError(
        f"expected a run folder (`surgeon finetune`), the JSON record of a comparison (`--compare`) or a clean folder "
        f"(`surgeon strip`), got {what} at {str(path)!r}: name one of these"
    )
