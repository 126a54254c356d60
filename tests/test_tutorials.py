"""Tutorials print what their commands print; that a wrong line would be seen."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from docs.notebooks import notebook
from tests.processes import forked
from tests.tutorials import ANY, BLOCK, FENCE, ROOT, aligned, examples, marked, picked, steps

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


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page, mark in marked().items() if not mark[2]], ids=lambda page: page.stem)
def test_what_other_pages_show_is_printed(page: Path) -> None:
    needed = marked()[page][1]
    if Path(sys.prefix).name != needed:
        pytest.skip(f"its commands run in {needed}")
    done = forked(ROOT, str(page), program="tests.tutorials", timeout=1790)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_with_output_says_where_it_was_printed() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    output = {page for page in pages if any(fence["kind"] == "output" for fence in FENCE.finditer(page.read_text()))}
    assert output == marked().keys()
    assert all(list(examples(page.read_text("utf-8"))) for page in output)


def test_lines_of_an_output_are_those_printed_in_their_order() -> None:
    printed = ["one 1", "two 2 and more", "three", "│ a │  2.5 │"]
    assert list(picked(["one 7", "two 5 ...", "│ a │ 3 │"], printed)) == ["one 1", "two 2 ...", "│ a │  2.5 │"]
    for wrong in (["three", "one 1"], ["two 2"], ["three", "three"]):
        with pytest.raises(LookupError, match=wrong[-1]):
            list(picked(wrong, printed))
    ((commands, (block,)),) = examples("```\na\n```\n```\nb \\\n  c\nd\n```\nsays\n```output\nx\n```\n")
    assert (commands, block["text"]) == (["b    c", "d"], "x\n")


def test_a_tutorial_has_at_most_120_lines() -> None:
    assert {page.name: count for page in PAGES if (count := len(page.read_text("utf-8").splitlines())) > 120} == {}


def test_another_line_is_seen_and_another_number_is_not() -> None:
    shown = ["loss 0.5", ANY, "│ 3 │ x ──┼─"]
    assert aligned(shown, "loss -1e-3\nmore\n\n│ 12 │ x ─┼──\n") == ["loss -1e-3", ANY, "│ 12 │ x ─┼──"]
    assert aligned(shown, "loss 0.5\n│ 3 │ y ─┼─\n") is None
    assert aligned(shown, "lost 0.5\n│ 3 │ x ─┼─\n") is None
    assert aligned(["loss 0.5"], "loss 0.5\nmore\n") is None
    assert aligned(["float64: at most 1e-9"], "float32: at most 1e-9\n") is None


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
