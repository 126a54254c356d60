"""Task files and their optional members."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon.files.content import sha256_of_file
from surgeon.opening.task_calls import can_act, primary_metric, task_batches, task_forward, task_loss, task_metrics
from surgeon.opening.tasks import load_task, planning_batches

CLASS = """
import torch
class T:
    def __init__(self, width=2):
        self.width = width
    def batches(self, split, seed):
        return [torch.ones(self.width)]
    def loss(self, outputs, batch):
        return outputs.mean()
"""


def write(folder: Path, text: str, name: str = "task.py") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_file_with_an_object(tmp_path: Path) -> None:
    path = write(tmp_path, CLASS + "task = T()\n")
    loaded = load_task(path)
    assert loaded.path == path
    assert loaded.sha256 == sha256_of_file(path)
    assert torch.equal(next(task_batches(loaded.task, "train", 0)), torch.ones(2))
    assert load_task(str(path)).sha256 == loaded.sha256


def test_a_file_with_a_function_and_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, CLASS + "def make_task(width=3):\n    return T(width)\n")
    assert next(task_batches(load_task(path).task, "train", 0)).shape == (3,)
    loaded = load_task(path, {"width": 5})
    assert next(task_batches(loaded.task, "train", 0)).shape == (5,)
    assert loaded.arguments == {"width": 5}


def test_neighbours_are_importable_also_inside_make_task(tmp_path: Path) -> None:
    write(tmp_path, "WIDTH = 4\n", "neighbour_of_task_a.py")
    write(tmp_path, "WIDTH = 1\n", "neighbour_of_task_b.py")
    text = "import neighbour_of_task_a\n" + CLASS
    text += "def make_task():\n    import neighbour_of_task_b as b\n    return T(neighbour_of_task_a.WIDTH + b.WIDTH)\n"
    before = list(sys.path)
    loaded = load_task(write(tmp_path, text))
    assert next(task_batches(loaded.task, "test", 0)).shape == (5,)
    assert sys.path == before


def test_two_files_of_one_name_do_not_meet(tmp_path: Path) -> None:
    loaded = []
    for width in (2, 3):
        (tmp_path / str(width)).mkdir()
        loaded.append(load_task(write(tmp_path / str(width), CLASS + f"task = T({width})\n")))
    assert type(loaded[0].task).__module__ != type(loaded[1].task).__module__
    assert next(task_batches(loaded[0].task, "train", 0)).shape == (2,)


def test_module_and_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, CLASS + "ready = T()\n", "user_task_module_c.py")
    monkeypatch.chdir(tmp_path)
    assert load_task("user_task_module_c:ready").path is None
    made = load_task("user_task_module_c:T", {"width": 6})
    assert next(task_batches(made.task, "train", 0)).shape == (6,)
    assert made.sha256 == sha256_of_file(path)
    with pytest.raises(TaskError, match="takes no arguments, got width"):
        load_task("user_task_module_c:ready", {"width": 1})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", "to define `task` or `make_task`, found x"),
        ("import torch\nraise ValueError('bad')\n", "failed at line 2 with ValueError: bad"),
        ("import torch\ntask = (\n", "failed at line 2 with SyntaxError"),
        ("import no_such_thing_y\n", "failed at line 1 with ModuleNotFoundError"),
        ("import sys\nsys.exit(0)\n", "failed at line 2 with SystemExit"),
        (CLASS + "task = T\n", r"got the class T: write T\(\)"),
        ("class T:\n    def loss(self, o, b): ...\ntask = T()\n", "but batches is missing: T has loss"),
        ("task = object()\n", "batches and loss are missing"),
        (
            CLASS + "def make_task():\n    raise OSError('no data')\n",
            "make_task of .* failed at line .* OSError: no data",
        ),
        (CLASS + "def make_task(root):\n    return T()\n", "missing a required argument: 'root'.*it accepts root"),
    ],
)
def test_a_bad_file_says_what_and_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        load_task(write(tmp_path, text))


def test_bad_arguments(tmp_path: Path) -> None:
    path = write(tmp_path, CLASS + "def make_task(width=3):\n    return T(width)\n")
    with pytest.raises(TaskError, match="it accepts width=3"):
        load_task(path, {"widht": 1})
    with pytest.raises(TaskError, match="takes no arguments, got width"):
        load_task(write(tmp_path, CLASS + "task = T()\n", "other.py"), {"width": 1})


def test_data_for_no_adapter_names_those_with_a_task() -> None:
    with pytest.raises(TaskError, match=r"no ready task 'segn', .* there is segnn"):
        load_task("segn:particles.npy")


def test_a_missing_file_names_the_near_ones(tmp_path: Path) -> None:
    write(tmp_path, "", "task.py")
    with pytest.raises(TaskError, match="its folder holds task.py; `surgeon init CKPT` writes a first one"):
        load_task(tmp_path / "taks.py")
    with pytest.raises(TaskError, match="there is no task file"):
        load_task("nothing_here")


def test_a_failed_file_leaves_no_module(tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(TaskError):
        load_task(write(tmp_path, "1/0\n"))
    assert not {name for name in set(sys.modules) - before if name.startswith("surgeon_task_")}


class Minimal:
    """Only what is required."""

    def batches(self, split: str, seed: int) -> Iterable[Any]:
        return iter([torch.full((2,), float(seed))] if split == "train" else [])

    def loss(self, outputs: Any, batch: Any) -> Any:
        return outputs.mean()


class Complete(Minimal):
    primary_metric = "mae"
    primary_direction = "max"

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return model(batch) + 1

    def metrics(self, outputs: Tensor, batch: Any) -> dict[str, Any]:
        return {"mae": (outputs.abs().sum(), outputs.numel())}

    def act(self, g: Tensor, batch: Any) -> Any:
        return batch

    def act_output(self, g: Tensor, outputs: Any) -> Any:
        return outputs


def test_defaults() -> None:
    task, x = Minimal(), torch.tensor([1.0, 3.0])
    assert torch.equal(task_forward(task, nn.Identity(), x), x)
    assert task_metrics(task, x, x) == {"loss": (2.0, 1.0)}
    assert primary_metric(task) == ("loss", "min")
    assert not can_act(task)


def test_own_members() -> None:
    task, x = Complete(), torch.tensor([1.0, 3.0], requires_grad=True)
    assert torch.equal(task_forward(task, nn.Identity(), x), x + 1)
    assert task_metrics(task, x, x) == {"mae": (4.0, 2.0), "loss": (2.0, 1.0)}
    assert primary_metric(task) == ("mae", "max")
    assert can_act(task)


def test_batches_come_in_full_and_the_split_matters() -> None:
    assert [float(b[0]) for b in task_batches(Minimal(), "train", 3)] == [3.0]
    with pytest.raises(TaskError, match="no batch in the split 'test'"):
        task_batches(Minimal(), "test", 0)
    with pytest.raises(TaskError, match="one of train, validation, test, got 'dev'"):
        task_batches(Minimal(), "dev", 0)  # type: ignore[arg-type]


def test_the_task_may_say_on_what_ops_are_looked_for(tmp_path: Path) -> None:
    text = "class Task:\n    def batches(self, split, seed): return iter([1, 2, 3] if split == 'validation' else [])\n"
    text += "    def loss(self, outputs, batch): return 0\n"
    (tmp_path / "plain.py").write_text(text + "task = Task()\n")
    (tmp_path / "own.py").write_text(text + "    def sample(self): return 7\ntask = Task()\n")
    assert planning_batches(load_task(str(tmp_path / "plain.py")), 1) == (1, [2])
    assert planning_batches(load_task(str(tmp_path / "own.py")), 1) == (7, [1])
    (tmp_path / "other.py").write_text(text + "    def sample(self, count): return count\ntask = Task()\n")
    with pytest.raises(TaskError, match=r"sample\(\) failed .*'count'.* without arguments"):
        planning_batches(load_task(str(tmp_path / "other.py")), 1)


@pytest.mark.parametrize("returned", [None, 3])
def test_batches_that_are_not_iterable(returned: Any) -> None:
    task = Minimal()
    task.batches = lambda split, seed: returned  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="something to iterate over"):
        task_batches(task, "train", 0)


@pytest.mark.parametrize("returned", [1.0, None, torch.ones(2), torch.ones((), dtype=torch.long)])
def test_a_loss_that_is_no_floating_scalar(returned: Any) -> None:
    task = Minimal()
    task.loss = lambda outputs, batch: returned  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="expected the task's loss to return"):
        task_loss(task, torch.ones(1), None)


def test_a_loss_of_one_element_becomes_a_scalar_that_carries_gradients() -> None:
    task, x = Minimal(), torch.ones(1, requires_grad=True)
    task.loss = lambda outputs, batch: outputs * 2  # type: ignore[method-assign]
    loss = task_loss(task, x, None)
    assert loss.shape == ()
    loss.backward()
    assert x.grad is not None
    assert float(x.grad) == 2.0


@pytest.mark.parametrize("returned", [3.0, {"m": 1.0}, {"m": (1.0,)}, {"m": (torch.ones(2), 1)}, {"m": (1.0, -1)}])
def test_metrics_that_are_no_pairs(returned: Any) -> None:
    task = Complete()
    task.metrics = lambda outputs, batch: returned  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="expected"):
        task_metrics(task, torch.ones(1), None)


def test_a_bad_direction() -> None:
    task = Complete()
    task.primary_direction = "down"
    with pytest.raises(TaskError, match="'min' or 'max', got 'mae' and 'down'"):
        primary_metric(task)


class Bound:
    """A task for models of one width."""

    def __init__(self, data: Path, width: int = 0) -> None:
        self.data, self.width = data, width

    def for_model(self, model: nn.Module) -> Bound:
        return Bound(self.data, sum(1 for _ in model.parameters()))

    def batches(self, split: str, seed: int) -> list[torch.Tensor]:
        return [torch.zeros(self.width)]

    def loss(self, outputs: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        return outputs.sum()


class Offering:
    def task(self, data: Path, arguments: dict[str, int]) -> Bound:
        return Bound(data, **arguments)


def test_an_adapters_task_is_named_with_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"mine": Offering()}
    monkeypatch.setattr("surgeon.opening.tasks.adapter_with_task", found.get)
    data = tmp_path / "frames.xyz"
    data.write_text("1\n")
    monkeypatch.chdir(tmp_path)
    loaded = load_task("mine:frames.xyz", {"width": 4})
    assert (loaded.data, loaded.path, loaded.spec) == (data, None, f"mine:{data}")
    assert loaded.sha256 == hashlib.sha256(b"1\n").hexdigest()
    assert next(task_batches(loaded.task, "train", 0)).shape == (4,)
    bound = loaded.for_model(nn.Linear(2, 2))
    assert next(task_batches(bound.task, "train", 0)).shape == (2,)
    with pytest.raises(TaskError, match=r"no data file .*frames.xy' for the task of mine.*holds .*`--task mine:FILE`"):
        load_task("mine:frames.xy")
    with pytest.raises(TaskError, match="no ready task 'other'"):
        load_task("other:frames.xyz")


def test_most_tasks_do_not_depend_on_the_model(tmp_path: Path) -> None:
    loaded = load_task(write(tmp_path, CLASS + "task = T(3)\n"))
    assert loaded.for_model(nn.Linear(1, 1)) is loaded
