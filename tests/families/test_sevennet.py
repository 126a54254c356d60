"""SevenNet from its file to its file: files of several versions, the ready task, and what sevenn's calculator reads."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import CheckpointError, TaskError
from surgeon.export.container import write_container
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.optim import Soap
from surgeon.proof.first_task import init_task, try_task
from surgeon_adapters.sevennet.adapter import adapter
from surgeon_adapters.sevennet.models import import_sevenn
from surgeon_adapters.sevennet.task import SevenNetTask
from tests.commands import ROOT
from tests.families.frames import require_pairs
from tests.families.moved_atoms import require_work_of_the_forces
from tests.families.old_files.write_sevennet import CELL, FRAMES
from tests.families.shifted_labels import require_shift

pytest.importorskip("sevenn", reason="sevenn is not installed: make test-sevennet")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

FOLDER = Path(__file__).parent / "old_files"
FILES = sorted(FOLDER.glob("sevennet-*.pth"))
CURRENT = FOLDER / "sevennet-0.13.0.pth"
DATA = ROOT / "examples" / "molecules" / "ethanol_gfn2.xyz"
TOLERANCE = 1e-5
"""Share of the largest entry, in float32."""


@pytest.fixture(autouse=True)
def trusting_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    import_sevenn("calculator")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")


def predicted(model: Any) -> dict[str, dict[str, Tensor]]:
    """What sevenn's calculator makes of a file or a module."""
    import ase

    kind = "checkpoint" if isinstance(model, Path) else "model_instance"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calculator = import_sevenn("calculator").SevenNetCalculator(model, file_type=kind, device="cpu")
    found = {}
    for title, (numbers, positions) in FRAMES.items():
        atoms = ase.Atoms(numbers, positions, cell=[CELL] * 3, pbc=True, calculator=calculator)
        found[title] = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    return tensors(found)


def tensors(found: Any) -> dict[str, dict[str, Tensor]]:
    return {
        title: {key: torch.as_tensor(value, dtype=torch.float64) for key, value in values.items()}
        for title, values in found.items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_file_opens_predicts_what_it_did_and_goes_back(path: Path, tmp_path: Path) -> None:
    """Weights before version 0.11 are in another order: a plain strict load takes them without a word."""
    expected = tensors(json.loads(path.with_suffix(".json").read_text()))
    workspace = open_path(path)
    assert relative_difference(predicted(copy.deepcopy(workspace.model)), expected) < TOLERANCE
    with torch.no_grad():
        for parameter in workspace.model.parameters():
            parameter.mul_(1.1)
    write_container(workspace.checkpoint, workspace.model.state_dict(), tmp_path / "new.pth")
    found = predicted(tmp_path / "new.pth")
    assert relative_difference(found, predicted(workspace.model)) < TOLERANCE
    assert relative_difference(found, expected) > 10 * TOLERANCE


def test_a_plain_load_of_an_old_file_gives_other_forces() -> None:
    """The negative twin of the test above."""
    path = FOLDER / "sevennet-0.10.4.pth"
    model = open_path(path).model
    stored = torch.load(path, weights_only=True)["model_state_dict"]
    assert stored.keys() == model.state_dict().keys()
    model.load_state_dict(stored)
    expected = tensors(json.loads(path.with_suffix(".json").read_text()))
    assert relative_difference(predicted(model), expected) > 1e-2


def test_a_first_task_is_the_ready_one(tmp_path: Path) -> None:
    path, options = FOLDER / "sevennet-0.13.0.pth", OpenOptions(trust_pickle=True)
    assert init_task(path, tmp_path / "task.py", options=options).family == "sevennet"
    assert list(tmp_path.iterdir()) == []
    steps = try_task(path, options=OpenOptions(trust_pickle=True, task=f"sevennet:{DATA}"))
    assert [step.outcome for step in steps] == ["yes"] * 4, steps


def test_a_checkpoint_for_an_accelerator_is_refused(tmp_path: Path) -> None:
    content = torch.load(CURRENT, weights_only=True)
    content["config"]["use_flash_tp"] = True
    torch.save(content, tmp_path / "fast.pth")
    with pytest.raises(CheckpointError, match=r"layers are e3nn's in .*fast.pth', got one for FlashTP: train or save"):
        open_path(tmp_path / "fast.pth")


def test_settings_that_cannot_be_used_are_said(tmp_path: Path) -> None:
    content = torch.load(CURRENT, weights_only=True)
    content["config"]["interaction_type"] = "other"
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"refuses the settings of a model that sevenn .* wrote .*Unknown"):
        open_path(tmp_path / "other.pth")


def opened() -> tuple[nn.Module, SevenNetTask]:
    model = open_path(CURRENT).model
    return model, SevenNetTask(DATA, batch_size=3).for_model(model)


