"""The page docs/reliability.md, made of the records of the campaigns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECORDS, PAGE = Path(__file__).parent / "records", ROOT / "docs" / "reliability.md"

INTRODUCTION = """# Reliability

What happens when a disk is full, a process is killed, or a file comes from a stranger is tried by campaigns with seeds.
This page is made of their records: `make fuzz ARGS=--record`, `make faults ARGS=--record`, and
`python -m tests.campaigns.page`. A slice of both runs with the tests. `make hostile DIR=folder` reads a collection of
hostile files that you have, each under every name that is read.

What is promised, and what the campaigns look for:

- A command that fails says so in one printable sentence of fewer than 700 characters; there is no traceback, and no
  control character from a file reaches the screen or a Markdown file.
- What it was to write is absent, as it was before, or complete, and never a mixture. The user's files stay as they are,
  and so do other files in the same folders.
- The same command, given again, comes to the content that it comes to without a fault, and leaves nothing hidden.
- No hostile file starts a process, connects anywhere, or writes outside its folder; where a file holds a checksum or
  the hash of another one, a change is noticed.
"""

FAULTS = """A fault strikes at one call by which a command writes (open, mkdir, fsync, replace, rename, link, unlink,
chmod, rmdir, the savers of torch and safetensors), asks the Hub, or takes an optimiser step; of two processes that
train together it strikes one, and the other goes down with it. The call fails with ENOSPC, EACCES, EIO or EINTR; the
process gets SIGKILL, SIGTERM or SIGINT before or after it; *another process* does the same there or reads what is being
written, and *a rival* writes other content to the same place; the *clock* says 1970 from then on; on the Hub the
*source* is *changed*. And at a call that reads a file of the user's (weights, task, folder), another file takes its
place (*swapped*), is written into it (*overwritten*), or its end is lost (*cut off*)."""


def fuzz_part(record: Mapping[str, Any]) -> str:
    """Return the section on hostile input."""
    kinds = record["kinds"]
    rows = [(kind, *(counts[name] for name in ("cases", "refused", "same", "other"))) for kind, counts in kinds.items()]
    return "\n\n".join(
        [
            "## Hostile input",
            f"**{record['cases']:,} cases** (seed {record['seed']}, {_seconds(record['seconds'])} of one core, "
            f"{_versions(record)}): {_count(record['faults'], 'fault')}, "
            f"{_count(record['executions'], 'execution')}.\n"
            "Values at places of JSON and of headers (numbers of 5,000 digits, nesting of 60,000 levels, control "
            "characters, wrong types, names twice) and damaged bytes. *Same*: the file was read as before. *Other*: it "
            "was read as another valid file; never where a checksum or a hash would have shown the change. A "
            "`torch.save` file of the old format has no checksum, so that a flipped bit of a weight is another weight.",
            _table(("what is attacked", "cases", "refused in a sentence", "same", "other"), rows),
            *([f"Left out, for want of a library: {'; '.join(record['left out'])}."] if record["left out"] else []),
        ]
    )


def faults_part(record: Mapping[str, Any]) -> str:
    """Return the section on failing systems."""
    names = ("points", "absent", "before", "complete", "other", "unfinished")
    rows = [(f"`{name}`", *(counts[key] for key in names)) for name, counts in record["commands"].items()]
    return "\n\n".join(
        [
            "## Failing systems",
            f"**{record['points']:,} faults** (seed {record['seed']}, {_seconds(record['CPU seconds'])} of one core, "
            f"{_versions(record)}): {_count(record['faults'], 'broken promise')}.",
            FAULTS,
            _table(("fault", "times"), record["kinds"].items()),
            "What stood in the place afterwards; *other* is complete, too, but what the rival, the other file or the "
            "other source gives, and an *unfinished* run or comparison goes on with the same command. All that reads a "
            "folder (`inspect`, `measure`, `strip`, `verify`, `report`) was then given it, and said what it is.",
            _table(("command", "faults", *names[1:]), rows),
        ]
    )


def page() -> str:
    """Return the text of the page."""
    parts = [INTRODUCTION.strip()]
    for name, part in (("fuzz", fuzz_part), ("faults", faults_part)):
        path = RECORDS / f"{name}.json"
        parts += [part(json.loads(path.read_text(encoding="utf-8")))] if path.exists() else []
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [" | ".join(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row) for row in rows]
    return "\n".join(["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings), *(f"| {x} |" for x in lines)])


def _count(found: Sequence[Any], what: str) -> str:
    return f"{len(found) or 'no'} {what}{'s' * (len(found) > 1)}"


def _seconds(count: float) -> str:
    return f"{count:.0f} seconds" if count < 120 else f"{count / 60:.0f} minutes"


def _versions(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
