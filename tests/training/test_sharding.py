"""Weights sharded by FSDP over two processes (gloo) against one process that accumulates; and what is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.errors import TrainingError
from surgeon.files.reading import open_checkpoint
from surgeon.opening.evaluation import evaluate, metric_sums
from surgeon.opening.open import open_path
from surgeon.opening.tasks import load_task
from surgeon.support.sharding import is_sharded, load_whole_state, own_part, sharded_like, whole, whole_state
from surgeon.training.accelerator import make_accelerator, shards
from surgeon.training.arms import arm_named
from surgeon.training.engine import Finetuner
from surgeon.training.runs import read_record
from surgeon.training.settings import FinetuneSettings
from tests.commands import Surgeon
from tests.processes import forked
from tests.tiny import Net, TinyTask

EXACT = 1e-5
ONE_UNIT_PER_LAYER = {"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP", "FSDP_MIN_NUM_PARAMS": "1"}
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture
def surgeon(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> Surgeon:
    """The command in this process, in a folder with a relaxed network, of low rank where nothing is re-folded."""
    command = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys)
    form = ["--dense"] if "refold" in request.node.name else []
    command.once("relax", "net.pt", "--group", "O3", "--task", "task.py", "--init-scale", "0.3", *form)
    return command


COMMAND = ("finetune", "net-relaxed", "--task", "task.py", "--json")


def launch(work: Path, *arguments: str, **sharding: str) -> subprocess.CompletedProcess[str]:
    """Fine-tune in two processes that shard the weights."""
    environment = {"ACCELERATE_USE_CPU": "true", **FSDP, **sharding}
    return forked(work, *COMMAND, *arguments, program="tests.training.fsdp", environment=environment, count=2)


def sharded(work: Path, *arguments: str, **sharding: str) -> None:
    done = launch(work, *arguments, **sharding)
    assert done.returncode == 0, done.stderr


def tensors_of(run_folder: Path) -> dict[str, Tensor]:
    """Return everything a run has written: weights, optimiser, average, gradients of the penalty, best weights."""
    found: dict[str, Tensor] = {}
    for name in ("training_state/state.safetensors", "model.safetensors", "relaxation.safetensors"):
        for key, value in open_checkpoint(run_folder / name).tensors.items():
            if not key.startswith("random."):
                found[f"{name}:{key}"] = value.double()
    return found


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[key] - other[key]).abs().max()) for key in one if one[key].numel())


def records(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "records.jsonl").read_text().splitlines()]


COMMON = ("--epochs", "2", "--lr", "1e-2", "--task-args", '{"batches": 8}')
CASES: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "drop": ({}, ("--arm", "drop", "--lambda", "0.5", "--exact-penalty", "--clip", "0.5")),
    "rows, a unit per layer": (
        ONE_UNIT_PER_LAYER,
        ("--arm", "drop", "--lambda", "0.5", "--exact-penalty", "--penalty-form", "rows"),
    ),
    "refold with an average": (ONE_UNIT_PER_LAYER, ("--arm", "refold", "--refold-every", "2", "--ema", "0.9")),
    "fold": ({}, ("--arm", "fold", "--ema", "0.9", "--normalisation", "block", "--lambda", "0.1")),
    "ace": ({}, ("--arm", "ace", "--lambda", "0.3")),
    "frozen": (ONE_UNIT_PER_LAYER, ("--arm", "fold", "--freeze-base", "--optimizer", "sgd")),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_sharded_weights_train_as_one(surgeon: Surgeon, case: str) -> None:
    sharding, options = CASES[case]
    work, command = surgeon.path, (*COMMAND, *COMMON, *options)
    sharded(work, *COMMON, *options, "-o", "two", "--accumulate", "2", **sharding)
    surgeon(*command, "-o", "one", "--accumulate", "4")
    surgeon(*command, "-o", "other", "--accumulate", "2")
    two, one, other = (tensors_of(work / name) for name in ("two", "one", "other"))
    assert difference(two, one) < EXACT
    shared = two.keys() & other.keys()
    assert difference({key: two[key] for key in shared}, {key: other[key] for key in shared}) > 10 * EXACT
    for left, right in zip(records(work / "two"), records(work / "one"), strict=True):
        for name in ("loss", "penalty", "validation", "validation_relaxed"):
            assert left[name] == (right[name] if left[name] is None else pytest.approx(right[name], rel=EXACT)), name
    weights = open_checkpoint(work / "two" / "model.safetensors").tensors
    assert {key: value.shape for key, value in weights.items()} == {k: v.shape for k, v in Net().state_dict().items()}


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_bit_and_is_stripped(surgeon: Surgeon) -> None:
    """Five batches: the last one of validation has no partner, and the last one of training is left out."""
    work = surgeon.path
    options = ["--epochs", "3", "--lr", "1e-2", "--arm", "fold", "--save-every", "1", "--ema", "0.9", "--lambda", "0.1"]
    options += ["--task-args", '{"batches": 5, "trouble": "KILL", "at": 4}', "--penalty-form", "rows"]
    assert launch(work, *options, **ONE_UNIT_PER_LAYER).returncode != 0
    state = read_record(work / "net-run").state
    assert (state.step, state.epoch_step) == (3, 1)
    sharded(work, *options, **ONE_UNIT_PER_LAYER)
    sharded(work, *options, "-o", "whole", **ONE_UNIT_PER_LAYER)
    assert difference(tensors_of(work / "net-run"), tensors_of(work / "whole")) == 0
    assert [entry["step"] for entry in records(work / "net-run")] == [0, 2, 4, 6]
    assert "the recorded graph is the original's" in surgeon("strip", "net-run").out


WITH_STATISTICS = """