def test_the_task_turns_with_the_atoms() -> None:
    model, task = opened()
    batch = next(iter(task.batches("train", 0)))
    outputs = {key: value.detach() for key, value in task.forward(model, batch).items()}
    g = parse_group("SO3").sample(1, torch.Generator().manual_seed(0), 0)[0]
    with torch.no_grad():
        moved = task.forward(model, task.act(g, batch))
    assert relative_difference(moved, task.act_output(g, outputs)) < 1e-4
    assert relative_difference(moved, outputs) > 1e-2
    assert set(task.metrics(outputs, batch)) == {"energy_mae", "force_mae"}


def test_atoms_that_are_moved_change_the_energy_by_the_forces() -> None:
    model, task = opened()
    require_work_of_the_forces(task, model)


def test_training_reaches_the_weights_by_the_forces_in_either_mode() -> None:
    model, task = opened()
    batch = next(iter(task.batches("train", 0)))
    for training in (True, False):
        model.train(training).zero_grad()
        task.forward(model, batch)["forces"].square().sum().backward()
        assert model.onehot_to_feature_x.linear.weight.grad.abs().max() > 0
        assert model.force_output.training is training


def test_kinds_of_labels_that_the_model_has_not_are_refused() -> None:
    with pytest.raises(TaskError, match=r"kinds of labels as modal, of which it has none, got 'PBE': correct"):
        SevenNetTask(DATA, modal="PBE").for_model(open_path(CURRENT).model)
    with pytest.raises(TaskError, match=r"expected a SevenNet potential for the task of sevennet, got Linear"):
        SevenNetTask(DATA).for_model(nn.Linear(2, 2))


def command(*arguments: str) -> None:
    from surgeon_cli.main import main

    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 0, f"{arguments}: {out.getvalue()}"


def calculated(path: Path, data: Path) -> list[tuple[float, Any]]:
    import ase.io

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calculator = import_sevenn("calculator").SevenNetCalculator(path, file_type="checkpoint", device="cpu")
    results = []
    with torch.jit.optimized_execution(False):
        for atoms in ase.io.read(data, ":"):
            atoms.calc = calculator
            results.append((float(atoms.get_potential_energy()), atoms.get_forces()))
    return results


def test_the_program_for_the_folder_computes_what_the_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ase.io

    monkeypatch.chdir(tmp_path)
    shutil.copy(CURRENT, "new.pth")
    ase.io.write("structure.xyz", ase.io.read(DATA, "0"))
    program = adapter.usage(open_path(CURRENT).model, "new.pth")
    assert program is not None
    with torch.jit.optimized_execution(False):
        exec(program, {})  # noqa: S102
    ((energy, _),) = calculated(CURRENT, tmp_path / "structure.xyz")
    assert float(capsys.readouterr().out.split()[0]) == pytest.approx(energy, rel=1e-5)
    assert adapter.usage(nn.Linear(1, 1), "new.pth") is None


def test_shifted_labels_shift_the_energies_per_element(tmp_path: Path) -> None:
    file = FOLDER / "sevennet-0.10.4.pth"
    require_shift(file, "rescale_atomic_energy.shift", SevenNetTask, calculated, tmp_path)


@pytest.mark.slow
def test_from_an_old_file_to_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old.pth").write_bytes((FOLDER / "sevennet-0.10.4.pth").read_bytes())
    task = ("--task", f"sevennet:{DATA}", "--task-args", '{"batch_size": 8, "fraction": 0.2}')
    command("relax", "old.pth", "--group", "SO3", *task, "-o", "relaxed")
    command("finetune", "relaxed", "--epochs", "1", "--lr", "1e-2", "-o", "run")
    command("export", "run", "--container", "-o", "clean")
    clean = tmp_path / "clean"
    require_pairs(json.loads((clean / "certificate.json").read_text()), "H", "C", "O")
    model = open_path(clean / "model.safetensors", OpenOptions()).model
    assert relative_difference(predicted(clean / "old.pth"), predicted(model)) < TOLERANCE
    assert relative_difference(predicted(clean / "old.pth"), predicted(tmp_path / "old.pth")) > 10 * TOLERANCE


def test_its_own_trainer_takes_our_optimiser_with_the_matrices() -> None:
    path = ROOT / "examples" / "molecules" / "sevenn_train.py"
    spec = importlib.util.spec_from_file_location("sevenn_train_example", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model, kept = open_path(CURRENT).model, dict(script.optim_dict)
    config = {"optimizer": "soap", "optim_param": {"lr": 0.02}, "loss": "mse", "force_loss_weight": 0.1}
    config["scheduler_param"] = {"gamma": 0.9}
    try:
        script.optim_dict["soap"] = Soap
        trainer = script.trainer_of(model, {**config, "is_train_stress": False, "device": "cpu"})
    finally:
        script.optim_dict.clear()
        script.optim_dict.update(kept)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    assert trainer.optimizer.param_groups[0]["lr"] == 0.02
    assert any("basis" in key for state in trainer.optimizer.state.values() for key in state)
