"""A first task file: what it holds, what it leaves to the user, and what is found wrong in a task."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import surgeon
from surgeon.errors import ExistsError
from surgeon.opening.options import OpenOptions
from surgeon.proof.first_task import FirstTask, init_task
from tests import tiny

ROOT = Path(__file__).parents[2]
HOSTILE = '"""\nraise SystemExit(7)\n$keys'
IDENTITY = "    def act(self, g, batch):\n        return batch\n"
FIXED = "    def act_output(self, g, outputs):\n        return outputs\n"


def outcomes(done: FirstTask) -> dict[str, str]:
    return {step.name: step.outcome for step in done.steps}


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SURGEON_HOME", str(tmp_path / "home"))
    Path("tinynet.py").write_text(Path(tiny.__file__).read_text())
    torch.save(tiny.Net().state_dict(), "net.pt")
    return Path("net.pt")


def test_what_is_known_of_the_network_is_in_the_file(checkpoint: Path) -> None:
    options = OpenOptions(factory="tinynet:make_net", factory_arguments={"hidden": 2})
    done = surgeon.init_task(checkpoint, options=options)
    text = Path("task.py").read_text()
    for words in (
        "#   first.weight: [8]",
        "return make_net(**{'hidden': 2})",
        'model(batch["scalars"], batch["vectors"])',
    ):
        assert words in text
    assert "tinynet.Net" in done.seen
    assert outcomes(done) == {
        "model": "yes",
        "batches": "to do",
        "training step": "not reached",
        "symmetry": "not reached",
    }
    assert not done.passed
    with pytest.raises(ExistsError):
        init_task(checkpoint, options=options)
    assert init_task(checkpoint, options=OpenOptions(), force=True).steps[0].outcome == "to do"


def test_names_from_a_file_are_comments_and_nothing_else(checkpoint: Path) -> None:
    save_file({HOSTILE: torch.ones(2), "\u202ebidi": torch.ones(1)}, 'a""".safetensors')
    done = init_task('a""".safetensors', "first.py")
    assert done.steps[0].note.count("TODO: build your network") == 1  # the file was run, up to there
    text = Path("first.py").read_text()
    assert '\n#   """\\nraise SystemExit(7)\\n$keys: [2]\n' in text
    assert text.isascii()


def test_a_task_that_does_everything(checkpoint: Path) -> None:
    done = init_task(checkpoint, options=OpenOptions(task="tinynet.py"))
    assert done.passed, done.steps
    assert done.written is None
    assert "10 parameters" in done.steps[0].note
    assert "reaches 2 of 2" in done.steps[2].note
    assert not Path("task.py").exists()


@pytest.mark.parametrize(
    ("trouble", "member", "step", "words"),
    [
        ("", IDENTITY, "symmetry", "every tensor of it stays as it is"),
        ("", FIXED, "symmetry", "f(gx) and g f(x) differ by"),
        ("not symmetric", "", "symmetry", "f(gx) and g f(x) differ by"),
        ("nan", "", "training step", "finite loss"),
        ("other inputs", "", "training step", "missing"),
    ],
)
def test_what_is_wrong_is_found(checkpoint: Path, trouble: str, member: str, step: str, words: str) -> None:
    source = Path("tinynet.py").read_text()
    Path("tinynet.py").write_text(source.replace("\n\ndef make_task", f"\n{member}\n\ndef make_task"))
    done = init_task(checkpoint, options=OpenOptions(task="tinynet.py", task_arguments={"trouble": trouble}))
    found = next(each for each in done.steps if each.name == step)
    assert found.outcome == "NO"
    assert words in found.note


def test_a_family_with_a_ready_task_needs_none(checkpoint: Path) -> None:
    done = init_task(ROOT / "examples/nbody/segnn_nbody.safetensors", "first.py")
    assert done.family == "segnn"
    assert not Path("first.py").exists()


def test_a_network_that_only_rotations_leave_as_it_is_is_tried_under_these(checkpoint: Path) -> None:
    body = "        return torch.linalg.det(g).to(outputs) * outputs @ g.to(outputs).T\n"
    text = Path("tinynet.py").read_text()
    Path("tinynet.py").write_text(text.replace("        return outputs @ g.to(outputs).T\n", body))
    last = init_task(checkpoint, options=OpenOptions(task="tinynet.py")).steps[-1]
    assert last.outcome == "yes"
    assert "under SO3 f(gx)" in last.note
    assert ", while under inversion of O3 they do by 2" in last.note
    last = init_task(checkpoint, group="O3", options=OpenOptions(task="tinynet.py")).steps[-1]
    assert last.outcome == "NO"
