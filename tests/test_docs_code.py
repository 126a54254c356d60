"""What README and docs tell people to type: Python compiles, and runs where it is whole; commands and errors exist."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

import surgeon
from surgeon_cli.main import app
from tests.integrations.loops import network
from tests.test_docs import PAGES, ROOT

FRAGMENTS = {
    "README.md: import surgeon": "a loop, run by tests/integrations/test_examples.py",
    "docs/training.md: import surgeon": "a loop, run by tests/integrations/test_examples.py",
    "docs/training.md: from surgeon.integrations.lightning": "needs Lightning and a module of one's own",
    "docs/training.md: from surgeon.integrations.settings": "needs transformers and a data set",
    "docs/tutorials/training_loops.md: from surgeon": "needs Lightning; the example beside it is run with it",
    "docs/hub.md: import surgeon": "needs a repository on the Hub",
    "docs/families/adapter.md: from surgeon.algebra": "shows the names of the reader's own network",
    "docs/families/nequip.md: from nequip.model": "needs NequIP",
    "examples/pointcloud/README.md: import": "runs in the folder of the example, whose tests do the same",
    "docs/families/torch_geometric.md: model = ViSNet": "needs torch_geometric, and a checkpoint",
}
"""Page and beginning of the Python that is compiled and not run here, with the reason."""

SHOWN = {
    "docs/architecture.md: surgeon/": "the tree, which tests/test_import_order.py checks",
    "docs/export.md: error: Net cannot": "a message; tests/export/test_reasons.py asks for its parts",
    "docs/tutorials/debugging.md: equivariance first": "a message; tests/families/awkward asks for its parts",
    "docs/families/escnn.md: def about_z": "a group of the reader's; the command above it names it",
}
"""Page and beginning of blocks that are neither commands alone nor Python, with the reason why nothing runs them."""

ELSEWHERE = {
    "--branches": "benchmarks/accuracy/table_a.py",
    "--debug": "before the command",
    "--disable-pip": "pip-audit",
    "--fill": "tests/tutorials.py",
    "--foundation_model": "mace_run_train",
    "--frames": "benchmarks/accuracy/table_a.py",
    "--fsdp_auto_wrap_policy": "accelerate",
    "--fsdp_version": "accelerate",
    "--guided": "make fuzz",
    "--help": "every command",
    "--megabytes": "benchmarks/file_memory.py",
    "--nproc_per_node": "torchrun",
    "--num_processes": "accelerate",
    "--private_key": "model_signing",
    "--public_key": "model_signing",
    "--record": "make fuzz, make faults",
    "--shipped": "examples/molecules/pretrain.py",
    "--signature": "model_signing",
    "--target": "nequip-compile",
    "--use_fsdp": "accelerate",
}
"""Options in sentences that are of no single command of ours, and whose they are."""

FENCE = r"^```\w*\n(.*?)^```$"
CLI_PAGES = [page for page in PAGES if page.name != "CHANGELOG.md"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


BLOCKS = {(name_of(page), index): block for page in PAGES for index, block in enumerate(blocks(page))}


def reason(page: str, block: str) -> str | None:
    """Why a block is not run."""
    return next((why for start, why in FRAGMENTS.items() if f"{page}: {block}".startswith(start)), None)


def unknown_names(block: str) -> Iterator[str]:
    """Names of surgeon in a block that do not exist."""
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("surgeon"):
            module = importlib.import_module(node.module or "")
            yield from (f"{node.module}.{each.name}" for each in node.names if not hasattr(module, each.name))
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.fullmatch(r"surgeon(\.\w+)+", name):
            found: Any = surgeon
            for part in name.split(".")[1:]:
                found = getattr(found, part, None)
            if found is None:
                yield name


@pytest.mark.parametrize(("page", "index"), BLOCKS, ids=str)
def test_python_compiles_and_runs(page: str, index: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    block = BLOCKS[page, index]
    assert list(unknown_names(block)) == []
    code = compile(block, f"{page}, block {index}", "exec")
    if reason(page, block) is None:
        monkeypatch.chdir(tmp_path)
        names = {"model": network(), "batch": torch.ones(2), "committee": [lambda x: {"forces": x}] * 2}
        exec(code, {"torch": torch, "surgeon": surgeon, **names, "MyNetwork": network})  # noqa: S102


def test_every_fragment_is_still_there() -> None:
    texts = [f"{page}: {block}" for (page, _), block in BLOCKS.items()]
    assert [start for start in FRAGMENTS if not any(text.startswith(start) for text in texts)] == []


def test_a_name_that_is_gone_is_seen() -> None:
    block = "from surgeon.optim import soap, gone\nsurgeon.relax(surgeon.finds(model))"
    assert sorted(unknown_names(block)) == ["surgeon.finds", "surgeon.optim.gone"]


def commands(text: str) -> Iterator[str]:
    """Command lines in fenced blocks, and those in code inside sentences, which may leave out what is clear."""
    for block in re.findall(FENCE, text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(r"(?:\$ )?(surgeon [a-z].*)", line):
                yield found[1]
    prose = re.sub(FENCE, "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (f"{' '.join(code.split())}  # in a sentence" for code in re.findall(r"`(surgeon [a-z][^`]*)`", prose))
    for code in re.findall(r"-m\s+surgeon_cli\.main\s([^`]+)`", prose):
        yield f"surgeon {' '.join(code.split())}  # in a sentence"


SHELL = (
    "surgeon ",
    "make ",
    "python ",
    "cp ",
    "cd ",
    "pip ",
    "export ",
    "accelerate ",
    "torchrun ",
    "mace_run_train",
    "nequip-",
    "SIZE=",
    "#",
)
PARSERS: dict[str, Any] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}


def other_blocks(page: Path) -> list[str]:
    """Blocks that are neither commands, nor Python, nor of a tutorial, nor data that parse."""
    found = []
    for kind, block in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        lines = [line for line in block.replace("\\\n", " ").splitlines() if line.strip()]
        if kind in PARSERS:
            PARSERS[kind](block)
        elif not kind.startswith(("python", "console", "output")) and not all(line.startswith(SHELL) for line in lines):
            found.append(f"{name_of(page)}: {block}")
    return found


def test_what_nothing_runs_says_why() -> None:
    found = [block for page in CLI_PAGES for block in other_blocks(page)]
    assert [block for block in found if not any(block.startswith(start) for start in SHOWN)] == []
    assert [start for start in SHOWN if not any(block.startswith(start) for block in found)] == []


def test_what_is_called_exists() -> None:
    """Scripts of the checkout, and targets of make."""
    text = "\n".join(
        block for page in CLI_PAGES for block in re.findall(FENCE, page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
    scripts = set(re.findall(r"(?:CHECKOUT/|\b)((?:examples|benchmarks)/[\w/]+\.\w+)", text))
    assert len(scripts) > 10
    assert [script for script in sorted(scripts) if not (ROOT / script).exists()] == []
    targets = set(re.findall(r"^(?:\$ )?make ([a-z][\w-]*)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert [
        name for name in targets if not re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    ] == []


@functools.cache
def known() -> dict[str, Any]:
    """The commands that there are."""
    return typer.main.get_command(app).commands  # type: ignore[attr-defined,no-any-return]


def complaint(command: str) -> str | None:
    """What the command line's own parser says of a command; nothing is run."""
    words = [word for word in shlex.split(command, comments=True)[1:] if word not in ("...", "COMMAND")]
    if words[0] not in known():
        return f"no command {words[0]}"
    try:
        known()[words[0]].make_context(words[0], words[1:])
    except Exception as error:
        left_out = type(error).__name__ == "MissingParameter" or "requires an argument" in str(error)
        return None if left_out and command.endswith("# in a sentence") else f"{type(error).__name__} {error}"
    return None


