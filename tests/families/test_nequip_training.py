"""NequIP's own trainer with one callback more in its configuration, from data to the potential that it loads."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.export.container import write_container
from surgeon.opening.open import open_path
from tests.families.cases import double

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("nequip", reason="nequip is not installed: make test-nequip")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "integrations" / "nequip" / "config.yaml"
STEPS = 6
"""Two epochs of twelve structures in batches of four."""
RUNS: dict[str, dict[str, Any]] = {
    "relaxed": {},
    "penalised": {"penalty_weight": 100.0},
    "unpenalised": {"penalty_weight": 0.0},
}
"""Settings of the callback. Besides, "plain" is without it, "averaged" with NequIP's average of weights, "resumed" goes
on from the first epoch of "relaxed", and "packaged" from a package of its end."""
PACKAGE = "base.nequip.zip"


def write_structures(path: Path) -> None:
    """Small clusters of copper and gold with the energies and forces of the effective-medium theory."""
    import numpy as np
    from ase import Atoms
    from ase.calculators.emt import EMT
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    draw = np.random.default_rng(0)
    corners = 1.9 * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1.5]])
    structures = []
    for _ in range(20):
        atoms = Atoms("Cu3Au2", positions=corners + draw.normal(scale=0.1, size=corners.shape))
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        structures.append(atoms)
    write(path, structures)


def configure(name: str, folder: Path) -> None:
    """Write the example's configuration with what the run changes, and a spy."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(EXAMPLE)
    config.data_file, config.epochs = str(folder.parent / "structures.xyz"), 2
    config.data.train_dataloader.shuffle = False  # NequIP does not resume the order of batches
    config.trainer.accelerator, config.trainer.enable_progress_bar = "cpu", False
    if name == "plain":
        del config.trainer.callbacks[0]
    else:
        config.trainer.callbacks[0].update(RUNS.get(name, {}))
    config.trainer.callbacks.append({"_target_": "tests.families.nequip_spy.Spy", "path": str(folder / "spy.pt")})
    every_epoch = {"dirpath": str(folder), "filename": "after-{epoch}", "save_top_k": -1}
    config.trainer.callbacks.append({"_target_": "lightning.pytorch.callbacks.ModelCheckpoint", **every_epoch})
    if name == "resumed":
        config.ckpt_path = str(folder.parent / "relaxed" / "after-epoch=0.ckpt")
    if name == "packaged":
        source = {"package_path": str(folder.parent / "relaxed" / PACKAGE), "compile_mode": "eager"}
        config.training_module.model = {"_target_": "nequip.model.ModelFromPackage", **source}
    if name != "averaged":
        config.training_module._target_ = "nequip.train.NequIPLightningModule"
        del config.training_module.ema_decay
    OmegaConf.save(config, folder / "config.yaml")


def nequip(command: str, *arguments: str | Path) -> None:
    """Give one of NequIP's own commands."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(command)), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains once per name by NequIP's command and returns the folder."""
    base = tmp_path_factory.mktemp("nequip")
    write_structures(base / "structures.xyz")

    @cache
    def train(name: str) -> Path:
        folder = base / name
        folder.mkdir()
        configure(name, folder)
        nequip("nequip-train", "-cp", folder, "-cn", "config", f"hydra.run.dir={folder}")
        return folder

    return train


def noted(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "spy.pt", weights_only=True)
    return found


def checkpoint(folder: Path, file: str = "last.ckpt") -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / file, weights_only=False)
    return found


