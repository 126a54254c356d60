"""A folder with one of everything that is read: made by the commands themselves, once for a campaign."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import numpy
import torch

from surgeon.files.tensors import write_tensors
from surgeon.opening.trust import remember_task
from surgeon_cli.main import main
from tests import tiny

QUICK = ("--elements", "1", "--batches", "1")
COMMANDS = (
    ("relax", "net.pt"),
    ("inspect", "net.pt", "--plan", "plan.json"),
    ("finetune", "net-relaxed", "--epochs", "1"),
    ("strip", "net-run", *QUICK),
    ("finetune", "net-relaxed", "--epochs", "1", "--compare", "plain,drop", "--seeds", "1", "--lr-grid", "1e-3"),
)
XYZ = """3
Lattice="5 0 0 0 5 0 0 0 5" Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy=-1.5 pbc="T T T"
O 0 0 0 0.1 0 0
H 0 0 1 0 0.1 0
H 0 1 0 0 0 0.1
"""


def surgeon(*arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as error:
            code = int(error.code or 0)
    return code, out.getvalue(), err.getvalue()


@contextmanager
def here(folder: Path, home: Path | None = None) -> Iterator[Path]:
    """Make a folder the current one, with its own place for what Surgeon remembers."""
    before, usual = Path.cwd(), os.environ.get("SURGEON_HOME")
    os.chdir(folder)
    os.environ["SURGEON_HOME"] = str(home or folder.parent / "home")
    try:
        yield folder
    finally:
        os.chdir(before)
        os.environ.pop("SURGEON_HOME")
        if usual is not None:
            os.environ["SURGEON_HOME"] = usual


def begin(folder: Path, seed: int = 0) -> None:
    """Write the user's files into the current folder: a checkpoint of random weights and its task."""
    shutil.copy(tiny.__file__, folder / "task.py")
    remember_task(folder / "task.py")
    torch.manual_seed(seed)
    torch.save(tiny.Net().state_dict(), folder / "net.pt")


def furnish(folder: Path) -> None:
    """Make one of everything in the current folder."""
    torch.set_num_threads(1)
    begin(folder)
    for command in COMMANDS:
        code, _, err = surgeon(*command)
        if code:
            sys.exit(f"{' '.join(command)}: {err}")
    shutil.copy("net-compare.runs/comparison.json", "identity.json")
    weights = tiny.Net().state_dict()
    write_tensors(folder / "net.safetensors", weights, {"surgeon.model": '{"factory": "tests.tiny:make_net"}'})
    torch.save(weights, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": weights, "note": ["a", 1.5]}, folder / "nested.pt")
    (folder / "aside.safetensors").write_bytes((folder / "net.safetensors").read_bytes())
    write_tensors(folder / "aside.safetensors", weights, force=True)
    statement = {"factory": "tests.tiny:make_net", "args": {"hidden": 2}}
    (folder / "aside.safetensors.model.json").write_text(json.dumps(statement))
    (folder / "energies.json").write_text('{"H": -13.6, "O": -432.5}')
    (folder / "frames.xyz").write_text(XYZ * 2)
    atoms, places = numpy.array([8, 1, 1]), numpy.ones((4, 3, 3))
    numpy.savez(folder / "md17.npz", z=atoms, R=places, E=numpy.ones((4, 1)), F=places)
    net = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(4, 3),))
    net._example_inputs = None  # as Surgeon does, whose archives hold no pickle
    torch.export.save(net, folder / "net.pt2")
    with suppress(ImportError):
        import onnx

        x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3]) for name in "xy")
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
        onnx.save(onnx.helper.make_model(graph), folder / "net.onnx")
    with suppress(ImportError):
        import h5py

        with h5py.File(folder / "clouds.h5", "w") as file:
            file["data"], file["label"] = numpy.ones((2, 8, 3), "f4"), numpy.zeros((2, 1), "u1")
