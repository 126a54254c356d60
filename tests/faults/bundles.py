"""Bundles that would run code, connect or write elsewhere if they were trusted, and a process that watches it try.

The corpus is made by code where it is tried; what it would run leaves the file ``pwned``.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import numpy
import onnx
import torch
from onnx.external_data_helper import set_external_data

from surgeon.errors import SurgeonError
from surgeon.export.archive import read_archive
from surgeon.files.clean import sealed
from surgeon.files.seals import seal_folder
from surgeon.files.tensors import write_tensors
from surgeon_adapters.atoms.md17 import read_md17
from surgeon_cli.main import main as surgeon
from tests import tiny
from tests.campaigns.work import QUICK, begin

SHELL, EVIL = "touch pwned", "evil:make"
STARTED = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn")
CONNECTED = ("socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request")
CHANGED = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "shutil.rmtree")
OPENING = (("inspect", "{}"), ("relax", "{}", "-o", "out/r"), ("finetune", "{}", "--arm", "plain", "-o", "out/f"))
FOLDER = (("inspect", "{}"), ("finetune", "{}", "-o", "out/f"), ("strip", "{}", "-o", "out/c"))
CLEAN = (("verify", "{}"), ("verify", "{}", "--against", "net.pt"), ("inspect", "{}/model.safetensors"))
Bundle = tuple[Callable[[Path], Any], tuple[Any, ...]]


class Reduced:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def hostile() -> Reduced:
    return Reduced(os.system, SHELL)


def executed() -> Reduced:
    return Reduced(eval, "__import__('os').mkdir('pwned')")


def packed(path: Path) -> None:
    """Write an archive as torch.save does, whose pickle and whose names lead elsewhere."""
    torch.save({"weight": torch.ones(2), "hook": hostile()}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../pwned", "")


def stated(path: Path, factory: str, arguments: Mapping[str, Any]) -> None:
    write_tensors(path, tiny.Net().state_dict(), {"surgeon.model": json.dumps({"factory": factory, "args": arguments})})


def configured(folder: Path, name: str = "net-relaxed", **changes: Any) -> None:
    """Copy a relaxed folder, change what it says of itself, and seal it again."""
    shutil.copytree(name, folder)
    path = folder / "surgeon_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    seal_folder(folder)


def certified(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Copy a clean folder, and change what its certificate says, with a hash that fits."""
    shutil.copytree("net-clean", folder)
    path = folder / "certificate.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(sealed(data)))


def linked_weights(folder: Path) -> None:
    """An ONNX file whose weights are said to lie outside its folder."""
    certified(
        folder, lambda data: data["details"].update(onnx={"opset": 18}) or data["files"].update({"model.onnx": ""})
    )
    value = onnx.numpy_helper.from_array(numpy.ones(4, "f4"), "first.weight")
    set_external_data(value, "../../secret", 0, 16)
    value.ClearField("raw_data")
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "net", [x], [x], [value])
    (folder / "model.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())


def pickled_archive(folder: Path) -> None:
    certified(folder, lambda data: data["details"].update(pt2={"nodes": 1}) or data["files"].update({"model.pt2": ""}))
    with zipfile.ZipFile(folder / "model.pt2", "w") as archive:
        for name in ("net/data/weights/weight_0", "net/data/sample_inputs/model.pt", "../../pwned"):
            archive.writestr(name, pickle.dumps(hostile()))


def objects(path: Path) -> None:
    with path.open("wb") as file:
        numpy.savez(file, z=numpy.array([hostile()], dtype=object), R=numpy.ones((1, 1, 3)))


CORPUS: dict[str, Bundle] = {
    "call.pt": (lambda path: torch.save(hostile(), path), OPENING),
    "legacy.pt": (lambda path: torch.save(hostile(), path, _use_new_zipfile_serialization=False), OPENING),
    "eval.pt": (lambda path: torch.save({"state_dict": {"a": torch.ones(1)}, "more": executed()}, path), OPENING),
    "packed.ckpt": (packed, OPENING),
    "pickle.pkl": (lambda path: path.write_bytes(pickle.dumps(hostile())), OPENING),
    "script.pt": (lambda path: torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path), OPENING),
    "factory.safetensors": (lambda path: stated(path, EVIL, {}), OPENING),
    "shell.safetensors": (lambda path: stated(path, "os:system", {"command": SHELL}), OPENING),
    "task": (lambda path: configured(path, task={"path": "evil.py", "sha256": "0" * 64, "args": {}}), FOLDER),
    "factory": (lambda path: configured(path, task=None, model={"factory": EVIL, "args": {}}), FOLDER),
    "group": (lambda path: certified(path, lambda data: data["details"].update(group=EVIL)), CLEAN),
    "original": (
        lambda path: certified(path, lambda data: data["details"]["original"].update(file="/etc/hosts")),
        CLEAN,
    ),
    "weights": (linked_weights, CLEAN),
    "archive": (pickled_archive, (*CLEAN, lambda path: read_archive(path / "model.pt2"))),
    "objects.npz": (objects, (read_md17,)),
}
"""Name to what writes the bundle, and what is done to it: commands, with its path for ``{}``, or readers."""


