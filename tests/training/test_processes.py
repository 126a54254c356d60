"""Two processes (gloo) against one process that accumulates: equal losses, penalties and weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.algebra.penalty_settings import PenaltyForm
from surgeon.errors import TaskError
from surgeon.files.reading import open_checkpoint
from surgeon.support.trees import equal
from surgeon.training.batches import Sharing, training_steps
from tests.commands import Surgeon, torchrun
from tests.processes import forked
from tests.tiny import TinyTask
from tests.training import heads, shuffled
from tests.training.heads import penalties, relaxed, steps

CPU = {"ACCELERATE_USE_CPU": "true"}


def test_a_step_takes_the_same_batches_whatever_the_number_of_processes() -> None:
    task = TinyTask(batches=7)
    one = [len(step) for step in training_steps(task, Sharing(accumulate=2), seed=5)]
    assert one == [2, 2, 2, 1]
    assert Sharing(accumulate=2).steps(7) == 4
    shared = [list(training_steps(task, Sharing(1, 2, process), seed=5)) for process in (0, 1)]
    assert [len(step) for step in shared[0]] == [len(step) for step in shared[1]] == [1, 1, 1]  # the seventh is left
    assert Sharing(1, 2).steps(7) == 3
    whole = list(training_steps(task, Sharing(accumulate=2), seed=5))
    for number in range(3):
        for process in (0, 1):
            assert torch.equal(shared[process][number][0]["vectors"], whole[number][process]["vectors"])
    rest = list(training_steps(task, Sharing(accumulate=2), seed=5, done=2))
    assert torch.equal(rest[0][0]["vectors"], whole[2][0]["vectors"])


def test_fewer_batches_than_processes_are_refused() -> None:
    with pytest.raises(TaskError, match="at least one training batch for each of 4 processes, got 3"):
        Sharing(1, 4).steps(3)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return Surgeon.folder(tmp_path, monkeypatch)


@pytest.fixture
def surgeon(work: Path, capsys: pytest.CaptureFixture[str]) -> Surgeon:
    return Surgeon(work, capsys)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def last_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = open_checkpoint(folder / "training_state" / "state.safetensors").tensors
    return {key: value for key, value in tensors.items() if key.startswith("model.")}


@pytest.mark.parametrize(("form", "every"), [("gram", 1), ("rows", 1), ("gram", 3)])
def test_processes_that_see_different_heads_agree_on_the_penalty_of_one_process(
    tmp_path: Path, form: PenaltyForm, every: int
) -> None:
    done = forked(tmp_path, form, str(every), program="tests.training.heads", count=2)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = penalties(relaxed(form, every), steps(3))
    assert [len(step["terms"]) for step in expected] == ([3, 3, 2] if every == 1 else [3, 3, 3])
    assert equal(one, other)
    torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-12)
    alone = penalties(relaxed(form, every), [of_step[:1] for of_step in steps(3)])
    assert not torch.allclose(alone[0]["value"], expected[0]["value"], rtol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "launch"), [("gram", torchrun), ("rows", partial(forked, count=2))])
def test_two_processes_train_as_one_with_the_same_global_batch(
    work: Path, surgeon: Any, form: str, launch: Callable[..., Any]
) -> None:
    surgeon.once("relax", "net.pt", "--group", "O3", "--task", "task.py", "--init-scale", "0.3")
    common = ["finetune", "net-relaxed", "--task-args", '{"batches": 6}', "--task", "task.py", "--epochs", "2"]
    common += ["--lr", "1e-2", "--lambda", "0.5", "--penalty-form", form, "--exact-penalty", "--json"]
    common += ["--replay", "perturb" if form == "gram" else "task.py", "--replay-share", "0.5"]
    done = launch(work, *common, "-o", "two", environment=CPU)
    assert done.returncode == 0, done.stderr
    surgeon(*common, "-o", "one", "--accumulate", "2")
    surgeon(*common, "-o", "other", "--accumulate", "3")
    two, one, other = (records(work / name) for name in ("two", "one", "other"))
    assert [entry["step"] for entry in two] == [0, 3, 6]
    for left, right in zip(two[1:], one[1:], strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["penalty"] == pytest.approx(right["penalty"], rel=1e-5)
        assert left["replay"] == pytest.approx(right["replay"], rel=1e-4)
        assert left["validation"] == pytest.approx(right["validation"], rel=1e-4)
    assert two[2]["loss"] != pytest.approx(other[2]["loss"], rel=1e-3)
    weights = [
        open_checkpoint(work / name / "training_state" / "state.safetensors").tensors
        for name in ("two", "one", "other")
    ]
    assert all(
        torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0] if key.startswith("model.")
    )
    assert not all(
        torch.allclose(weights[0][key], weights[2][key], atol=1e-4) for key in weights[0] if key.startswith("model.")
    )


def test_a_command_closes_the_group_of_its_processes(tmp_path: Path, surgeon: Surgeon) -> None:
    group = torch.distributed
    group.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        assert surgeon("--version").code == 0
        assert not group.is_initialized()  # else its threads may abort the process at exit
    finally:
        if group.is_initialized():
            group.destroy_process_group()


@pytest.mark.parametrize("order", ["torch", "numpy", "python"])
def test_processes_share_out_an_order_from_the_global_generators(tmp_path: Path, order: str) -> None:
    done = forked(tmp_path, order, program="tests.training.shuffled", count=2, environment=CPU)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for split, rounds in (("train", 2), ("validation", 3)):
        half = shuffled.SAMPLES // 2
        assert len(one[split]) == len(other[split]) == rounds * half
        orders = []
        for start in range(0, rounds * half, half):
            parts = [seen[split][start : start + half] for seen in (one, other)]
            assert sorted(sum(parts, [])) == list(range(shuffled.SAMPLES))
            orders.append(parts)
        assert (orders[0] != orders[1]) is (split == "train")  # every epoch has an order of its own


def test_a_step_without_a_loss_in_one_process_has_no_penalty_in_any(tmp_path: Path) -> None:
    done = forked(tmp_path, program="tests.training.lossless", count=2, timeout=40)
    assert done.returncode == 0, done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert equal(one, other)
    assert one[0] == 0 < one[1]


def test_an_order_that_differs_between_processes_is_refused(tmp_path: Path) -> None:
    done = forked(tmp_path, "own", program="tests.training.shuffled", count=2, environment=CPU)
    assert done.returncode == 1
    assert "expected the task's batches('validation', 0) to be the same in all processes" in done.stderr


def test_statistics_that_one_process_gathers_are_kept_in_all(tmp_path: Path) -> None:
    done = forked(tmp_path, program="tests.training.statistics_of_heads", count=2, environment=CPU)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert equal(one["seen"], other["seen"])
    for column, due in enumerate((one["due"], other["due"])):
        torch.testing.assert_close(one["seen"][:, column], due, rtol=1e-6, atol=1e-6)
    assert (one["seen"].diff(dim=0, prepend=torch.zeros(1, 3)) != 0).all()  # every layer moves at every step


@pytest.mark.slow
def test_heads_that_one_process_never_uses_are_trained_as_by_one_process(work: Path, surgeon: Any) -> None:
    shutil.copy(heads.__file__, work / "heads.py")
    torch.manual_seed(0)
    torch.save(heads.make_net().state_dict(), work / "heads.pt")
    surgeon("relax", "heads.pt", "--group", "O3", "--task", "heads.py", "--init-scale", "0.3", "-o", "relaxed")
    common = ["finetune", "relaxed", "--task", "heads.py", "--epochs", "2", "--lr", "1e-2", "--lambda", "0.5", "--json"]
    done = forked(work, *common, "-o", "two", environment=CPU, count=2)
    assert done.returncode == 0, done.stderr
    surgeon(*common, "-o", "one", "--accumulate", "2")
    for left, right in zip(records(work / "two")[1:], records(work / "one")[1:], strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)
        assert left["penalty"] == pytest.approx(right["penalty"], rel=1e-5)
    two, one = last_weights(work / "two"), last_weights(work / "one")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
