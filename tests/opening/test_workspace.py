"""Every way to get from a path to an opened model, and back to the original."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.editing.insert import relax
from surgeon.errors import CheckpointError, ModelNotFoundError, TaskError, TrustError
from surgeon.files.open_file import OpenFile
from surgeon.files.relaxed import write_relaxed
from surgeon.files.seals import seal_folder
from surgeon.finding.find import find
from surgeon.opening.description import relaxed_config
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.trust import remember_task
from surgeon.opening.workspace import Workspace
from surgeon.plan import StripMode
from surgeon.support import widened
from surgeon.support.modes import model_dtype
from surgeon.support.trees import to_dtype
from tests.commands import Surgeon
from tests.tiny import Net, TinyTask

PENALTY = {"lambda": 0.01, "form": "gram", "scale": "relative"}
TRIANGLE = {"name": "triangle", "tail": 0.05, "peak": 1.0, "sites": []}


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return Surgeon.folder(tmp_path, monkeypatch)


def test_what_was_opened_is_told_in_a_line(work: Path) -> None:
    told = repr(open_path("net.pt", OpenOptions(task="task.py")))
    assert told == "Workspace('net.pt', Net, task task.py)"


def make_relaxed(
    work: Path, path: str = "net.pt", options: OpenOptions | None = None, mode: StripMode = "drop"
) -> Path:
    workspace = open_path(work / path, options)
    task = TinyTask()
    batch = to_dtype(next(iter(task.batches("validation", 0))), model_dtype(workspace.model))
    plan = find(workspace.model, "O3", batch, forward=task.forward)
    relaxation = relax(workspace.model, plan, dense=True, mode=mode, init_scale=0.5)
    thetas = dict.fromkeys(relaxation.branches, (0.5, 0.25))
    config = relaxed_config(workspace, relaxation, penalty=PENALTY, thetas=thetas)
    write_relaxed(work / "net-relaxed", workspace.model, config, workspace.checkpoint.metadata)
    return work / "net-relaxed"


def run(model: nn.Module) -> torch.Tensor:
    batch = next(iter(TinyTask().batches("test", 0)))
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        result: torch.Tensor = model(batch["scalars"].to(dtype), batch["vectors"].to(dtype))
    return result


def test_a_checkpoint_with_its_task_beside_it(work: Path) -> None:
    told: list[str] = []
    workspace = open_path(work / "net.pt", OpenOptions(announce=told.append))
    assert told == [str(work / "task.py")]
    assert workspace.relaxation is None
    assert workspace.task is not None
    original, checkpoint = workspace.original()
    assert torch.equal(run(original), run(workspace.model))
    assert original is not workspace.model
    assert checkpoint.sha256 == workspace.checkpoint.sha256


def test_a_relaxed_folder_opens_as_it_was_written(work: Path) -> None:
    folder = make_relaxed(work)
    workspace = open_path(folder)
    assert workspace.relaxation is not None
    assert workspace.relaxation.theta == (0.5, 0.25)
    assert workspace.relaxation.mode == "drop"
    weights = {key: branch.weight for key, branch in workspace.relaxation.branches.items()}
    assert set(weights) == {"first.features", "second.features"}
    assert all(float(weight.norm().detach()) > 0.1 for weight in weights.values())
    original, _ = workspace.original()
    with workspace.relaxation.clean():
        assert torch.equal(run(workspace.model), run(original))
    assert not torch.equal(run(workspace.model), run(original))
    assert open_path(folder, mode="fold").relaxation.mode == "fold"  # type: ignore[union-attr]


def test_a_relaxed_folder_that_was_moved(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_relaxed(work)
    expected = run(open_path(folder).model)
    shutil.move(folder, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    workspace = open_path("elsewhere")
    assert torch.equal(run(workspace.model), expected)
    workspace.original()


def test_an_original_that_was_moved_or_changed(work: Path) -> None:
    folder = make_relaxed(work)
    (work / "net.pt").rename(work / "old.pt")
    with pytest.raises(CheckpointError, match="original checkpoint at .*net.pt'.*--original FILE"):
        open_path(folder).original()
    open_path(folder, OpenOptions(original=str(work / "old.pt"))).original()
    torch.save(Net().state_dict(), work / "old.pt")
    with pytest.raises(CheckpointError, match="it has changed since, give the right one"):
        open_path(folder, OpenOptions(original=str(work / "old.pt"))).original()


def test_another_original_is_refused_before_it_is_hashed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = open_path(make_relaxed(work), OpenOptions(original=str(work / "other.pt")))
    torch.save({**Net().state_dict(), "second.weight": torch.ones(1)}, work / "other.pt")
    monkeypatch.setattr(OpenFile, "sha256", lambda _: pytest.fail("it was hashed"))
    with pytest.raises(CheckpointError, match="'second.weight' in .*other.pt' is missing or of another shape"):
        workspace.original()


def test_a_task_that_is_gone_changed_or_given_again(work: Path) -> None:
    folder, task = make_relaxed(work), work / "task.py"
    text = task.read_text()
    task.write_text(text + "\nPath('RAN').touch()\n")
    with pytest.raises(TaskError, match="it has changed: check it and give `--accept-changed-task`"):
        open_path(folder)
    assert not Path("RAN").exists()
    open_path(folder, OpenOptions(accept_changed_task=True))
    assert Path("RAN").exists()
    task.unlink()
    with pytest.raises(TaskError, match="not there any more: give `--task FILE`"):
        open_path(folder)
    (work / "other.py").write_text(text)
    open_path(folder, OpenOptions(task=str(work / "other.py")))


def test_a_factory_that_a_folder_names_needs_trust_or_the_user(work: Path) -> None:
    (work / "task.py").rename(work / "nets.py")
    factory = "nets:make_net"
    folder = make_relaxed(work, options=OpenOptions(factory=factory, factory_arguments={"hidden": 2}))
    with pytest.raises(
        TrustError, match="net-relaxed' names the factory 'nets:make_net'.*--model nets:make_net.*--trust"
    ):
        open_path(folder)
    expected = run(open_path(folder, OpenOptions(factory=factory)).model)
    assert torch.equal(run(open_path(folder, OpenOptions(trust_remote_code=True)).model), expected)


@pytest.mark.parametrize("what", ["task", "group"])
def test_code_that_a_folder_names_needs_trust(work: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A folder may have come from anywhere, in an archive for example."""
    folder = make_relaxed(work)
    monkeypatch.syspath_prepend(str(work))
    (work / "their_code.py").write_text("raise SystemExit('this code was run')\n")
    config = json.loads((folder / "surgeon_config.json").read_text())
    if what == "task":
        config["task"] = {"path": "their_code:task", "sha256": None, "args": {}}
    else:
        config["plan"]["group"] = "their_code:group"
    (folder / "surgeon_config.json").write_text(json.dumps(config))
    seal_folder(folder)
    with pytest.raises(TrustError, match="names .*their_code.*, which is code: .*`--trust-remote-code`"):
        open_path(folder)
    with pytest.raises(SystemExit, match="this code was run"):
        open_path(folder, OpenOptions(trust_remote_code=True))


