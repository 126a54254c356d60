"""Whatever goes wrong: one sentence, an exit code, nothing half-written, and the user's files as they were."""

from __future__ import annotations

import builtins
import errno
import json
import os
import pickle
import re
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.files.seals import seal_folder
from surgeon.files.tensors import write_tensors
from tests import tiny
from tests.commands import Surgeon, files_in
from tests.processes import forked, forked_code

Prepare = Callable[[Surgeon], None]


def nothing(surgeon: Surgeon) -> None:
    """Leave the folder as it is: net.pt and task.py."""


def notes(surgeon: Surgeon) -> None:
    (surgeon.path / "notes.txt").write_text("mine")


def relaxed(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")


def trained(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    surgeon.once("finetune", "net-relaxed", "--epochs", "1", "--json")


def given(name: str, content: bytes | str) -> Prepare:
    def write(surgeon: Surgeon) -> None:
        data = content.encode() if isinstance(content, str) else content
        (surgeon.path / name).write_bytes(data)

    return write


def truncated(name: str) -> Prepare:
    def write(surgeon: Surgeon) -> None:
        path = surgeon.path / name
        if path.suffix == ".safetensors":
            write_tensors(path, tiny.Net().state_dict())
        path.write_bytes(path.read_bytes()[:-40])

    return write


def saved(content: Any, name: str = "net.pt") -> Prepare:
    return lambda surgeon: torch.save(content(), surgeon.path / name)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("EXPLODED",)


def bomb(surgeon: Surgeon) -> None:
    torch.save(Bomb(), surgeon.path / "net.pt", _use_new_zipfile_serialization=False)


def plain_bomb(surgeon: Surgeon) -> None:
    (surgeon.path / "net.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))


def edited(name: str, change: Callable[[dict[str, Any]], object]) -> Prepare:
    def prepare(surgeon: Surgeon) -> None:
        relaxed(surgeon)
        path = surgeon.path / "net-relaxed" / name
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        seal_folder(path.parent)

    return prepare


def both(*steps: Prepare) -> Prepare:
    def prepare(surgeon: Surgeon) -> None:
        for step in steps:
            step(surgeon)

    return prepare


def removed(name: str) -> Prepare:
    return lambda surgeon: (surgeon.path / name).unlink()


def no_loss() -> str:
    return "class T:\n    def batches(self, split, seed):\n        return []\ntask = T()\n"


def changed_task(surgeon: Surgeon) -> None:
    path = surgeon.path / "task.py"
    path.write_text(path.read_text() + "\nPath('EXPLODED').mkdir()\n")


def task_inside(data: dict[str, Any]) -> None:
    Path("net-relaxed/evil.py").write_text("from pathlib import Path\nPath('EXPLODED').mkdir()\n")
    data["task"]["path"] = "net-relaxed/evil.py"


def args(**values: Any) -> str:
    return f"--task task.py --task-args {shlex.quote(json.dumps(values))}"


@dataclass(frozen=True)
class Case:
    id: str
    command: str
    prepare: Prepare
    words: str
    code: int = 2


QUICK = "--epochs 1 --json"
FACTORY = "--model task:make_net"
SWEEP = "finetune net-relaxed --compare plain --lr-record"

CASES = [
    # the checkpoint
    Case("text file", "inspect net.pt", given("net.pt", "hello"), "expected safetensors or a file .* starts with"),
    Case("html", "relax net.pt", given("net.pt", "<!DOCTYPE html><html>" * 9), "starts with"),
    Case("empty file", "relax net.pt", given("net.pt", ""), "is empty"),
    Case("truncated pt", "relax net.pt", truncated("net.pt"), "damaged or not a checkpoint"),
    Case("truncated safetensors", "relax a.safetensors", truncated("a.safetensors"), "as safetensors"),
    Case("missing file", "relax nte.pt", nothing, "there is no checkpoint 'nte.pt'.*net.pt"),
    Case("not UTF-8", "relax net.pt -o bad\udcff", nothing, "expected names in UTF-8, .*bad.udcff.*: rename"),
    Case("a folder", "relax .", nothing, "expected a checkpoint file or a folder made by `surgeon relax`"),
    Case("no tensors", "relax net.pt", saved(dict), "holds none"),
    Case("does not fit", "relax net.pt", saved(lambda: nn.Linear(2, 2).state_dict()), "keys of Net, got 2 keys"),
    Case("other shapes", "relax net.pt", saved(lambda: tiny.Net(3).state_dict()), "expected the shapes of Net"),
    Case("pickle without the flag", "relax net.pt", bomb, "--trust-pickle"),
    Case("pickle of no torch", "relax net.pt --trust-pickle", plain_bomb, "another pickle, as of pickle.dump"),
    Case("module without the flag", "relax net.pt", saved(tiny.Net), "--trust-pickle"),
    Case(
        "several sets", "relax net.pt", saved(lambda: {"a": {"x": torch.ones(1)}, "b": {"x": torch.ones(1)}}), "entry"
    ),
    Case("unknown entry", "relax net.pt --entry q", saved(lambda: {"a": {"x": torch.ones(1)}}), "weights under 'q'"),
    Case("nothing says how", "relax net.pt", removed("task.py"), "nothing says how to build the model"),
    # group, sites
    Case("unknown group", "relax net.pt --group SU9", nothing, "SU9.*SO3|SO3.*SU9"),
    Case("unsupported group", "relax net.pt --group D4", nothing, "the action on the sample batch fails"),
    Case("not the symmetry", f"relax net.pt {args(trouble='not symmetric')}", nothing, "to be a symmetry", 1),
    Case("not the symmetry, inspect", f"inspect net.pt {args(trouble='not symmetric')}", nothing, "a symmetry", 1),
    Case(
        "no site",
        f"relax net.pt {args(trouble='no sites')}",
        saved(lambda: tiny.Plain().state_dict()),
        "to be a symmetry",
        1,
    ),
    Case("include matches nothing", "relax net.pt --include frist", nothing, "--include 'frist' .*'first'"),
    Case("exclude matches nothing", "relax net.pt --exclude a*b", nothing, "--exclude 'a\\*b'"),
    Case("exclude everything", "relax net.pt --exclude *", nothing, "exclude all of them"),
    # the command itself
    Case("unknown command", "relaxx net.pt", nothing, "No such command"),
    Case("unknown option", "relax net.pt --frobnicate", nothing, "No such option"),
    Case("missing argument", "relax", nothing, "Missing argument"),
    Case("bad JSON", "relax net.pt --task task.py --task-args {bad", nothing, "JSON object after --task-args"),
    Case("JSON list", f"relax net.pt {FACTORY} --model-args [1]", nothing, "JSON object after --model-args"),
    Case("unknown task argument", f"relax net.pt {args(size=3)}", nothing, "it accepts batches"),
    Case("unknown factory", "relax net.pt --model task:make_ent", nothing, "make_net"),
    Case("factory module missing", "relax net.pt --model nowhere:f", nothing, "no module 'nowhere'"),
    Case("init scale NaN", "relax net.pt --init-scale nan", nothing, "--init-scale"),
    Case("init scale below 0", "relax net.pt --init-scale -1", nothing, "--init-scale"),
    Case("unknown schedule", "relax net.pt --schedule linear", nothing, "--schedule"),
    Case("no elements", "measure net.pt --elements 0", nothing, "--elements"),
    Case("no folder here", "finetune", nothing, "expected a relaxed folder in .* found none"),
    Case("two folders", "strip", both(relaxed, lambda s: s("relax", "net.pt", "-o", "other") and None), "found 2"),
    # outputs
    Case("existing output", "relax net.pt", relaxed, "exists already.*--force"),
    Case("output folder missing", "relax net.pt -o no/where", nothing, "its folder does not exist"),
    Case("output below a file", "relax net.pt -o task.py/x", nothing, "a part of the path is a file"),
    Case("output is a file", "relax net.pt -o notes.txt --force", notes, "a file of that name is in the way"),
    Case("output holds the input", "relax net.pt -o . --force", nothing, "output apart from the input"),
    Case("run into its input", "finetune net-relaxed -o net-relaxed --force", relaxed, "output apart from the input"),
    Case("strip into its input", "strip net-relaxed -o net-relaxed --force", relaxed, "output apart from the input"),
    Case("strip over the original", f"strip net-relaxed -o {os.curdir} --force", relaxed, "apart from the input"),
    Case("existing record", "finetune net-relaxed --compare plain -o task.py", relaxed, "exists already"),
    Case(
        "output is no run", "finetune net-relaxed -o full", both(relaxed, lambda s: full(s.path)), "not a run that can"
    ),
    # training options
    Case("no epochs", "finetune net-relaxed --epochs 0", relaxed, "--epochs"),
    Case("rate 0", "finetune net-relaxed --lr 0", relaxed, "positive finite learning_rate"),
    Case("rate NaN", "finetune net-relaxed --lr nan", relaxed, "positive finite learning_rate"),
    Case("rate is text", "finetune net-relaxed --lr fast", relaxed, "--lr"),
    Case("clip 0", "finetune net-relaxed --clip 0", relaxed, "positive finite clip"),
    Case("lambda below 0", "finetune net-relaxed --lambda -1", relaxed, "penalty_weight of at least 0"),
    Case("fp16 on the CPU", f"finetune net-relaxed --precision fp16 {QUICK}", relaxed, "precision 'fp16'"),
    Case("unknown arm", "finetune net-relaxed --arm dorp", relaxed, "an arm among plain, drop, fold"),
    Case("unknown arm to compare", "finetune net-relaxed --compare plain,dorp", relaxed, "an arm among plain"),
    Case("arm twice", "finetune net-relaxed --compare plain,plain", relaxed, "name each arm once"),
    Case("no arm", "finetune net-relaxed --compare ,", relaxed, "distinct arms"),
    Case("arm and compare", "finetune net-relaxed --arm drop --compare plain", relaxed, "one of --arm, --auto and"),
    Case("grid without compare", "finetune net-relaxed --lr-grid 1e-3", relaxed, "together with --compare"),
    Case("grid is text", "finetune net-relaxed --compare plain --lr-grid a,b", relaxed, "learning rates separated"),
    Case("no seeds", "finetune net-relaxed --compare plain --seeds 0", relaxed, "--seeds"),
    Case("record missing", f"{SWEEP} no.json", relaxed, "the record of a sweep"),
    Case("record malformed", f"{SWEEP} a.json", both(relaxed, given("a.json", "[1]")), "the record of a sweep"),
    Case("record of text", f"{SWEEP} a.json", both(relaxed, given("a.json", '{"best": {"plain": "x"}}')), "of a sweep"),
    Case("record of others", f"{SWEEP} a.json", both(relaxed, given("a.json", '{"best": {}}')), "got none for plain"),
    Case("plain checkpoint to strip", "strip net.pt", nothing, "which has no branches: run"),
    Case("relaxed folder to relax", "relax net-relaxed -o b", relaxed, "strip it first"),
    # training
    Case(
        "NaN loss", f"finetune net-relaxed {QUICK} {args(trouble='nan', at=2)}", relaxed, "task loss became nan at step"
    ),
    Case(
        "task raises",
        f"finetune net-relaxed {QUICK} {args(trouble='raise', at=2)}",
        relaxed,
        "the task's forward failed with ZeroDivisionError.* task.py.*; your run is safe in net-run/ up to epoch 0;",
    ),
    Case("no training data", f"finetune net-relaxed {QUICK} {args(empty='train')}", relaxed, "no batch .* 'train'"),
    Case("no validation data", f"finetune net-relaxed {QUICK} {args(empty='validation')}", relaxed, "'validation'"),
    Case("no test data", f"strip net-relaxed {args(empty='test')}", relaxed, "'test'"),
    Case("no test data, compare", f"finetune net-relaxed --compare plain {args(empty='test')}", relaxed, "'test'"),
    Case(
        "other inputs",
        f"relax net.pt {args(trouble='other inputs')}",
        nothing,
        "the task's forward failed with TypeError: .*forward",
    ),
    Case("other settings", "finetune net-relaxed --epochs 2", trained, "epochs 1 against 2"),
    Case("other arm", "finetune net-relaxed --epochs 1 --arm fold", trained, "arm 'drop' against 'fold'"),
    Case(
        "other start",
        "finetune net-relaxed --epochs 1",
        both(trained, lambda s: s("relax", "net.pt", "--include", "first", "--force") and None),
        "its plan differ",
    ),
    Case(
        "state damaged",
        "finetune net-relaxed --epochs 1",
        both(trained, truncated("net-run/training_state/state.json")),
        "start anew",
    ),
    Case(
        "tensors damaged",
        "finetune net-relaxed --epochs 1",
        both(trained, given("net-run/training_state/state.safetensors", b"x" * 99)),
        "state.safetensors' is not as it was written",
    ),
    # the task
    Case("task missing", "relax net.pt --task tsak.py", nothing, "there is no task file .*task.py"),
    Case("task broken", "relax net.pt --task bad.py", given("bad.py", "x = (\n"), "SyntaxError"),
    Case("task raises at import", "relax net.pt --task bad.py", given("bad.py", "x = 1\n1 / 0\n"), "at line 2"),
    Case("task without loss", "relax net.pt --task bad.py", given("bad.py", no_loss()), "loss is missing"),
    Case("task without anything", "relax net.pt --task bad.py", given("bad.py", "x = 1\n"), "`task` or `make_task`"),
    Case("task gone", "inspect net-relaxed", both(relaxed, removed("task.py")), "not there any more"),
    Case("task changed", "inspect net-relaxed", both(relaxed, changed_task), "--accept-changed-task"),
    Case("task inside the folder", "inspect net-relaxed", edited("surgeon_config.json", task_inside), "inside itself"),
    # the relaxed folder
    Case(
        "config no JSON", "inspect net-relaxed", both(relaxed, given("net-relaxed/surgeon_config.json", "{")), "as JSON"
    ),
    Case(
        "config a list",
        "inspect net-relaxed",
        both(relaxed, given("net-relaxed/surgeon_config.json", "[]")),
        "Expected `object`",
    ),
    Case(
        "config lacks", "inspect net-relaxed", edited("surgeon_config.json", lambda d: d.pop("theta")), "field `theta`"
    ),
    Case(
        "newer format",
        "inspect net-relaxed",
        edited("surgeon_config.json", lambda d: d.update(format_version=9)),
        "version 9: update",
    ),
    Case(
        "newer plan",
        "inspect net-relaxed",
        edited("surgeon_config.json", lambda d: d["plan"].update(format_version=9)),
        "version 9: update",
    ),
    Case(
        "plan lacks",
        "inspect net-relaxed",
        edited("surgeon_config.json", lambda d: d["plan"].pop("sites")),
        "bad field",
    ),
    Case(
        "site of another model",
        "inspect net-relaxed",
        edited("surgeon_config.json", lambda d: d["plan"]["sites"][0].update(name="nope")),
        "nope",
    ),
    Case(
        "schedule unknown",
        "inspect net-relaxed",
        edited("surgeon_config.json", lambda d: d["schedule"].update(name="x")),
        "a schedule among",
    ),
    Case(
        "schedule settings",
        "inspect net-relaxed",
        edited("surgeon_config.json", lambda d: d["schedule"].update(x=1)),
        "schedule.x: unknown",
    ),
    Case(
        "penalty unknown",
        "measure net-relaxed",
        edited("surgeon_config.json", lambda d: d["penalty"].update(form="x")),
        "penalty",
    ),
    Case(
        "branches missing",
        "strip net-relaxed",
        both(relaxed, removed("net-relaxed/relaxation.safetensors")),
        "relaxation.safetensors",
    ),
    Case("original gone", "strip net-relaxed", both(relaxed, removed("net.pt")), "--original FILE"),
    Case(
        "original changed",
        "strip net-relaxed",
        both(relaxed, saved(lambda: tiny.Net().state_dict())),
        "has changed since",
    ),
]


def full(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "thesis.txt").write_text("important")


def check_one_sentence(err: str, words: str) -> None:
    lines = [line for line in err.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert lines[-1] == errors[0]
    assert "Traceback" not in err
    assert re.search(words, errors[0]), errors[0]
    assert "surgeon-tmp" not in err


@pytest.fixture
def surgeon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Surgeon:
    return Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_bad_input(surgeon: Surgeon, case: Case) -> None:
    case.prepare(surgeon)
    before = files_in(surgeon.path)
    result = surgeon(*shlex.split(case.command), code=case.code)
    check_one_sentence(result.err, case.words)
    assert not ("net-relaxed" in result.err and "correct" in result.err)  # a sealed folder is never to be edited
    after = files_in(surgeon.path)
    kept = {name: digest for name, digest in after.items() if name in before}
    assert kept == before
    # a run that stops has saved the model as it came, completely
    assert all(name.startswith("net-run/") for name in after.keys() - before.keys())
    assert not Path("EXPLODED").exists()
    assert not [path for path in surgeon.path.rglob(".*") if "surgeon" in path.name]


def failing(number: int) -> Callable[..., Any]:
    opened = os.open

    def fail(path: Any, flags: Any = None, *rest: Any, **further: Any) -> Any:
        if flags is not None and os.path.isfile(path) and not isinstance(flags, str | os.PathLike):  # is to be read
            return opened(path, flags, *rest, **further)
        raise OSError(number, os.strerror(number))

    return fail


COMMANDS = ["relax net.pt -o new", f"finetune net-relaxed {QUICK} -o new", "strip net-relaxed -o new"]
COMMANDS += ["export net-relaxed --container -o new"]


@pytest.mark.parametrize(
    ("call", "number"),
    [("open", errno.EACCES), ("mkdir", errno.EROFS), ("replace", errno.EACCES), ("fsync", errno.ENOSPC)],
)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_the_system_refuses(
    surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch, command: str, call: str, number: int
) -> None:
    relaxed(surgeon)
    before = files_in(surgeon.path)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing(number))
        result = surgeon(*shlex.split(command), code=2)
    check_one_sentence(result.err, "could not write '.*new.*': (permission|the file system|the disk)")
    assert files_in(surgeon.path) == before
    assert not (surgeon.path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to read-only folders")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_a_read_only_folder(surgeon: Surgeon, command: str) -> None:
    relaxed(surgeon)
    before = files_in(surgeon.path)
    surgeon.path.chmod(0o555)
    try:
        result = surgeon(*shlex.split(command), code=2)
    finally:
        surgeon.path.chmod(0o755)
    check_one_sentence(result.err, "permission is denied")
    assert files_in(surgeon.path) == before


LIMITED = """
import resource, sys
from surgeon_cli.main import main
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # of what it prints, too
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_file_size_limit_of_the_system_is_told_in_one_sentence_of_a_process(surgeon: Surgeon) -> None:
    before = files_in(surgeon.path)
    done = forked_code(surgeon.path, LIMITED, "relax", "net.pt", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Warning" not in done.stderr
    check_one_sentence(done.stderr, "larger than the system allows")
    assert files_in(surgeon.path) == before


@pytest.mark.slow
def test_interrupted_in_training(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    before = files_in(surgeon.path)
    command = f"finetune net-relaxed --epochs 3 {args(trouble='INT', at=8)}"
    done = forked(surgeon.path, *shlex.split(command))
    assert done.returncode == 2
    check_one_sentence(
        done.stderr, "interrupted in epoch 3: your run is safe in net-run/ up to epoch 2; .*same command"
    )
    after = files_in(surgeon.path)
    assert {name: after[name] for name in before} == before
    surgeon(*shlex.split(command))
    history = [json.loads(line) for line in Path("net-run/records.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3]


def test_interrupted_while_writing(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_in(surgeon.path)

    def interrupted(descriptor: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        result = surgeon("relax", "net.pt", code=2)
    check_one_sentence(result.err, "interrupted; nothing half-written was left")
    assert files_in(surgeon.path) == before


def test_interrupted_while_opening(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = files_in(surgeon.path), builtins.open

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if str(arguments[0]) == "net.pt":
            raise KeyboardInterrupt
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", interrupted)
        result = surgeon("inspect", "net.pt", code=2)
    check_one_sentence(result.err, "interrupted")
    assert files_in(surgeon.path) == before
