"""What the documentation site has beside the pages in docs/: copies of other files, and references that are generated.

mkdocs calls the functions (``hooks`` in mkdocs.yml), griffe the class (``extensions`` there).
"""

from __future__ import annotations

import logging
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

import surgeon

sys.path.insert(0, str(Path(__file__).parent))  # mkdocs loads hooks by their path
from notebooks import notebooks  # noqa: E402

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted(ROOT.glob("examples/*/README.md"))
COPIES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    **{
        page.relative_to(ROOT).as_posix(): f"examples/{page.parent.name}.md"
        for page in ROOT.glob("examples/*/README.md")
    },
}
"""File of the repository to page of the site."""

REFERENCE = {
    "find": ("Find what can be relaxed", "find inspect inspect_breaks Plan Site Task"),
    "edit": ("Edit a network, and undo it", "relax select Relaxation strip"),
    "train": (
        "Train",
        "finetune finetune_auto compare FinetuneSettings AutoSettings CompareSettings TrainingSession optim "
        "integrations",
    ),
    "prove": ("Prove what came out", "certify verify_clean measure Certificate MeasureSettings testing"),
    "write": (
        "Open, write and share files",
        "open_path relax_checkpoint strip_folder from_pretrained save_pretrained from_hub push_to_hub pull OpenOptions "
        "RelaxSettings StripSettings PushOptions write_report watch_report init_task",
    ),
}
"""Page to its title and the public names of ``surgeon`` on it."""

ROOMS = {
    "integrations": (
        "lightning.RelaxationCallback lightning.MatrixBlocks transformers.RelaxedTrainer settings.RelaxationSettings"
    ),
    "optim": "soap muon find_blocks Soap Muon WeightBlocks MatrixViews WARMUP",
    "testing": "assert_equivariant_inside assert_equivariant AdapterContract TOLERANCE",
}
"""Public package to what is shown of it."""


def _shown(names: str) -> list[str]:
    """Return the identifiers that stand for public names, the packages among them resolved."""
    return [
        f"surgeon.{name}.{part}" if part else f"surgeon.{name}"
        for name in names.split()
        for part in ROOMS.get(name, "").split() or [""]
    ]


PUBLIC = {identifier.rpartition(".")[2]: identifier for _, names in REFERENCE.values() for identifier in _shown(names)}


def on_files(files: Files, *, config: Any) -> Files:
    """Add the copies and the references to the pages."""
    for name in sorted(_public() - {*PUBLIC, *ROOMS}):
        logging.getLogger("mkdocs.hooks").warning("the public name %r is on no page of the reference", name)
    pages = {page: (ROOT / source).read_text("utf-8") for source, page in COPIES.items()}
    for page, (title, names) in REFERENCE.items():
        pages[f"reference/{page}.md"] = f"# {title}\n\n" + "\n\n".join(f"::: {each}" for each in _shown(names)) + "\n"
    pages["reference/errors.md"] = "# Errors\n\n::: surgeon.errors\n    options:\n      show_root_heading: false\n"
    pages["reference/cli.md"] = _commands()
    pages |= {f"tutorials/{name}.ipynb": text for name, text in notebooks().items()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def _public() -> set[str]:
    """Return the public names of ``surgeon`` and of the packages that it offers."""
    rooms = (surgeon.optim, surgeon.testing)
    inside = {name: value for room in rooms for name, value in vars(room).items() if not name.startswith("_")}
    return {*surgeon.__all__, *(name for name, value in inside.items() if not isinstance(value, ModuleType))}


def _commands() -> str:
    """Return the help of all commands as Markdown."""
    command = [sys.executable, "-m", "typer", "surgeon_cli.main", "utils", "docs", "--name", "surgeon"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    listed = re.compile(r"^\*\*Commands\*\*:.*?^(?=## )", re.DOTALL | re.MULTILINE)  # cut off after some words
    return listed.sub("", text.replace("# `surgeon`", "# Commands", 1), count=1)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links between files of the repository lead to the pages that they have become; offer notebooks."""
    here = page.file.src_uri
    if here.startswith("tutorials/"):
        link = f"[This page as a notebook]({Path(here).stem}.ipynb), to be run in a clone."
        markdown = re.sub(r"\A(# .*\n)", rf"\1\n{link}\n", markdown)
    source = next((file for file, copy in COPIES.items() if copy == here), f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        path, mark, anchor = (match[1] or "").partition("#")
        if not path or ":" in path:  # code, a heading of this page, or another site
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = COPIES.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else f"../{there}")
        return f"]({posixpath.relpath(there, posixpath.dirname(here))}{mark}{anchor})"

    return re.sub(r"(?s)```.*?```|\]\(([^)\s]+)\)", moved, markdown)


class Roles(griffe.Extension):
    """Docstrings name functions as Sphinx does; here public ones become links, others code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object as it is read."""
        if obj.docstring is not None:
            text = re.sub(r":(?:func|class|meth|data|attr):`~?([^`]+)`", _link, obj.docstring.value)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _link(role: re.Match[str]) -> str:
    name = role[1].rpartition(".")[2]
    return f"[`{name}`][{PUBLIC[name]}]" if name in PUBLIC else f"`{role[1]}`"