def test_a_whole_module_needs_trust_again(work: Path) -> None:
    torch.save(Net(), work / "net.pt")
    (work / "task.py").unlink()
    folder = make_relaxed(work, options=OpenOptions(trust_pickle=True))
    with pytest.raises(ModelNotFoundError, match="--trust-pickle` if its original net.pt is a whole pickled module"):
        open_path(folder)
    workspace = open_path(folder, OpenOptions(trust_pickle=True))
    assert isinstance(workspace.model, Net)
    assert workspace.original()[1].container == "module"
    assert run(workspace.double(workspace.model)).dtype == torch.float64
    (work / "net.pt").unlink()
    with pytest.raises(ModelNotFoundError, match="its original .* is not there"):
        open_path(folder, OpenOptions(trust_pickle=True))


CONTENTS: dict[str, Callable[[nn.Module], Any]] = {
    "state dict": lambda net: net.state_dict(),
    "nested": lambda net: {"epoch": 3, "model_state_dict": net.state_dict()},
    "wrapped": lambda net: {f"module.{key}": value for key, value in net.state_dict().items()},
    "double": lambda net: net.double().state_dict(),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_containers(work: Path, content: str) -> None:
    net = Net()
    torch.save(CONTENTS[content](net), work / "net.pt")
    workspace = open_path(make_relaxed(work))
    assert torch.equal(run(workspace.original()[0]), run(net))


@pytest.fixture(params=[widened.LARGE, 1], ids=["small", "large"])
def large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let weights of so many numbers be large, which a twin reads where they are."""
    monkeypatch.setattr(widened, "LARGE", request.param)
    return bool(request.param == 1)


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_double_twin_computes_the_same_in_float64(work: Path, relaxed: bool, large: bool) -> None:
    workspace = open_path(make_relaxed(work) if relaxed else work / "net.pt")
    twin = workspace.double(workspace.model)
    places = dict(workspace.model.named_parameters())
    assert all((weight.data_ptr() == places[name].data_ptr()) == large for name, weight in twin.named_parameters())
    own, double = run(workspace.model), run(twin)
    assert double.dtype == torch.float64
    assert torch.allclose(own.double(), double, rtol=1e-4, atol=1e-5)
    assert torch.get_default_dtype() == torch.float32
    assert next(workspace.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("relaxed", [False, True])
def test_the_twin_is_built_once_and_follows(work: Path, relaxed: bool, large: bool) -> None:
    path = make_relaxed(work) if relaxed else work / "net.pt"
    workspace = open_path(path)
    twin = workspace.double(workspace.model)
    before = run(twin)
    with torch.no_grad():
        for parameter in workspace.model.parameters():
            parameter.mul_(1.5)
    if workspace.relaxation is not None:
        workspace.relaxation.set_theta(0.75)
    assert workspace.double(workspace.model) is twin
    fresh = dataclasses.replace(workspace, twin=None).double(workspace.model)
    assert torch.equal(run(twin), run(fresh))
    assert not torch.equal(run(twin), before)
    if workspace.relaxation is not None:
        with workspace.relaxation.clean():
            clean = run(workspace.double(workspace.model))
        assert not torch.equal(clean, run(workspace.double(workspace.model)))
        other, built = workspace.double(workspace.original()[0]), run(fresh)
        assert other is twin
        assert not any("_relaxation" in name for name, _ in other.named_modules())
        fresh = dataclasses.replace(workspace, twin=None).double(workspace.original()[0])
        assert torch.equal(run(other), run(fresh))
        again = workspace.double(workspace.model)
        assert again is not other
        assert torch.equal(run(again), built)


def test_the_reference_is_built_once_and_is_no_part_of_what_is_edited(work: Path) -> None:
    workspace = open_path(make_relaxed(work))
    original, checkpoint = workspace.reference
    assert workspace.reference[0] is original
    assert workspace.original()[0] is not original
    assert checkpoint.sha256 == workspace.original()[1].sha256
    assert not {id(parameter) for parameter in original.parameters()} & {id(p) for p in workspace.model.parameters()}


def test_a_library_that_cannot_be_built_in_float64_is_cast(work: Path) -> None:
    refusing = """
class Single(Net):
    def __init__(self):
        super().__init__()
        torch.zeros(2) @ torch.zeros(2, dtype=torch.float32)

TinyTask.model = lambda self: Single()
task = TinyTask()
"""
    with open(work / "task.py", "a") as file:
        file.write(refusing)
    remember_task(work / "task.py")
    workspace = open_path(work / "net.pt")
    own = run(workspace.model)
    double = run(workspace.double(workspace.model))
    assert double.dtype == torch.float64
    assert torch.allclose(own.double(), double, rtol=1e-4, atol=1e-5)
    assert torch.equal(run(workspace.model), own)


def test_a_task_must_be_known_where_data_are_needed(work: Path) -> None:
    (work / "task.py").rename(work / "nets.py")
    workspace = open_path(work / "net.pt", OpenOptions(factory="nets:make_net"))
    with pytest.raises(TaskError, match="give `--task FILE`"):
        workspace.require_task()


@pytest.mark.parametrize("broken", ["another shape", "another name"])
def test_branches_that_do_not_fit(work: Path, broken: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_relaxed(work)
    tensors = load_file(folder / "relaxation.safetensors")
    key = next(iter(tensors))
    weight = tensors.pop(key)
    tensors[key if broken == "another shape" else key + "_b"] = weight[:1]
    save_file(tensors, folder / "relaxation.safetensors")
    with pytest.raises(CheckpointError, match="does not fit|made with another plan"):
        open_path(folder)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("penalty", {**PENALTY, "form": "x"}, "penalty.form: Invalid enum value 'x';"),
        ("schedule", {**TRIANGLE, "x": 1}, "schedule.x: unknown;"),
        ("schedule", {**TRIANGLE, "name": "x"}, "schedule: expected a schedule among .* got 'x';"),
    ],
)
def test_settings_that_nobody_wrote(work: Path, part: str, value: dict[str, Any], words: str) -> None:
    path = make_relaxed(work) / "surgeon_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), part: value}))
    seal_folder(path.parent)
    with pytest.raises(CheckpointError, match=words):
        open_path(path.parent)


def test_a_folder_made_from_a_folder_keeps_the_first_base(work: Path) -> None:
    workspace: Workspace = open_path(make_relaxed(work))
    assert workspace.relaxation is not None
    assert workspace.files is not None
    config = relaxed_config(workspace, workspace.relaxation, penalty={**PENALTY, "lambda": 0.1}, step=7)
    assert dataclasses.replace(config, step=0, penalty=workspace.files.config.penalty) == dataclasses.replace(
        workspace.files.config
    )
