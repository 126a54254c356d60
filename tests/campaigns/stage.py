"""The folder in which commands are struck: made once, put back before every point, and looked at afterwards."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import write_tensors
from tests.campaigns.children import Place, settle
from tests.campaigns.injection import PUSHED, Injector, other_version
from tests.campaigns.work import QUICK, begin, here, surgeon
from tests.campaigns.writers import BASE, COMMANDS, FOREIGN, REPO, TRAIN, Command
from tests.cli.sweeps import optimised_once
from tests.hub.client import OWNER_TOKEN, USERS, point_client_at
from tests.hub.server import Hub
from tests.hub.store import Store

BEFORE = (("relax", "net.pt"), ("finetune", "net-relaxed", *TRAIN), ("strip", "net-run", *QUICK))
TIMELY = ("seconds", "sha256", "files", "revision")
"""What a record says of when it was made, and what follows from that."""
EXECUTED = "executed"
"""A file that a task writes which nobody has allowed to run."""


class Stage:
    """Commands run always at the same place, which the files that they write name.

    Args:
        folder: for everything: the commands' own, what it holds before each, and beside that another version of it.
    """

    def __init__(self, folder: Path) -> None:
        self.work, self.kept, self.home, self.hubs = (
            folder / "work",
            folder / "kept",
            folder / "home",
            dict[str, Store](),
        )

    def furnish(self, names: Sequence[str]) -> None:
        """Make what some of the commands find, run once what imports more than others, and keep that."""
        optimised_once()
        self.work.mkdir()
        self._one_of_everything(1)
        self.work.rename(other_version(self.work, "."))
        with other_version(self.work, "task.py").open("a") as task:
            task.write(f"\n\nPath({EXECUTED!r}).touch()\n")
        self.work.mkdir()
        self._one_of_everything(0)
        with here(self.work):
            for name in {*names} & {"export --container", "export --pt2", "export --onnx"}:
                _once(*COMMANDS[name].given)
                shutil.rmtree("new")
            if any(COMMANDS[name].hub for name in names):
                self._fill_hubs()
        settle()
        with here(self.work):
            for name in {"resume", "compare again"} & {*names}:
                self._half_way(COMMANDS[name])
        for name in FOREIGN:
            (self.work / name).parent.mkdir(exist_ok=True, parents=True)
            (self.work / name).write_text("mine")
        shutil.copytree(self.work, self.kept)

    def _one_of_everything(self, seed: int) -> None:
        with here(self.work):
            begin(self.work, seed)
            for command in BEFORE:
                _once(*command)
            weights = {**open_checkpoint("net.pt").tensors}
            Path("base").mkdir()
            write_tensors(Path("base/net.safetensors"), weights, {})

    def _fill_hubs(self) -> None:
        """Upload, and bring back, so that the client is imported."""
        self.hubs["empty"] = Store()
        for name, source in (("other", other_version(self.work, ".")), ("pushed", self.work)):
            hub = Hub(dict(USERS))
            self.hubs[name] = hub.store
            with pytest.MonkeyPatch.context() as patch, point_client_at(hub, self.work / "hf-home", OWNER_TOKEN, patch):
                _once("push", str(source / "net-run"), REPO)
                _once(*COMMANDS["pull"].given)
            hub.store.put(BASE, {"net.safetensors": (source / "base/net.safetensors").read_bytes()})
            hub.close()
            for left in ("new", "hf-home"):
                shutil.rmtree(left)
        for name, repo in self.hubs["other"].repos.items():
            for path, blob in repo.head.files.items():
                place = other_version(self.work, PUSHED) / name / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(blob.data)

    def _half_way(self, command: Command) -> None:
        """Kill a training after half of its calls."""
        before, place = {path.name for path in self.work.iterdir()}, Place(self.work)
        count = len(place.run(command.given, injector=Injector(str(self.work))).calls)
        for name in {path.name for path in self.work.iterdir()} - before:
            shutil.rmtree(name) if Path(name).is_dir() else Path(name).unlink()
        place.run(command.given, injector=Injector(str(self.work), count // 2, "SIGKILL before"))
        missing = [name for name in command.needs if not Path(name).is_dir()]
        if missing:
            sys.exit(f"expected {missing[0]}, of a training that was killed half-way, to be there")

    def fresh(self, command: Command) -> dict[str, str]:
        """Put the folder back, and return the hashes of the user's files, which no command may change."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        for name in sorted({"net.pt", "task.py", "notes.txt", *command.needs, *(["old"] if command.old else [])}):
            _copy(self.kept / name, self.work / name)
        for lock in self.kept.glob(".*.surgeon-*"):
            if any(lock.name.startswith(f".{name}.") for name in (*command.needs, command.target)):
                shutil.copy2(lock, self.work / lock.name)
        return {name: digest for name, digest in files_in(self.work).items() if _users(command, name)}

    def put_back(self, name: str) -> None:
        """Give the user a file again that was changed."""
        os.replace(shutil.copy2(self.kept / name, other_version(self.work, "swap")), self.work / name)

    def clear(self, command: Command) -> None:
        """Remove what a command has written."""
        for name in places_of(command):
            remove(self.work / name)

    def hidden(self) -> list[str]:
        """Return what Surgeon has left under names of its own."""
        return [path.name for path in self.work.rglob(".*") if "surgeon" in path.name]

    def content(self, command: Command) -> dict[str, str]:
        """Return what a command has written, see :func:`content_of`."""
        places = [self.work / name for name in places_of(command)]
        return {name: digest for place in places if place.exists() for name, digest in content_of(place).items()}


def _once(*command: str) -> None:
    code, _, err = surgeon(*command)
    if code:
        sys.exit(f"{' '.join(command)}: {err}")


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _users(command: Command, name: str) -> bool:
    """Tell whether a file is not the command's to change: all but the target, and foreign ones in a run."""
    inside = name.split("/")[0] in places_of(command) or name.startswith(f".{Path(command.target).stem}.")
    return not inside or (not command.old and name.endswith("notes.txt"))


def places_of(command: Command) -> tuple[str, ...]:
    """Return what a command writes: of a comparison also its finished runs, and the weights that it keeps."""
    stem, end = os.path.splitext(command.target)
    return (command.target, f"{stem}.runs", stem) if end == ".json" else (command.target,)


def files_in(folder: Path) -> dict[str, str]:
    """Return the hash of every file."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def content_of(path: Path) -> dict[str, str]:
    """Return what was written, by name, without times and what follows from them."""
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    found = {}
    for file in files:
        name = str(file.relative_to(path.parent))
        if file.suffix in (".json", ".jsonl") and file.name != "surgeon_seal.json":
            lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
            text = json.dumps([_timeless(json.loads(line)) for line in lines], sort_keys=True)
            found[name] = hashlib.sha256(text.encode()).hexdigest()
        elif file.name not in ("surgeon_seal.json", "CERTIFICATE.md", "README.md", "notes.txt"):
            found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _timeless(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _timeless(part) for key, part in data.items() if key not in TIMELY}
    return [_timeless(part) for part in data] if isinstance(data, list) else data