@pytest.mark.parametrize("page", CLI_PAGES, ids=name_of)
def test_commands_parse(page: Path) -> None:
    assert {each: why for each in commands(page.read_text("utf-8")) if (why := complaint(each))} == {}


@functools.cache
def options() -> set[str]:
    """All options that there are, and those that may be named besides."""
    each = [parameter for command in known().values() for parameter in command.params]
    return {name for parameter in each for name in (*parameter.opts, *parameter.secondary_opts)} | ELSEWHERE.keys()


def unknown_options(text: str) -> set[str]:
    """Options in code inside sentences that no command has."""
    prose = re.sub(FENCE, "", text, flags=re.DOTALL | re.MULTILINE)
    named = {name for code in re.findall(r"`([^`]+)`", prose) for name in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)}
    return named - options()


@pytest.mark.parametrize("page", CLI_PAGES, ids=name_of)
def test_options_exist(page: Path) -> None:
    assert unknown_options(page.read_text("utf-8")) == set()


def test_an_option_that_is_gone_is_seen() -> None:
    assert unknown_options("`--lr`, `relax --gone 3`, --prose\n```\n`--fenced`\n```\n") == {"--gone"}


@pytest.mark.parametrize(
    "command",
    ["surgeon relaks a.pt", "surgeon relax a.pt --gruop O3", "surgeon finetune a --optimizer sgdm", "surgeon relax"],
)
def test_a_wrong_command_is_seen(command: str) -> None:
    assert complaint(command)
    (found,) = commands(f"# Page\n\n```\n$ {command} \\\n    --force\n```\n")
    assert found.split() == [*command.split(), "--force"]


@functools.cache
def messages() -> list[str]:
    """All strings of the three packages; what a message fills in is …"""
    return [
        text
        for folder in ("surgeon", "adapters", "cli")
        for path in (ROOT / folder).rglob("*.py")
        for text in strings(path)
    ]


def strings(path: Path) -> Iterator[str]:
    """The strings of a file, docstrings included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_the_errors_that_are_explained_exist() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^> `(.*)`$", text, re.MULTILINE)
    assert len(quoted) > 15
    said = "\n".join(messages()).replace("`", "")
    assert [quote for quote in quoted if quote not in said] == []


def test_messages_advise_what_exists() -> None:
    assert {name for text in messages() for name in unknown_options(text)} == set()
    advised = {command for text in messages() for command in commands(text)}
    assert len(advised) > 15
    assert {each: why for each in advised if (why := complaint(each))} == {}


def test_examples_of_the_help_parse() -> None:
    """Each command shows some."""
    for name, command in known().items():
        examples = re.findall(r"^ *(surgeon [a-z].*)$", command.help, re.MULTILINE)
        assert name == "doctor" or examples, name
        assert {each: why for each in examples if (why := complaint(each))} == {}
