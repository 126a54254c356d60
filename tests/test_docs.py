"""Links between the pages lead somewhere, public names are listed, and every mutant finds its code and its tests."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import surgeon
from surgeon import errors
from surgeon.errors import SurgeonError
from tests.mutants.catalogue import Mutant, read_mutants

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(page for folder in ("docs", "examples", "benchmarks") for page in (ROOT / folder).rglob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page, as a repository's web page makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def dead_links(page: Path) -> Iterator[str]:
    """Relative links of a page to files that do not exist, or to headings that their page lacks."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            yield f"{page.name}: {link}"


def test_no_link_is_dead() -> None:
    assert len(PAGES) > 20
    assert [link for page in PAGES for link in dead_links(page)] == []


def test_a_dead_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `heading`, two\n[a](#one-heading-two) [b](#three) [c](gone.md) [d](https://e.org/gone)")
    assert list(dead_links(page)) == ["page.md: #three", "page.md: gone.md"]


def test_public_names_are_listed_without_being_imported() -> None:
    assert {"find", "Plan", "optim", "testing", "__version__"} <= set(dir(surgeon))
    assert all(getattr(surgeon, name) is not None for name in dir(surgeon))


def test_what_a_task_may_have_is_listed() -> None:
    """Whatever the engine looks up on a task stands in the docstring that the reference shows."""
    code = "".join(path.read_text("utf-8") for path in (ROOT / "surgeon").rglob("*.py"))
    looked_up = set(re.findall(r"getattr\((?:\w+\.)*task, \"(\w+)\"", code))
    assert {"act", "dynamic_axes", "sample"} < looked_up
    assert [name for name in looked_up if not re.search(rf"``{name}\b", surgeon.Task.__doc__ or "")] == []


def test_every_code_of_an_error_is_explained_once() -> None:
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SurgeonError)]
    texts = {kind.code: (kind.__doc__ or "").splitlines()[0].split(";")[0].rstrip(".") for kind in classes}
    texts[SurgeonError.code] = "Something that was not foreseen"
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    rows = re.findall(r"^\| `(S\d{3})` \| (.+?) \| (.+) \|$", page, re.MULTILINE)
    assert len(texts) == len(classes), "two classes have one code"
    assert [(code, text) for code, text, _ in rows] == sorted(texts.items())


def test_the_page_of_the_task_file_has_every_member() -> None:
    entries = re.findall(r"^    \* (.*?)(?=^    \* |^$)", surgeon.Task.__doc__ or "", re.MULTILINE | re.DOTALL)
    members = {name for entry in entries for name in re.findall(r"``(\w+)", entry)} - {"noise"}
    page = (ROOT / "docs" / "task_file.md").read_text("utf-8")
    assert {"act", "sample", "units", "adjustable"} < members
    assert set(re.findall(r"^\| `(\w+)", page, re.MULTILINE)) == {"batches", "loss", *members}


def test_the_site_has_every_page_and_name() -> None:
    """As `make docs` requires, which takes longer."""
    navigation = re.findall(r"^ +- (?:.*: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert pages - set(navigation) == set()
    assert len(navigation) == len(set(navigation))
    listed = set(re.findall(r"\w+", (ROOT / "docs" / "hooks.py").read_text("utf-8")))
    assert set(surgeon.__all__) - listed == set()


@pytest.mark.parametrize("name", ["first_command", "latency"])
def test_a_generated_table_is_that_of_its_record(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module(name)
    text, record = benchmark.PAGE.read_text("utf-8"), json.loads(benchmark.RESULTS.read_text("utf-8"))
    assert benchmark.page(text, record) == text
    assert benchmark.page(text.replace(benchmark.table(record), "old"), record) == text


def test_what_pages_say_of_records_is_written_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pages = importlib.import_module("pages")
    marked = pages.marked()
    assert {part for text in marked.values() for _, part, _ in pages.PART.findall(text)} == set(pages.PARTS)
    assert {path.name for path, text in marked.items() if pages.written_anew(text) != text} == set()

    def other(path: Path) -> Any:
        return json.loads(re.sub(r"(?<=: )(\d+)(?=\.\d)", r"1\1", path.read_text("utf-8")))

    assert [path.name for path, text in marked.items() if pages.written_anew(text, other) == text] == []


def undated(text: str) -> list[str]:
    """Return the sections of a page that name a record of measurements and no day."""
    sections = [part for part in re.split(r"\n(?=#)", text) if re.search(r"benchmarks/results/\w+\.json", part)]
    return [part.splitlines()[0] for part in sections if not re.search(r"\b\d{1,2} [A-Z][a-z]+ 20\d\d\b", part)]


def test_figures_of_a_record_say_when_they_were_measured() -> None:
    assert {page.name: undated(page.read_text()) for page in PAGES if undated(page.read_text())} == {}
    assert undated("# A\n`benchmarks/results/a.json`, 1 May 2026\n# B\n`benchmarks/results/b.json`\n") == ["# B"]


def test_tests_that_pages_name_exist() -> None:
    named = [
        (page.name, *match)
        for page in PAGES
        for match in re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", page.read_text(encoding="utf-8"))
    ]
    assert len(named) > 15
    assert not [(page, name) for page, file, name in named if f"def {name}(" not in (ROOT / file).read_text()]


def test_every_mutant_can_be_tried() -> None:
    """No mutant may name this test or its whole file: it fails wherever a fault has been put in."""
    assert [words for mutant in read_mutants() if (words := mutant.complaint())] == []
    own = (f"{Path(__file__).relative_to(ROOT)}::{test_every_mutant_can_be_tried.__name__}",)
    assert Mutant("", "surgeon/plan.py", "class Plan:", "", own).complaint() is None
    assert "does 0 times" in (Mutant("", "surgeon/plan.py", "class Plane:", "", own).complaint() or "")
    for gone in ("tests/gone.py", "tests/gone.py::test_it", f"{own[0]}_twice[1]"):
        assert f"there is no {gone}" in (Mutant("", "surgeon/plan.py", "class Plan:", "", (gone,)).complaint() or "")