from e3nn.nn import BatchNorm


class Normalised(Net):
    def __init__(self, hidden=2):
        super().__init__(hidden)
        self.norm = BatchNorm("2x0e+2x1o")

    def forward(self, scalars, vectors):
        x = self.norm(torch.cat([scalars, vectors.flatten(1)], 1))
        return super().forward(x[:, :2], x[:, 2:].unflatten(1, (2, 3)))


class Task(TinyTask):
    def model(self):
        return Normalised()


task = Task(batches=6)
"""


DENSE = """

class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(2, 4, bias=False), nn.Linear(4, 1, bias=False)

    def forward(self, scalars, vectors):
        x = self.first(vectors.transpose(1, 2))
        return self.second(x * torch.tanh(x.square().sum(1, keepdim=True))).squeeze(-1)


class Task(TinyTask):
    def model(self):
        return Dense()


task = Task(batches=8)
"""
FORCES = """

class Potential(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = o3.Linear("2x1o", "4x1o"), o3.Linear("4x1o", "4x1o")

    def forward(self, scalars, vectors):
        with torch.enable_grad():
            vectors = vectors.detach().requires_grad_()
            x = self.first(vectors.flatten(1)).unflatten(1, (4, 3))
            x = x * torch.tanh(x.square().sum(2, keepdim=True))
            energy = torch.tanh(self.second(x.flatten(1)).unflatten(1, (4, 3)).square().sum(2)).sum()
            (forces,) = torch.autograd.grad(energy, vectors, create_graph=True)
        return forces[:, 0]


class Task(TinyTask):
    def model(self):
        return Potential()


task = Task(batches=8)
"""


def with_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str
) -> Surgeon:
    """Relax another network, whose task is written at the end of the file."""
    work = Surgeon.folder(folder, monkeypatch)
    (work / "task.py").write_text((work / "task.py").read_text() + code)
    torch.manual_seed(0)
    torch.save(load_task(work / "task.py").task.model().state_dict(), "net.pt")  # type: ignore[attr-defined]
    surgeon = Surgeon(work, capsys)
    surgeon("relax", "net.pt", "--group", "SO3", "--task", "task.py", "--dense", "--init-scale", "0.3")
    return surgeon


OTHERS: dict[str, tuple[str, dict[str, str], tuple[str, ...], float]] = {
    "layers merged with their branches": (DENSE, {}, (), EXACT),
    "the same in half precision": (DENSE, {}, ("--precision", "bf16"), 1e-2),
    "forces inside": (FORCES, ONE_UNIT_PER_LAYER, (), EXACT),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_other_networks_train_as_in_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    code, sharding, options, tolerance = OTHERS[case]
    surgeon = with_network(tmp_path, monkeypatch, capsys, code)
    common = ["--epochs", "2", "--lr", "1e-2", "--lambda", "0.1", *options]
    sharded(surgeon.path, *common, "-o", "two", **sharding)
    command = (*COMMAND, *common)
    surgeon(*command, "-o", "one", "--accumulate", "2")
    surgeon(*command, "-o", "other")
    two, one, other = (records(surgeon.path / name)[-1] for name in ("two", "one", "other"))
    for name in ("loss", "penalty", "validation"):
        assert two[name] == pytest.approx(one[name], rel=tolerance)
    assert two["loss"] != pytest.approx(other["loss"], rel=2 * tolerance)


CALLS_A_LAYER = """

class Task(TinyTask):
    def forward(self, model, batch):
        return model.second(model.first(torch.cat([batch["scalars"], batch["vectors"].flatten(1)], 1))[:, 2:])


task = Task(batches=6)
"""


@pytest.mark.slow
def test_a_task_that_goes_around_the_forward_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    surgeon = with_network(tmp_path, monkeypatch, capsys, CALLS_A_LAYER)
    done = launch(surgeon.path, "--epochs", "1")
    assert done.returncode != 0
    assert "inside their unit's own forward, but a training step used them elsewhere: let the task call" in done.stderr
    sharded(surgeon.path, "--epochs", "1", **ONE_UNIT_PER_LAYER)


@pytest.mark.slow
def test_every_process_evaluates_with_the_statistics_that_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each process gathers those of its own batches; the file holds those of the first one."""
    work = with_network(tmp_path, monkeypatch, capsys, WITH_STATISTICS).path
    sharded(work, "--epochs", "3", "--lr", "1e-2", "--recalibrate", "0")
    state = read_record(work / "net-run").state
    assert state.best_epoch > 0
    workspace = open_path("net-run")
    assert workspace.relaxation is not None
    with workspace.relaxation.clean():
        alone = evaluate(workspace.model, workspace.require_task().task, "validation")
    assert alone == pytest.approx(state.best_validation, rel=EXACT)
    workspace.model.norm.running_var.mul_(1.1)  # type: ignore[union-attr, operator]
    with workspace.relaxation.clean():
        other = evaluate(workspace.model, workspace.require_task().task, "validation")
    assert other != pytest.approx(state.best_validation, rel=1e-3)


def test_all_processes_of_a_share_run_the_model_equally_often() -> None:
    """The parts of sharded weights are put together in its forward, by all of them."""
    net, task, calls, sums = Net(), TinyTask(batches=5), [], []
    net.register_forward_hook(lambda *_: calls.append(number))
    for number in range(3):
        sums.append(metric_sums(net, task, "validation", (number, 3)))
    assert [calls.count(number) for number in range(3)] == [2, 2, 2]
    assert sum(part["mse"][1] for part in sums) == 5 * 8 * 3
    whole_split = evaluate(net, task, "validation")
    assert evaluate(net, task, "validation", (0, 3), lambda _: sums) == pytest.approx(whole_split)


def test_whole_tensors_pass_through() -> None:
    net = Net()
    weight = net.first.weight
    assert not is_sharded(weight)
    assert whole(weight) is weight
    assert own_part(weight).data_ptr() == weight.data_ptr()
    assert torch.equal(sharded_like(torch.ones(3), weight), torch.ones(3))
    state = whole_state(net)
    assert state.keys() == net.state_dict().keys()
    with torch.no_grad():
        weight.add_(1)
    assert not torch.equal(state["first.weight"], weight)
    load_whole_state(net, state)
    assert torch.equal(state["first.weight"], weight)
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_whole_state(net, {**state, "first.weight": torch.ones(3)})


def start() -> Finetuner:
    return Finetuner(Net(), TinyTask(), FinetuneSettings(epochs=1), arm_named("plain"), None)


def test_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(
        TrainingError, match="by DDP or FSDP, but accelerate is configured for DeepSpeed, .*: launch with"
    ):
        start()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    start()


@pytest.mark.slow
def test_sharding_that_accelerate_would_ignore_is_refused(surgeon: Surgeon) -> None:
    done = forked(surgeon.path, *COMMAND, environment={"ACCELERATE_USE_CPU": "true", **FSDP}, count=2)
    assert done.returncode != 0
    assert "FSDP version 2 on accelerators, but accelerate does not shard on the device 'cpu'" in done.stderr
    assert not (surgeon.path / "net-run").exists()


class Offloading:
    """Named like torch's policy."""


Offloading.__name__ = "CPUOffloadPolicy"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"fsdp_version": 1}, "this is FSDP version 1: launch with --fsdp_version 2"),
    "offloading": ({"cpu_offload": Offloading()}, "weights are to be offloaded to the CPU"),
    "checkpointing": ({"activation_checkpointing": True}, "modules are to be wrapped for activation checkpointing"),
    "ignored": ({"ignored_modules": "first.*"}, "modules are to be ignored: leave fsdp_ignored_modules out"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_ways_of_sharding_that_are_refused(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's state stands as on GPUs."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    settings, words = REFUSED[what]
    supported = {"fsdp_version": 2, "cpu_offload": None, "ignored_modules": None, "activation_checkpointing": False}
    plugin = SimpleNamespace(**{**supported, **settings})
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)
    with pytest.raises(TrainingError, match=f"by FSDP version 2 on accelerators, but {words}"):
        start()
    vars(plugin).update(supported)
    assert shards(make_accelerator("no"))
