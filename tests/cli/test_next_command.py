"""What is printed as the next command works as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from surgeon.files.tensors import write_tensors
from tests.commands import QUICK, Surgeon
from tests.tiny import Net


def following(told: str) -> list[str]:
    """Return the arguments of the command that a command names last."""
    program, *arguments = shlex.split(told.rpartition("; next: ")[2])
    assert program == "surgeon"
    return arguments


@pytest.mark.parametrize("what", ["pickled module", "factory with arguments"])
def test_the_next_command_works_as_printed(surgeon: Surgeon, what: str) -> None:
    name = "net.pt" if what == "pickled module" else "net.safetensors"
    if what == "pickled module":
        text = Path("task.py").read_text().replace("    def model(", "    def untold(")
        Path("task.py").write_text(text)
        torch.save({"step": 3, "model": Net()}, "net.pt")
        flags = ["--trust-pickle", "--task", "task.py", "-o", "./-a folder"]
    else:
        Path("factories.py").write_text("from tests.tiny import Net\n\n\ndef build(width):\n    return Net(width)\n")
        write_tensors(Path("net.safetensors"), Net(3).state_dict(), {})
        Path("groups.py").write_text(
            "from surgeon.algebra.groups.parse import parse_group\n\n\ndef turns():\n"
            "    return parse_group('SO3').algebra, None\n"
        )
        flags = ["--model", "factories:build", "--model-args", '{"width": 3}', "--task", "task.py"]
        flags += ["--group", "groups:turns"]
    train = following(surgeon("relax", name, *flags).out)
    strip = following(surgeon(*train, "--epochs", "1", "-o", "a run").out)
    told = surgeon(*strip, *QUICK, "-o", "clean").out
    assert "wrote clean/" in told
    assert (strip[0], Path("clean/net.pt").is_file()) == (
        ("export", True) if what == "pickled module" else ("strip", False)
    )
    assert ("--trust-pickle" in train, "--trust-pickle" in strip) == (what == "pickled module",) * 2


def test_where_the_task_fails_the_next_command_tries_it(surgeon: Surgeon) -> None:
    text = Path("task.py").read_text()
    Path("task.py").write_text(
        text.replace("def loss(self, outputs: Tensor", "def loss(self, outputs: Tensor, more: Tensor")
    )
    told = surgeon("relax", "net.pt", "--task", "task.py").out
    assert "the task fails on the validation split with TypeError" in told
    assert following(told) == ["init", "net.pt", "--task", "task.py"]
    assert "TypeError" in surgeon(*following(told), code=1).out
