"""One word for one thing: no two public classes share a name, and in the engine no two public functions do."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping

import surgeon
from tests.test_import_order import PACKAGES, ROOT, sources


def named_twice(files: Mapping[str, str], kind: type[ast.ClassDef | ast.FunctionDef]) -> dict[str, list[str]]:
    """Public name to the modules that define a class or a function of this name at their top, if there are several."""
    places: dict[str, list[str]] = defaultdict(list)
    for module, source in files.items():
        for node in ast.parse(source).body:
            if isinstance(node, kind) and not node.name.startswith("_"):
                places[node.name].append(module)
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def files_of(packages: Iterable[str]) -> dict[str, str]:
    return {module: source for package in packages for module, source in sources(package).items()}


def test_no_two_classes_have_one_name() -> None:
    assert not named_twice(files_of(PACKAGES), ast.ClassDef)


def test_no_two_functions_of_the_engine_have_one_name() -> None:
    assert not named_twice(files_of(["surgeon"]), ast.FunctionDef)


def test_a_function_shares_its_name_only_with_its_like() -> None:
    """A command is named as the public function that it calls, what adapters do alike in each family alike."""
    shared = named_twice(files_of(PACKAGES), ast.FunctionDef)
    commands = {name for name, modules in shared.items() if any(".commands." in module for module in modules)}
    assert commands <= {*surgeon.__all__}
    of_families = {
        name
        for name, modules in shared.items()
        if all(module.startswith("surgeon_adapters.") for module in modules) and len({*map(family, modules)}) > 1
    }
    assert shared.keys() == commands | of_families


def family(module: str) -> str:
    return module.removeprefix("surgeon_adapters.").removeprefix("zoo.").partition(".")[0]


def test_the_glossary_is_short_and_has_each_word_once() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = page.partition("## One word for one thing")[2].partition("\n## ")[0].split("\n| ")[3:]
    words = [row.partition(" |")[0] for row in rows]
    assert 20 < len(words) <= 30
    assert len({*words}) == len(words)


def test_a_name_given_twice_is_seen() -> None:
    files = {
        "a": "class Same: ...\ndef f(): ...",
        "b": "class Same: ...\ndef g(): ...\ndef _f(): ...",
        "c": "def f(): ...",
    }
    assert named_twice(files, ast.ClassDef) == {"Same": ["a", "b"]}
    assert named_twice(files, ast.FunctionDef) == {"f": ["a", "c"]}
