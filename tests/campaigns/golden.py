"""``python -m tests.campaigns.golden``: folders of the present format, which all later versions have to read.

As long as no version is released, a change of the format makes them anew; after that, it adds another archive.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.campaigns.work import QUICK, begin, here, surgeon

ARCHIVE = Path(__file__).parents[1] / "data" / "format_1.tar.xz"
COMPARED = ("--compare", "plain,drop", "--seeds", "1", "--keep", "none")
COMMANDS = (
    ("relax", "net.pt"),
    ("inspect", "net.pt", "--plan", "plan.json"),
    ("finetune", "net-relaxed", "--epochs", "1"),
    ("strip", "net-run", *QUICK),
    ("finetune", "net-relaxed", "--epochs", "1", *COMPARED),
)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return None if "__pycache__" in entry.name else entry


def main() -> None:
    """Run the commands in an empty folder, and pack what they write."""
    place = Path(tempfile.gettempdir()) / "format_1"
    place.mkdir()
    try:
        with here(place):
            begin(place)
            for command in COMMANDS:
                code, _, err = surgeon(*command)
                if code:
                    sys.exit(err)
        with tarfile.open(ARCHIVE, "w:xz") as archive:
            archive.add(place, "format_1", filter=_without_owner)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main()