def potential(folder: Path) -> torch.nn.Module:
    """What NequIP makes of a checkpoint for everything that comes after training."""
    with double(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from nequip.model import ModelFromCheckpoint
        from nequip.utils.global_state import set_global_state

        set_global_state()
        model: torch.nn.Module = ModelFromCheckpoint(str(folder / "last.ckpt"), compile_mode="eager")
    return model["sole_model"]  # type: ignore[index]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def test_branches_were_there_and_theta_went_up_and_down(run: Callable[[str], Path]) -> None:
    seen = noted(run("relaxed"))
    assert len(seen["branches"]) == len(seen["thetas"]) == STEPS
    assert min(seen["branches"]) >= 3
    assert seen["thetas"][0] == 0 < max(seen["thetas"])
    assert sorted(seen["thetas"][:3]) == seen["thetas"][:3]
    assert seen["thetas"][-1] < seen["thetas"][-2] < max(seen["thetas"])
    assert not torch.allclose(seen["relaxed energy"], seen["clean energy"])
    assert set(noted(run("plain"))["branches"]) == {0}


def test_the_penalty_entered_the_training(run: Callable[[str], Path]) -> None:
    def size(name: str) -> float:
        state = checkpoint(run(name))["callbacks"]["RelaxationCallback"]["branches"]
        assert len({key.rpartition(".")[0] for key in state}) == max(noted(run(name))["branches"])
        return sum(float(weight.square().sum()) for weight in state.values())

    assert 0 < size("penalised") < size("unpenalised")
    weights = [noted(run(name))["clean weights"] for name in ("relaxed", "penalised", "unpenalised", "plain")]
    assert not any(same(one, other) for i, one in enumerate(weights) for other in weights[:i])


@pytest.mark.parametrize("file", ["best.ckpt", "last.ckpt"])
def test_checkpoints_have_the_original_keys(file: str, run: Callable[[str], Path]) -> None:
    relaxed, plain = (checkpoint(run(name), file)["state_dict"] for name in ("relaxed", "plain"))
    assert list(relaxed) == list(plain)
    assert {key: getattr(value, "shape", None) for key, value in relaxed.items()} == {
        key: getattr(value, "shape", None) for key, value in plain.items()
    }


def test_nequip_loads_the_model_without_its_branches(run: Callable[[str], Path]) -> None:
    seen, loaded = noted(run("relaxed")), potential(run("relaxed"))
    assert same(loaded.state_dict(), seen["clean weights"])
    assert not same(loaded.state_dict(), potential(run("plain")).state_dict())


@pytest.mark.parametrize("name", ["relaxed", "averaged"])
def test_its_checkpoints_are_opened_and_written_again(name: str, run: Callable[[str], Path], tmp_path: Path) -> None:
    """What NequIP makes of a training with branches is what this package opens, and the other way round."""
    workspace = open_path(run(name) / "last.ckpt")
    assert not workspace.checkpoint.needs_trust
    opened = workspace.model.state_dict()
    assert same(opened, potential(run(name)).state_dict())
    write_container(workspace.checkpoint, {key: 2 * value for key, value in opened.items()}, tmp_path / "last.ckpt")
    assert same(potential(tmp_path).state_dict(), {key: 2 * value for key, value in opened.items()})


def test_nequip_resumes(run: Callable[[str], Path]) -> None:
    whole, resumed = noted(run("relaxed")), noted(run("resumed"))
    assert len(resumed["branches"]) == STEPS // 2
    assert resumed["thetas"] == whole["thetas"][STEPS // 2 :]
    assert same(resumed["clean weights"], whole["clean weights"])


def test_nequip_averages_the_base_weights(run: Callable[[str], Path]) -> None:
    """Its average is kept beside the branches and holds what it would hold of a model that never had any."""
    weights = noted(run("averaged"))["weights"]
    average = {key: value.clone() for key, value in weights[0].items()}
    for number, now in enumerate(weights[1:], start=1):
        decay = min(0.99, (1 + number) / (10 + number))
        for key, value in now.items():
            average[key] = decay * average[key] + (1 - decay) * value
    loaded = {f"sole_model.{key}": value for key, value in potential(run("averaged")).named_parameters()}
    assert list(loaded) == list(average)
    assert max(float((loaded[key] - average[key]).abs().max()) for key in average) < 1e-5
    assert max(float((loaded[key] - weights[-1][key]).abs().max()) for key in average) > 1e-3


def test_a_package_is_trained_with_branches_and_loaded_without(run: Callable[[str], Path]) -> None:
    """Its layers are of classes out of the archive, none of which is e3nn's or NequIP's."""
    base = run("relaxed")
    nequip("nequip-package", "build", base / "last.ckpt", base / PACKAGE)
    seen, loaded = noted(run("packaged")), potential(run("packaged"))
    assert any(type(module).__module__.startswith("<torch_package") for module in loaded.modules())
    assert seen["branches"] == noted(base)["branches"]
    assert max(seen["thetas"]) > 0
    assert not torch.allclose(seen["relaxed energy"], seen["clean energy"])
    assert same(loaded.state_dict(), seen["clean weights"])
    before = potential(base).state_dict()
    assert list(loaded.state_dict()) == list(before)
    assert not same(loaded.state_dict(), before)  # negative twin: it was trained
    assert not any("_relaxation" in key for key in checkpoint(run("packaged"))["state_dict"])
