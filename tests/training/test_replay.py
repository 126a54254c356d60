"""Replay holds the model to the original's outputs on other inputs, which depend on seed and number alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import TaskError, UsageError
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.task_calls import task_batches
from surgeon.training.arms import arm_named
from surgeon.training.batches import Sharing
from surgeon.training.engine import Finetuner
from surgeon.training.replay import Replay, Teacher, teacher_of
from surgeon.training.settings import FinetuneSettings
from tests.tiny import Net, TinyTask

SETTINGS = FinetuneSettings(epochs=6, learning_rate=3e-2, replay_weight=10.0)
CPU = torch.device("cpu")
FAR = """
from tests.training.test_replay import Far

task = Far(batches=2)
"""


class Far(TinyTask):
    """The same kind of inputs elsewhere, without labels."""

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(split, seed):
            yield {"scalars": batch["scalars"] + 2, "vectors": 3 * batch["vectors"].roll(1, 0)}


@pytest.fixture
def far(tmp_path: Path) -> str:
    (tmp_path / "far.py").write_text(FAR)
    return str(tmp_path / "far.py")


def started(settings: FinetuneSettings) -> tuple[nn.Module, Teacher | None]:
    torch.manual_seed(0)
    net = Net()
    return net, teacher_of(settings, lambda: copy.deepcopy(net), TinyTask())


def forgotten(settings: FinetuneSettings, inputs: Iterator[Any]) -> tuple[float, Any]:
    """Return how far outputs on inputs are from the original's after a training, root mean square, and its history."""
    net, teacher = started(settings)
    original = copy.deepcopy(net)
    run = Finetuner(net, TinyTask(), settings, arm_named("plain"), teacher=teacher)
    result = run.run()
    batches = list(inputs)
    pairs = zip(*(outputs_on(model, TinyTask(), batches) for model in (net, original)), strict=True)
    return float(torch.stack([(a - b).square().mean() for a, b in pairs]).mean().sqrt()), result.history


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_less_is_forgotten_where_it_is_replayed(far: str, seed: int) -> None:
    plain = dataclasses.replace(SETTINGS, seed=seed)
    without, history = forgotten(plain, Far().batches("test", 0))
    assert "replay" not in history[-1]
    on_other, told = forgotten(dataclasses.replace(plain, replay=far), Far().batches("test", 0))
    assert on_other < 0.5 * without
    assert min(entry["validation"]["mse"] for entry in told[1:]) < told[0]["validation"]["mse"]
    assert told[0]["replay"] is None
    assert all(0 < entry["replay"] < without**2 for entry in told[1:])
    near, _ = forgotten(plain, TinyTask().batches("test", 0))
    on_noise, _ = forgotten(dataclasses.replace(plain, replay="perturb"), TinyTask().batches("test", 0))
    assert on_noise < 0.8 * near


def test_noise_is_on_inputs_alone_and_depends_on_the_number() -> None:
    settings = dataclasses.replace(SETTINGS, replay="perturb")
    _, teacher = started(settings)
    assert teacher is not None
    replay, other = Replay(teacher, settings, CPU), Replay(teacher, settings, CPU)
    assert "noise, 0.05 of its spread, on scalars, vectors;" in replay.sentence
    batch = next(task_batches(TinyTask(), "train", 0))
    first, second = replay.inputs(batch, 0), replay.inputs(batch, 1)
    assert first["target"] is batch["target"]
    assert not torch.equal(first["vectors"], second["vectors"])
    assert torch.equal(other.inputs(batch, 1)["vectors"], second["vectors"])
    moved = (first["vectors"] - batch["vectors"]).std() / batch["vectors"].std(correction=0)
    assert 0.02 < float(moved) < 0.1  # 48 draws of 0.05


def test_a_task_says_how_its_inputs_move_and_what_labels_are() -> None:
    class Own(TinyTask):
        def perturbed(self, batch: Any, noise: Any) -> Any:
            return {**batch, "vectors": batch["vectors"] + noise(batch["vectors"])}

        def relabelled(self, batch: Any, outputs: Tensor) -> Any:
            return {**batch, "target": outputs}

        def loss(self, outputs: Tensor, batch: Any) -> Tensor:
            return (outputs - batch["target"]).abs().mean()

    settings = dataclasses.replace(SETTINGS, replay="perturb", replay_noise=0.01)
    net, _ = started(settings)
    teacher = teacher_of(settings, lambda: copy.deepcopy(net), Own())
    assert teacher is not None
    replay, batch = Replay(teacher, settings, CPU), next(task_batches(TinyTask(), "train", 0))
    assert "moved by 0.01 as the task says" in replay.sentence
    inputs = replay.inputs(batch, 0)
    assert inputs["scalars"] is batch["scalars"]
    assert replay.distance(net, inputs).item() == 0.0
    other = Net()
    expected = (other(inputs["scalars"], inputs["vectors"]) - net(inputs["scalars"], inputs["vectors"])).abs().mean()
    assert torch.allclose(replay.distance(other, inputs), expected)


@pytest.mark.parametrize("processes", [1, 2])
def test_other_data_go_round_whatever_the_number_of_processes(far: str, processes: int) -> None:
    settings = dataclasses.replace(SETTINGS, replay=far, replay_share=0.5)
    _, teacher = started(settings)
    assert teacher is not None
    passes = [batch["scalars"] for number in range(3) for batch in teacher.task.batches("train", number)]
    found = {}
    for process in range(processes):
        sharing, replay = Sharing(4 // processes, processes, process), Replay(teacher, settings, CPU)
        for step in range(3):
            for own in range(sharing.accumulate):
                number = sharing.number(step, own)
                inputs = replay.inputs(None, number)
                if inputs is not None:
                    found[number] = inputs["scalars"]
    assert sorted(found) == [1, 3, 5, 7, 9, 11]
    assert all(torch.equal(found[number], scalars) for number, scalars in zip(sorted(found), passes, strict=True))


def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    class Codes(TinyTask):
        def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
            for batch in super().batches(split, seed):
                yield {**batch, "scalars": torch.ones(8, 2), "vectors": torch.zeros(8, 2, 3)}

    settings = dataclasses.replace(SETTINGS, replay="perturb")
    net, _ = started(settings)
    teacher = teacher_of(settings, lambda: copy.deepcopy(net), Codes())
    assert teacher is not None
    with pytest.raises(TaskError, match=r"give the task a method perturbed\(batch, noise\)"):
        Replay(teacher, settings, CPU)
    with pytest.raises(TaskError, match="there is no task file"):
        teacher_of(dataclasses.replace(settings, replay=str(tmp_path / "no.py")), Net, TinyTask())
    with pytest.raises(UsageError, match="replay_share of at most 1"):
        FinetuneSettings(replay_share=1.5)
