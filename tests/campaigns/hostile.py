"""``make hostile DIR=folder``: files of a collection of hostile ones, under every name that Surgeon reads.

Whatever a file is called, it is refused in one sentence or read as what it holds; no process is started, no connection
made and nothing written elsewhere. Such a try is stopped, and a finding.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from surgeon.errors import UsageError
from surgeon.export.archive import read_archive
from surgeon.files.reading import open_checkpoint
from surgeon.opening.planning import read_plan
from surgeon.proof.exports import _loaded
from surgeon.report.write import read_page
from surgeon_adapters.atoms.md17 import read_md17
from surgeon_adapters.atoms.xyz_frames import read_labelled
from tests.campaigns.fuzz import Outcome, Watch, judged
from tests.campaigns.readers import clouds
from tests.campaigns.work import here

WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".model", ".safetensors", ".zip", ".pt2", ".json", "")
READ: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(WEIGHTS, open_checkpoint),
    ".npz": lambda path: vars(read_md17(path)),
    ".xyz": lambda path: read_labelled(path, {}, [1, 8]).values,
    ".h5": clouds,
    ".onnx": _loaded,
    "-archive.pt2": read_archive,
    "-plan.json": lambda path: read_plan(path, None),
    "-page.json": lambda path: read_page(path).html(),
}
"""End of a name to what reads the file then."""
if importlib.util.find_spec("ase") is None:
    READ.pop(".xyz")


def tried(folder: str) -> tuple[int, Outcome, list[str]]:
    """Read all files of a folder; return their number, what became of them, and what they tried.

    Raises:
        UsageError: if there is no such folder, or no file in it.
    """
    files = [path.resolve() for path in sorted(Path(folder).rglob("*")) if path.is_file()] if folder else []
    if not files:
        raise UsageError(f"expected a folder with files to read, got {folder!r}: give one as `DIR=...`")
    platform.processor()  # libraries ask for it, and the first time a process answers
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with here(Path(name)) as place:
            watch = Watch(place, stops=True)
            for number, file in enumerate(files):
                for end, read in READ.items():
                    copy = Path(shutil.copyfile(file, place / f"{number}{end}"))
                    watch.on = True
                    judged(outcome, lambda read=read, copy=copy: read(copy), None, False, f"{file} as {end or 'it is'}")
                    watch.on = False
                    copy.unlink()
    return len(files), outcome, watch.seen


def main(arguments: Sequence[str] | None = None) -> None:
    """Try the files, and say what became of them; exit code 1 for a finding."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="of hostile files; folders in it count, too")
    given = parser.parse_args(arguments)
    try:
        count, outcome, seen = tried(given.folder)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for fault in (*outcome.faults, *seen):
        print(f"FAULT {fault}")
    print(
        f"{count:,} files under {len(READ)} names: {outcome.refused:,} times refused in a sentence, {outcome.other:,} "
        f"times read as data, {len(outcome.faults)} faults, {len(seen)} executions"
        + ("" if ".xyz" in READ else "; not as .xyz, for want of ase")
    )
    sys.exit(1 if outcome.faults or seen else 0)


if __name__ == "__main__":
    main()
