"""Runs the commands of a tutorial, and compares what they print with what the page shows.

    python -m tests.tutorials docs/tutorials/own_network.md          # prints what differs
    python -m tests.tutorials docs/tutorials/own_network.md --fill   # writes what is printed, or its numbers

Blocks ``python title="NAME"`` are written as files. In blocks ``console`` a line ``$ COMMAND`` is run, in one folder,
where ``examples`` is that of the checkout, and one process; the lines below are its output, where ``...`` stands for
any lines and numbers may differ.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(console|python title="(?P<file>[^"]+)")\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE)
ANY = "..."


def steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands of a console block, each with the lines that it is said to print."""
    lines = text.replace("\\\n", "\\\0").splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start].replace("\\\0", "\\\n"), lines[start + 1 : end]


def run(command: str) -> str:
    """Return what a command prints."""
    words = shlex.split(command.removeprefix("$ ").replace("\\\n", " "), comments=True)
    if words[0] == "cd":
        os.chdir(words[1])
        return ""
    if words[0] not in ("surgeon", "python"):
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), suppress(SystemExit):
        if words[0] == "surgeon":
            from surgeon_cli.main import main

            main(words[1:])
        else:
            sys.argv, sys.path[0] = words[1:], str(Path(words[1]).parent.absolute())
            runpy.run_path(words[1], run_name="__main__")
    return out.getvalue()


def masked(line: str) -> str:
    """Return a line without its numbers, what decides among rounding errors, and spaces and rules of their width."""
    bare = re.sub(r"[-+]?\d[\d.,]*(?:e[-+]?\d+)?|\binf\b|\bnan\b", "#", line)
    bare = re.sub(r"\(under [^)]*\)", "(under #)", bare)
    return re.sub(r"([ ─━])\1*", r"\1", bare).rstrip()


def aligned(expected: list[str], printed: str) -> list[str] | None:
    """Return a page's lines with the numbers that were printed; None if it shows others than were printed."""
    lines = (r"(?:.*\n)*?" if line == ANY else f"({re.escape(masked(line))}\n)" for line in expected)
    real = printed.rstrip().splitlines()
    text = "".join(f"{masked(line)}\n" for line in real)
    found = re.fullmatch("".join(lines), text)
    if found is None:
        return None
    places = iter(text.count("\n", 0, found.start(group)) for group in range(1, 1 + len(found.groups())))
    return [line if line == ANY else real[next(places)].rstrip() for line in expected]


def differences(page: Path, fill: bool = False) -> list[str]:
    """Run a page; return the commands that print something else than it shows, with what they print."""
    found, text = [], page.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        os.environ["SURGEON_HOME"] = str(Path(folder, "home"))
        os.symlink(ROOT / "examples", "examples")
        for block in BLOCK.finditer(text):
            if block["file"]:
                Path(block["file"]).write_text(block["text"], "utf-8")
                continue
            for command, shown in steps(block["text"]):
                printed = run(command)
                lines = printed.rstrip().splitlines() if fill and not shown else aligned(shown, printed)
                if lines is None:
                    found.append(f"{page.name}: {command}\n{printed}")
                elif fill:
                    text = text.replace("\n".join([command, *shown, ""]), "\n".join([command, *lines, ""]), 1)
    if fill:
        page.write_text(text, "utf-8")
    return found


def main(arguments: list[str]) -> None:
    pages = [Path(name).resolve() for name in arguments if name != "--fill"]
    problems = [found for page in pages for found in differences(page, "--fill" in arguments)]
    print("\n".join(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(sys.argv[1:])
