"""Runs on disk: what is saved, and that an interrupted run ends bit for bit like an uninterrupted one."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from surgeon.editing.budget import with_fitting_rank
from surgeon.editing.insert import relax
from surgeon.errors import CheckpointError, TrainingError, UsageError
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import read_relaxed, write_relaxed
from surgeon.files.seals import SEAL_FILE, seal_folder
from surgeon.finding.find import find
from surgeon.opening.description import relaxed_config
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.workspace import Workspace
from surgeon.plan import StripMode
from surgeon.training.arms import arm_named
from surgeon.training.engine import Finetuner
from surgeon.training.figures import read_figures
from surgeon.training.runs import has_run, read_record, restore_run, save_run
from surgeon.training.settings import FinetuneSettings
from tests.commands import Surgeon, files_in
from tests.processes import forked
from tests.tiny import TinyTask

SETTINGS = FinetuneSettings(epochs=4, learning_rate=1e-2, branch_factor=1.0, penalty_weight=0.05)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A relaxed folder for the tiny network, with one dense W and one of rank 2 where nothing is re-folded."""
    work = Surgeon.folder(tmp_path, monkeypatch)
    workspace = open_path(work / "net.pt", OpenOptions(task=str(work / "task.py")))
    write(workspace, work / "net-relaxed", 82 if "refold" in request.node.name else 63)
    return work / "net-relaxed"


def write(workspace: Workspace, folder: Path, parameters: int = 82) -> None:
    task = workspace.require_task().task
    batch = next(iter(task.batches("validation", 0)))
    plan = find(workspace.model, "O3", batch, forward=task.forward)  # type: ignore[attr-defined]
    relaxation = relax(workspace.model, with_fitting_rank(plan, parameters), dense=True, init_scale=0.5)
    config = relaxed_config(workspace, relaxation, penalty={"lambda": 0.01, "form": "gram", "scale": "relative"})
    write_relaxed(folder, workspace.model, config, workspace.checkpoint.metadata)


def start(
    folder: Path, arm: str = "drop", settings: FinetuneSettings = SETTINGS, task: TinyTask | None = None
) -> tuple[Workspace, Finetuner]:
    mode: StripMode = arm_named(arm).mode or "drop"
    workspace = open_path(folder, mode=mode)
    chosen = task or TinyTask()
    return workspace, Finetuner(workspace.model, chosen, settings, arm_named(arm), workspace.relaxation)


class Paired(TinyTask):
    def pairs(self, outputs: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, ...]]:
        return {"vector": (outputs, batch["target"])}


class StopError(Exception):
    pass


def stopping(workspace: Workspace, out: Path, epoch: int) -> Callable[[Finetuner], None]:
    def on_epoch(run: Finetuner) -> None:
        save_run(out, run, workspace)
        if run.state.epoch == epoch:
            raise StopError

    return on_epoch


