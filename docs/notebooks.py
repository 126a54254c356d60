"""Tutorials as notebooks: their prose, a cell that writes each file, and a cell for each command with what it prints.

    python docs/notebooks.py FOLDER    # writes one notebook for each tutorial

``make docs`` puts them beside the pages. They are made of the text that ``tests/tutorials.py`` runs and compares.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TUTORIALS = Path(__file__).parent / "tutorials"
BLOCK = re.compile(r'^```(console|python title="(?P<file>[^"]+)")\n(?P<text>.*?)^```$\n?', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (?P<command>(?:.*\\\n)*.*)\n(?P<printed>(?:(?!\$ ).*\n)*)", re.MULTILINE)


def notebook(text: str) -> dict[str, Any]:
    """Return the notebook of a page, in the format of nbformat 4.5."""
    cells = [{"id": f"cell-{index}", "metadata": {}, **cell} for index, cell in enumerate(_cells(text))]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def _cells(text: str) -> Iterator[dict[str, Any]]:
    last = 0
    for block in BLOCK.finditer(text):
        yield from _prose(text[last : block.start()])
        last = block.end()
        if block["file"]:
            yield _code(f"%%writefile {block['file']}\n{block['text']}")
            continue
        for step in COMMAND.finditer(block["text"]):
            command = step["command"]
            yield _code(f"%{command}" if command.startswith("cd ") else f"!{command}", step["printed"])
    yield from _prose(text[last:])


def _prose(text: str) -> Iterator[dict[str, Any]]:
    if text.strip():
        yield {"cell_type": "markdown", "source": text.strip()}


def _code(source: str, printed: str = "") -> dict[str, Any]:
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed}] if printed else []
    return {"cell_type": "code", "execution_count": None, "source": source.rstrip("\n"), "outputs": outputs}


def notebooks() -> dict[str, str]:
    """Return name and text of the notebook of every tutorial."""
    pages = sorted(TUTORIALS.glob("*.md"))
    return {page.stem: json.dumps(notebook(page.read_text("utf-8")), indent=1) + "\n" for page in pages}


if __name__ == "__main__":
    for stem, content in notebooks().items():
        target = Path(sys.argv[1], f"{stem}.ipynb")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, "utf-8")
        print(target)