class Watch:
    """Notes what no bundle may bring about; everything else goes its way."""

    def __init__(self, target: Path) -> None:
        self.target, self.seen, self.on = target, list[str](), False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in STARTED or event in CONNECTED:
            self.seen.append(f"{event} {given[:1]}")
        elif event == "import" and str(given[0]).partition(".")[0] == "evil":
            self.seen.append(f"import {given[0]}")
        elif event == "exec" and isinstance(given[0], CodeType) and "evil" in given[0].co_filename:
            self.seen.append(f"exec {given[0].co_filename}")
        elif event in CHANGED or (event == "open" and set(str(given[1] or "")) & set("wax+")):
            self._writes(given[0])

    def _writes(self, name: Any) -> None:
        place = Path(os.path.abspath(os.fspath(name))) if isinstance(name, str | os.PathLike) else self.target
        if not place.is_relative_to(self.target) and place != Path(os.devnull):
            self.seen.append(f"writes {place}")


def tried(call: Any, path: Path) -> str:
    """Do something to a bundle; return what it said."""
    out, code = io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            call(path) if callable(call) else surgeon([word.format(path) for word in call])
        except SystemExit as error:
            code = int(error.code or 0)
        except SurgeonError as error:
            out.write(f"error: {error}")
    return f"{code} {out.getvalue()}"


def main(arguments: list[str]) -> None:
    """Make everything in the current folder, and write what became of it to ``found.json``."""
    torch.set_num_threads(1)
    here = Path.cwd()
    os.environ["SURGEON_HOME"] = str(here / "out" / "home")
    begin(here)
    Path("evil.py").write_text("open('pwned', 'w')\nimport tests.tiny\nmake = make_task = tests.tiny.make_net\n")
    for words in (("relax", "net.pt"), ("strip", "net-relaxed", *QUICK)):
        tried(words, here)
    Path("task.py").rename("evil_task.py")
    shutil.rmtree("out")
    for name, (write, _) in CORPUS.items():
        write(here / name)
    sys.path.insert(0, str(here))  # as with `python -m`: the code of a bundle would be found
    watch, found = Watch(here / "out"), {}
    for name, (_, calls) in CORPUS.items():
        (here / "out").mkdir()
        watch.on = True
        said = [tried(call, Path(name)) for call in calls]
        watch.on = False
        found[name] = {"said": said, "seen": watch.seen, "pwned": Path("pwned").exists()}
        watch.seen = []
        shutil.rmtree("out")
    watch.on = True
    os.system("true")  # noqa: S605, S607 (that the watch watches)
    watch.on = False
    found["watch"] = {"seen": watch.seen}
    Path("found.json").write_text(json.dumps(found))