@pytest.mark.parametrize("arm", ["drop", "fold"])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_resumed_run_ends_like_an_uninterrupted_one(folder: Path, tmp_path: Path, arm: str, epoch: int) -> None:
    workspace, whole = start(folder, arm, task=Paired())
    expected = whole.run(on_save=lambda run: save_run(tmp_path / "whole", run, workspace))
    workspace, first = start(folder, arm, task=Paired())
    with pytest.raises(StopError):
        first.run(on_save=stopping(workspace, tmp_path / "run", epoch))
    torch.manual_seed(99)
    workspace, second = start(folder, arm, task=Paired())
    restore_run(tmp_path / "run", second)
    assert second.state.epoch == epoch
    result = second.run(on_save=lambda run: save_run(tmp_path / "run", run, workspace))
    assert (result.best_epoch, result.validation, result.thetas) == (
        expected.best_epoch,
        expected.validation,
        expected.thetas,
    )
    for name in ("model.safetensors", "relaxation.safetensors", "training_state/state.safetensors"):
        left, right = (open_checkpoint(tmp_path / run / name).tensors for run in ("run", "whole"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    figures = read_figures(tmp_path / "run")
    assert figures == read_figures(tmp_path / "whole")
    for model, validation in (("original", expected.history[0]["validation"]), ("clean", expected.validation)):
        both = torch.tensor([figures.pairs[model]["vector"][name] for name in ("computed", "label")])
        assert float((both[0] - both[1]).square().mean()) == pytest.approx(validation["mse"], rel=1e-3)
    assert figures.flow is not None
    assert figures.flow.boxes == ("inputs", "first", "second", "outputs")


def test_a_task_that_stops_in_the_middle_of_an_epoch(folder: Path, tmp_path: Path) -> None:
    workspace, whole = start(folder)
    whole.run()
    workspace, first = start(folder, task=TinyTask(trouble="stop once", at=8))
    with pytest.raises(KeyboardInterrupt):
        first.run(on_save=lambda run: save_run(tmp_path / "run", run, workspace))
    _, second = start(folder)
    restore_run(tmp_path / "run", second)
    assert second.state.step == 6
    second.run()
    state = whole.plain_model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in second.plain_model.state_dict().items())


def test_randomness_in_the_model_is_resumed(folder: Path, tmp_path: Path) -> None:
    class Noisy(TinyTask):
        def forward(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            outputs: torch.Tensor = super().forward(model, batch)
            return outputs + torch.randn_like(outputs) if model.training else outputs

    workspace, whole = start(folder, task=Noisy())
    whole.run()
    workspace, first = start(folder, task=Noisy())
    with pytest.raises(StopError):
        first.run(on_save=stopping(workspace, tmp_path / "run", 2))
    _, second = start(folder, task=Noisy())
    restore_run(tmp_path / "run", second)
    second.run()
    assert [entry["loss"] for entry in second.state.history] == [entry["loss"] for entry in whole.state.history]


def test_the_run_folder_is_a_relaxed_folder_with_the_best_weights(folder: Path, tmp_path: Path) -> None:
    workspace, run = start(folder)
    before = files_in(folder)
    result = run.run(on_save=lambda finetuner: save_run(tmp_path / "run", finetuner, workspace))
    assert files_in(folder) == before
    files = read_relaxed(tmp_path / "run")
    assert files.config.theta == result.thetas["first.features"]
    assert files.config.step == 12
    assert files.config.penalty == {"lambda": 0.05, "form": "gram", "scale": "relative"}
    assert all(torch.equal(value, run.plain_model.state_dict()[key]) for key, value in files.base.items())
    lines = [json.loads(line) for line in (tmp_path / "run" / "records.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3, 4]
    assert has_run(tmp_path / "run")
    assert not has_run(folder)


def test_nothing_of_a_run_is_pickled(folder: Path, tmp_path: Path) -> None:
    workspace, run = start(folder)
    run.run(on_save=lambda finetuner: save_run(tmp_path / "run", finetuner, workspace))
    assert {Path(name).suffix for name in files_in(tmp_path / "run")} == {".json", ".jsonl", ".safetensors", ".md"}


@pytest.fixture
def run_folder(folder: Path, tmp_path: Path) -> Path:
    workspace, run = start(folder)
    with pytest.raises(StopError):
        run.run(on_save=stopping(workspace, tmp_path / "run", 1))
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("arm", "settings", "words"),
    [
        ("drop", replace(SETTINGS, epochs=5), "epochs 4 against 5"),
        ("drop", replace(SETTINGS, seed=1, clip=1.0), "clip None against 1.0; seed 0 against 1"),
        ("fold", SETTINGS, "arm 'drop' against 'fold'"),
    ],
)
def test_other_settings_are_refused_by_name(
    folder: Path, run_folder: Path, arm: str, settings: FinetuneSettings, words: str
) -> None:
    _, run = start(folder, arm, settings)
    with pytest.raises(UsageError, match=words):
        restore_run(run_folder, run)


def test_one_flipped_bit_in_any_file_is_refused_by_its_name(run_folder: Path) -> None:
    names = {path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()}
    assert {SEAL_FILE, "records.jsonl", "training_state/state.safetensors"} < names
    (run_folder / "README.md").write_text("mine")
    for name in sorted(names - {"README.md"}):
        content = (run_folder / name).read_bytes()
        (run_folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:] if content else b"x")
        with pytest.raises(CheckpointError, match=name):
            open_path(run_folder)
        (run_folder / name).write_bytes(content)
    open_path(run_folder)


def test_a_save_leaves_what_the_user_put_into_the_run_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    (out / "training_state").mkdir(parents=True)

    def save(finetuner: Finetuner) -> None:
        for name in ("notes.txt", "training_state/plot.txt"):
            (out / name).touch()
        save_run(out, finetuner, workspace)
        (out / "README.md").write_text("mine")

    workspace, run = start(folder)
    run.run(on_save=save)
    assert (out / "notes.txt").is_file()
    assert (out / "training_state" / "plot.txt").is_file()
    assert (out / "README.md").read_text() == "mine"
    assert read_record(out).state.epoch > 1


@pytest.mark.parametrize("damage", ["json", "missing field", "tensor gone", "other shape"])
def test_a_damaged_state_says_so(folder: Path, run_folder: Path, damage: str) -> None:
    from safetensors.torch import load_file, save_file

    place = run_folder / "training_state"
    record, tensors = json.loads((place / "state.json").read_text()), load_file(place / "state.safetensors")
    if damage == "missing field":
        del record["state"]["best_theta"]
    elif damage == "tensor gone":
        del tensors["random.0.torch"]
    elif damage == "other shape":
        tensors["model.first.weight"] = torch.ones(3)
    save_file(tensors, place / "state.safetensors")
    (place / "state.json").write_text("{" if damage == "json" else json.dumps(record))
    seal_folder(run_folder)
    _, run = start(folder)
    with pytest.raises(CheckpointError, match="start anew with `--force`"):
        restore_run(run_folder, run)


def test_a_non_finite_loss_leaves_the_run_of_the_epoch_before(folder: Path, tmp_path: Path) -> None:
    workspace, run = start(folder, task=TinyTask(trouble="nan", at=8))
    with pytest.raises(TrainingError, match="task loss became nan at step 8"):
        run.run(on_save=lambda finetuner: save_run(tmp_path / "run", finetuner, workspace))
    assert read_record(tmp_path / "run").state.epoch == 2
    _, second = start(folder)
    restore_run(tmp_path / "run", second)
    assert second.run().steps == 12


SHARED = """

class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net()
        self.again = self.net.first

    def forward(self, scalars, vectors):
        x = torch.cat([scalars, vectors.flatten(1)], 1)
        return self.net(scalars, vectors) + self.again(x)[:, -3:]


class SharedTask(TinyTask):
    def model(self):
        return Shared()


task = SharedTask()
"""


def test_a_shared_module_is_saved_and_resumed(folder: Path, tmp_path: Path) -> None:
    work = folder.parent
    (work / "shared.py").write_text((work / "task.py").read_text() + SHARED)
    options = OpenOptions(task=str(work / "shared.py"))
    from surgeon.opening.tasks import load_task

    model = load_task(work / "shared.py").task.model()  # type: ignore[attr-defined]
    torch.save(model.state_dict(), work / "shared.pt")
    write(open_path(work / "shared.pt", options), work / "shared-relaxed")
    workspace, run = start(work / "shared-relaxed")
    assert len(run.relaxation.branches if run.relaxation else {}) == 2
    with pytest.raises(StopError):
        run.run(on_save=stopping(workspace, tmp_path / "run", 1))
    _, second = start(work / "shared-relaxed")
    restore_run(tmp_path / "run", second)
    assert second.run().steps == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "at", "optimizer"),
    [("drop", 8, "soap"), ("fold", 10, "adamw"), ("refold", 11, "muon"), ("ace", 9, "adamw")],
    ids=["drop", "fold", "refold", "ace"],
)
def test_a_killed_process_goes_on_in_the_middle_of_an_epoch(folder: Path, arm: str, at: int, optimizer: str) -> None:
    work = folder.parent
    command = ["finetune", "net-relaxed", "--epochs", "4", "--lr", "1e-2", "--json", "--task", "task.py"]
    command += ["--arm", arm, "--save-every", "1", "--ema", "0.9", "--warmup", "2", "--refold-every", "2"]
    command += ["--optimizer", optimizer, "--beta2", "0.9"]
    trouble = ["--task-args", json.dumps({"trouble": "KILL", "at": at})]
    killed = forked(work, *command, *trouble)
    assert killed.returncode == -signal.SIGKILL
    state = read_record(work / "net-run").state
    assert (state.step, state.epoch_step) == (at - 1, (at - 1) % 3)
    resumed = forked(work, *command, *trouble)
    assert resumed.returncode == 0, resumed.stderr
    assert forked(work, *command, "-o", "whole").returncode == 0
    for name in ("model.safetensors", "relaxation.safetensors", "training_state/state.safetensors"):
        left, right = (open_checkpoint(work / run / name).tensors for run in ("net-run", "whole"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    records = [
        [json.loads(line) for line in (work / run / "records.jsonl").read_text().splitlines()]
        for run in ("net-run", "whole")
    ]
    for entries in records:
        for entry in entries:
            del entry["seconds"]
    assert records[0] == records[1]


@pytest.mark.slow
def test_a_killed_process_is_resumed_by_the_same_command(folder: Path) -> None:
    work = folder.parent
    command = ["finetune", "net-relaxed", "--epochs", "4", "--lr", "1e-2", "--json", "--task", "task.py"]
    killed = forked(work, *command, "--task-args", json.dumps({"trouble": "KILL", "at": 8}))
    assert killed.returncode == -signal.SIGKILL
    assert read_record(work / "net-run").state.epoch == 2
    assert forked(work, *command, "--task-args", json.dumps({"trouble": "KILL", "at": 8})).returncode == 0
    assert forked(work, *command, "-o", "whole").returncode == 0
    left, right = (open_checkpoint(work / name / "model.safetensors").tensors for name in ("net-run", "whole"))
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert not [path for path in work.iterdir() if path.name.startswith(".")]
