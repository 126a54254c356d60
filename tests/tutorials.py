"""Runs the commands of a page, and compares what they print with what the page shows.

    python -m tests.tutorials docs/tutorials/own_network.md          # prints what differs
    python -m tests.tutorials docs/tutorials/own_network.md --fill   # writes what is printed, or its numbers
    python -m tests.tutorials --fill                                 # all pages with a mark, in their environments

Everything runs in one folder, where ``examples`` is that of the checkout, and one process; numbers may differ.

- Blocks ``python title="NAME"`` are written as files.
- In blocks ``console`` a line ``$ COMMAND`` is run; the lines below are its output, where ``...`` stands for any lines.
- Blocks ``output`` show some lines, in their order, of what the commands print that stand in the block without a name
  before them; ``...`` ends a line that goes on. ``CHECKOUT`` is the checkout.
- Such pages have a mark, ``<!-- printed in .venv-mace, which takes minutes, after: COMMAND -->``: the environment; that
  tests leave it out; and what makes the files that the reader is said to have. The last two may be missing.
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
FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"^<!-- printed in (\.venv[\w-]*)(, which takes minutes)?(?:, after: (.*))? -->$", re.MULTILINE)
ANY = "..."


def steps(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the commands of a console block, each with the lines that it is said to print."""
    lines = text.replace("\\\n", "\\\0").splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield lines[start].replace("\\\0", "\\\n"), lines[start + 1 : end]


def examples(text: str) -> Iterator[tuple[list[str], list[re.Match[str]]]]:
    """Yield the commands of each block without a name, with the blocks that show what they print, if there are some."""
    typed, shown = "", list[re.Match[str]]()
    for fence in (*FENCE.finditer(text), None):
        if fence is None or not fence["kind"]:
            if shown:
                yield typed.replace("\\\n", " ").splitlines(), shown
            typed, shown = fence["text"] if fence else "", []
        elif fence["kind"] == "output":
            shown.append(fence)


def in_a_shell(command: str) -> str:
    """Return what a command prints in a shell where programs of this environment are found."""
    found = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = command.replace("CHECKOUT", str(ROOT))
    return subprocess.run(command, shell=True, env=found, capture_output=True, text=True, check=True).stdout  # noqa: S602


def run(command: str) -> str:
    """Return what a command prints."""
    command = command.removeprefix("$ ").replace("\\\n", " ").replace("CHECKOUT", str(ROOT))
    words = shlex.split(command, comments=True)
    if words[0] == "cd":
        os.chdir(words[1])
        return ""
    if words[0] not in ("surgeon", "python"):
        return in_a_shell(command)
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
    bare = re.sub(r"(?<![a-zA-Z\d])[-+]?\d[\d.,]*(?:e[-+]?\d+)?|\binf\b|\bnan\b", "#", line)  # not those of float64
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


def picked(expected: list[str], printed: list[str]) -> Iterator[str]:
    """Yield a page's lines with the numbers that were printed, those in between left out.

    Raises:
        LookupError: if a line was not printed, or not after the one before it.
    """
    left = iter(printed)
    for line in expected:
        start, goes_on, _ = line.partition(f" {ANY}")
        wanted = masked(start)
        found = next((each for each in left if masked(each)[: len(wanted) if goes_on else None] == wanted), None)
        if found is None:
            raise LookupError(line)
        yield f"{' '.join(found.split()[: len(start.split())])} {ANY}" if goes_on else found.rstrip()


def checked(text: str, found: list[str], fill: bool) -> str:
    """Run commands whose output is in blocks of its own; add to what was found, and return the text filled."""
    for commands, blocks in examples(text):
        printed = "".join(run(each) if each.startswith(("surgeon ", "cd ")) else in_a_shell(each) for each in commands)
        expected = [line for block in blocks for line in block["text"].splitlines() if line]
        try:
            lines = iter(list(picked(expected, printed.splitlines()) if expected else [printed]))
        except LookupError as error:
            found.append(f"expected, after what is above it, {error} among\n{printed}")
            continue
        for block in blocks if fill else []:
            new = (f"{next(lines) if line else ''}\n" for line in block["text"].splitlines() or [ANY])
            text = text.replace(block[0], f"```output\n{''.join(new)}```")
    return text


def differences(page: Path, fill: bool = False) -> list[str]:
    """Run a page; return the commands that print something else than it shows, with what they print."""
    found, text = list[str](), page.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        os.environ["SURGEON_HOME"] = str(Path(folder, "home"))
        os.environ.pop("COLUMNS", None)
        os.symlink(ROOT / "examples", "examples")
        for _, _, before in MARK.findall(text):
            in_a_shell(before)
        text = checked(text, found, fill)
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


def marked() -> dict[Path, re.Match[str]]:
    """Return the pages whose blocks show what is printed in an environment, with their marks."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {page: mark for page in pages if (mark := MARK.search(page.read_text("utf-8")))}


def main(arguments: list[str]) -> None:
    problems, fill = list[str](), [each for each in arguments if each == "--fill"]
    for page in (Path(name).resolve() for name in arguments if name not in fill):
        problems += differences(page, bool(fill))
    if arguments == fill:
        for page, mark in marked().items():
            command = [f"{mark[1]}/bin/python", "-m", "tests.tutorials", str(page), *fill]
            problems += [str(page)] * bool(subprocess.run(command, cwd=ROOT, check=False).returncode)
    print("\n".join(problems))
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(sys.argv[1:])
