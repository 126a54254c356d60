"""Tutorials print what their commands print; that a wrong line would be seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.notebooks import notebook
from tests.processes import forked
from tests.tutorials import ANY, BLOCK, ROOT, aligned, steps

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
QUICK = ("debugging.md",)
ELSEWHERE = ("training_loops.md",)
"""Run by the tests of the libraries that they need."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[] if page.name in QUICK else pytest.mark.slow)
        for page in PAGES
        if page.name not in ELSEWHERE
    ],
)
def test_the_page_shows_what_its_commands_print(page: object) -> None:
    done = forked(ROOT, str(page), program="tests.tutorials", timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_tutorial_has_at_most_120_lines() -> None:
    assert {page.name: count for page in PAGES if (count := len(page.read_text("utf-8").splitlines())) > 120} == {}


def test_another_line_is_seen_and_another_number_is_not() -> None:
    shown = ["loss 0.5", ANY, "│ 3 │ x ──┼─"]
    assert aligned(shown, "loss -1e-3\nmore\n\n│ 12 │ x ─┼──\n") == ["loss -1e-3", ANY, "│ 12 │ x ─┼──"]
    assert aligned(shown, "loss 0.5\n│ 3 │ y ─┼─\n") is None
    assert aligned(shown, "lost 0.5\n│ 3 │ x ─┼─\n") is None
    assert aligned(["loss 0.5"], "loss 0.5\nmore\n") is None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_notebook_has_all_that_its_page_runs(page: Path) -> None:
    text = page.read_text("utf-8")
    cells = notebook(text)["cells"]
    expected = list[tuple[str, str]]()
    for block in BLOCK.finditer(text):
        if block["file"]:
            expected.append((f"%%writefile {block['file']}\n{block['text']}".rstrip(), ""))
            continue
        for command, shown in steps(block["text"]):
            typed = command.removeprefix("$ ")
            expected.append((("%" if typed.startswith("cd ") else "!") + typed, "".join(f"{line}\n" for line in shown)))
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    found = [(cell["source"], "".join(output["text"] for output in cell["outputs"])) for cell in code]
    assert found == expected
    prose = "".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    assert re.sub(r"\s", "", prose) == re.sub(r"\s", "", BLOCK.sub("", text))


def test_commands_over_several_lines_are_one() -> None:
    assert list(steps("$ a b \\\n    c\nout\n$ d\n")) == [("$ a b \\\n    c", ["out"]), ("$ d", [])]


def test_the_picture_of_the_debugging_page_is_the_scripts() -> None:
    """Its rows and labels; where the marks stand depends on rounding."""
    text = (ROOT / "docs/images/breaks.svg").read_text("utf-8")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", text)
    assert {"layers.1.mix: addmm", "the model's output", "does not transform"} <= set(labels)
    assert re.search(r"first fails at aten.addmm.default in layers.1.mix", text)
