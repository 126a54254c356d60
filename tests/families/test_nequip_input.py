"""What NequIP users bring: versions, variants, averages, periodic data; and what is refused, in one sentence."""

from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import CheckpointError, TaskError, TrustError
from surgeon.export.container import write_container
from surgeon.files.reading import open_checkpoint
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.support.modes import default_dtype
from surgeon_adapters.nequip.adapter import adapter
from surgeon_adapters.nequip.models import MODIFY, build, import_nequip, installed_version, statement_of
from surgeon_adapters.nequip.task import NequipTask
from tests.commands import CHILD_ENVIRONMENT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("nequip", reason="nequip is not installed: make test-nequip")

from tests.families.nequip_checkpoints import DATA, SETTINGS, edited, write  # noqa: E402 (it needs nequip)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("nequip") / "plain.ckpt")


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("nequip") / "averaged.ckpt", average=True)


def small(**changes: Any) -> nn.Module:
    """A potential with random weights in float64."""
    with default_dtype(torch.float64):
        return build({**SETTINGS, **changes}).eval()


def frames(count: int = 4, periodic: bool = False, **labels: Any) -> list[Any]:
    """Water molecules, shaken."""
    import ase.build
    import numpy as np

    draw, made = np.random.default_rng(0), []
    for number in range(count):
        atoms = ase.build.molecule("H2O", vacuum=1.5 if periodic else None, pbc=periodic)
        atoms.positions += draw.normal(scale=0.1, size=atoms.positions.shape)
        atoms.info.update({key: value(number) if callable(value) else value for key, value in labels.items()})
        made.append(atoms)
    return made


def stored(path: Path, atoms: list[Any]) -> Path:
    import ase.io

    ase.io.write(path, atoms, format="extxyz")
    return path


def test_a_checkpoint_is_plain_data(plain: Path) -> None:
    """Neither trust nor a model is asked for; the same weights and settings are there."""
    workspace = open_path(plain)
    assert workspace.checkpoint.library == "nequip"
    assert not workspace.checkpoint.needs_trust
    state = torch.load(plain, weights_only=True)["state_dict"]
    for key, value in workspace.model.state_dict().items():
        assert torch.equal(value, state[f"model.sole_model.{key}"])


def test_averages_are_what_counts(averaged: Path) -> None:
    """As for NequIP itself, which takes them for everything but going on with the training."""
    opened, by_nequip = open_path(averaged).model, adapter.reopen(averaged)
    assert by_nequip is not None
    found, expected = opened.state_dict(), by_nequip.state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    raw = torch.load(averaged, weights_only=True)["state_dict"]
    assert any(not torch.equal(value, raw[f"model.sole_model.{key}"]) for key, value in found.items())


@pytest.mark.parametrize("name", ["plain", "averaged"])
def test_new_weights_go_into_all_places(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint = open_checkpoint(request.getfixturevalue(name))
    weights = {key: 2 * value for key, value in checkpoint.tensors.items()}
    write_container(checkpoint, weights, tmp_path / "new.ckpt")
    by_nequip = adapter.reopen(tmp_path / "new.ckpt")
    assert by_nequip is not None
    assert all(torch.equal(value, weights[key]) for key, value in by_nequip.state_dict().items())
    state = torch.load(tmp_path / "new.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(state[f"model.sole_model.{key}"], value) for key, value in weights.items())


def test_other_files_are_left_to_others(tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.ones(2)}, "hyper_parameters": {"info_dict": {}}}, tmp_path / "a.ckpt")
    assert open_checkpoint(tmp_path / "a.ckpt").library == ""
    assert adapter.open_file(DATA, False) is None
    assert adapter.reopen(DATA) is None


def test_another_version_with_other_keys(plain: Path, tmp_path: Path) -> None:
    def old(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["info_dict"]["versions"]["nequip"] = "0.12.0"
        content["state_dict"].pop("model.sole_model.model.func.layer0_convnet.conv.linear_2.weight")

    words = (
        rf"written by nequip 0\.12\.0.*{re.escape(installed_version())}.*first .*linear_2\.weight.*install that version"
    )
    with pytest.raises(CheckpointError, match=words):
        open_path(edited(plain, tmp_path / "old.ckpt", old))


def test_another_version_with_other_settings(plain: Path, tmp_path: Path) -> None:
    def newer(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["info_dict"]["versions"]["nequip"] = "0.99.0"
        content["hyper_parameters"]["model"]["attention"] = True

    with pytest.raises(CheckpointError, match=r"refuses the settings of a model that nequip 0\.99\.0.*attention"):
        open_path(edited(plain, tmp_path / "newer.ckpt", newer))


def test_another_version_that_fits_is_opened(plain: Path, tmp_path: Path) -> None:
    def near(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["info_dict"]["versions"]["nequip"] = "0.19.0"

    assert open_path(edited(plain, tmp_path / "near.ckpt", near)).found.factory is not None


def test_a_file_without_versions(plain: Path, tmp_path: Path) -> None:
    path = edited(plain, tmp_path / "a.ckpt", lambda content: content["hyper_parameters"]["info_dict"].pop("versions"))
    with pytest.raises(CheckpointError, match=r"with settings and versions, but .*a\.ckpt' has no 'versions'"):
        open_path(path)


def _of_allegro(content: dict[str, Any]) -> None:
    content["hyper_parameters"]["model"]["_target_"] = "allegro.model.AllegroModel"


def test_a_variant_of_another_package(plain: Path, tmp_path: Path) -> None:
    path = edited(plain, tmp_path / "allegro.ckpt", _of_allegro)
    with pytest.raises(CheckpointError, match=r"got 'allegro\.model\.AllegroModel'.*give `--model module:function`"):
        open_path(path)
    model = open_path(path, OpenOptions(build=lambda: build(SETTINGS))).model
    assert type(model).__name__ == "GraphModel"
    assert adapter.reopen(path) is None


def test_nothing_is_called_that_a_file_names(plain: Path, tmp_path: Path) -> None:
    """Not for the model, and not by NequIP's own loader, which calls whatever the loss and the metrics name."""
    mark = tmp_path / "called"
    command = {"_target_": "os.mkdir", "path": str(mark)}
    with pytest.raises(CheckpointError, match=r"got 'os\.mkdir'"):
        build({**SETTINGS, "pair_potential": command})

    def loss(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["loss"] = command

    path = edited(plain, tmp_path / "loss.ckpt", loss)
    assert open_path(path).found.factory is not None
    assert adapter.reopen(path) is None

    def hidden(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["loss"] = {**command, "_target_": "nequip.train.lightning.torch.os.mkdir"}

    assert adapter.reopen(edited(plain, tmp_path / "hidden.ckpt", hidden)) is None
    assert not mark.exists()


class Custom:
    """A class that a file holds an instance of."""


def test_a_class_inside_needs_trust_and_has_to_be_there(plain: Path, tmp_path: Path) -> None:
    content = torch.load(plain, weights_only=True)
    torch.save({**content, "callbacks": {"mine": Custom()}}, tmp_path / "custom.ckpt")
    with pytest.raises(TrustError, match=r"it names .*Custom.*allow it with `--trust-pickle`"):
        open_path(tmp_path / "custom.ckpt")
    assert open_path(tmp_path / "custom.ckpt", OpenOptions(trust_pickle=True)).checkpoint.needs_trust
    assert adapter.reopen(tmp_path / "custom.ckpt") is None
    gone = _renamed(tmp_path / "custom.ckpt", tmp_path / "gone.ckpt", b"test_nequip_input", b"test_nequip_absent")
    with pytest.raises(CheckpointError, match=r"needs the module '.*test_nequip_absent', which is not installed"):
        open_path(gone, OpenOptions(trust_pickle=True))


def _renamed(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """Copy a file of torch.save with a name in its pickle replaced."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copied:
        for entry in archive.infolist():
            data = archive.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert old in data
                data = _with_name(data, old, new)
            copied.writestr(entry.filename, data)
    return target


def _with_name(data: bytes, old: bytes, new: bytes) -> bytes:
    """Replace part of a name in a pickle of protocol 2, in which names are lines."""
    assert pickle.PROTO in data
    return data.replace(old, new)


def test_weights_of_another_device(plain: Path, tmp_path: Path) -> None:
    """A file that was saved on a device which this machine lacks."""
    there = _renamed(plain, tmp_path / "there.ckpt", b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00xpu")
    with pytest.raises(RuntimeError):
        torch.load(there, weights_only=True)
    tensors = open_path(there).model.state_dict()
    assert all(torch.equal(value, tensors[key]) for key, value in open_path(plain).model.state_dict().items())


def test_modifiers_that_only_speed_up_are_left_out() -> None:
    """They need libraries for GPUs; NequIP itself applies them when it compiles."""
    modified = {"_target_": "nequip.model.modify", "model": dict(SETTINGS)}
    modified["modifiers"] = [{"modifier": "enable_OpenEquivariance"}]
    assert list(build(modified).state_dict()) == list(build(SETTINGS).state_dict())


def test_settings_are_recorded_as_they_took_effect() -> None:
    """A result with the settings that a file wished for would name libraries which had no part in it."""
    faster = [{"modifier": "enable_OpenEquivariance"}, {"modifier": "enable_CuEquivariance"}]
    scaled = {"modifier": "modify_PerTypeScaleShift", "shifts": {"H": -1.0, "C": -2.0, "O": -3.0}}
    for wished, effective in ((faster, []), ([*faster, scaled], [scaled])):
        modified = {"_target_": MODIFY, "model": dict(SETTINGS), "modifiers": wished}
        args = json.loads(statement_of(modified, "0.19")["surgeon.model"])["args"]
        same = {**modified, "modifiers": effective} if effective else SETTINGS
        assert args == {"settings": json.loads(json.dumps(same)), "version": "0.19"}
        rebuilt, wishing = build(**args).state_dict(), build(modified).state_dict()
        assert {key: tensor.shape for key, tensor in rebuilt.items()} == {k: t.shape for k, t in wishing.items()}


def test_a_modifier_of_another_package_is_what_is_missing() -> None:
    modified = {"_target_": MODIFY, "model": dict(SETTINGS), "modifiers": [{"modifier": "enable_Elsewhere"}]}
    assert json.loads(statement_of(modified, "0.19")["surgeon.model"])["args"]["settings"] == modified
    with pytest.raises(CheckpointError, match="install what registers the modifier 'enable_Elsewhere'"):
        build(modified, "0.19")
    with pytest.raises(CheckpointError, match="install that version"):
        build({**SETTINGS, "num_layers": "many"}, "0.19")


def test_a_pair_potential_is_built() -> None:
    zbl = {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal", "chemical_species": ["H", "C", "O"]}
    assert "pair_potential" in dict(build({**SETTINGS, "pair_potential": zbl}).named_modules())["model.func"]._modules


def test_a_training_module_that_computes_its_weights(plain: Path, tmp_path: Path) -> None:
    """Those of a schedule-free optimiser are not the ones in the state dict."""

    def free(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["info_dict"]["training_module"]["_target_"] = (
            "nequip.train.ScheduleFreeLightningModule"
        )

    path = edited(plain, tmp_path / "free.ckpt", free)
    with pytest.raises(
        CheckpointError, match=r"got one of 'nequip\.train\.ScheduleFree.*package it with `nequip-package`"
    ):
        open_path(path)
    assert adapter.reopen(path) is None


def test_several_models(plain: Path, tmp_path: Path) -> None:
    def two(content: dict[str, Any]) -> None:
        content["state_dict"]["model.other_model.weight"] = torch.ones(1)

    with pytest.raises(CheckpointError, match=r"one model in .*, found 2 \(other_model, sole_model\)"):
        open_path(edited(plain, tmp_path / "two.ckpt", two))


def test_a_training_that_started_from_another_file(plain: Path, tmp_path: Path) -> None:
    def further(content: dict[str, Any]) -> None:
        settings = {"_target_": "nequip.model.ModelFromCheckpoint", "checkpoint_path": str(tmp_path / "first.ckpt")}
        content["hyper_parameters"]["model"] = settings

    path = edited(plain, tmp_path / "second.ckpt", further)
    with pytest.raises(
        CheckpointError, match=r"was trained from .*first\.ckpt', which holds the settings .* not there"
    ):
        open_path(path)
    (tmp_path / "first.ckpt").write_bytes(plain.read_bytes())
    factory = open_path(path).found.factory
    assert factory is not None
    assert factory["args"]["settings"] == SETTINGS


def test_settings_that_are_no_plain_data(plain: Path, tmp_path: Path) -> None:
    def scaled(content: dict[str, Any]) -> None:
        content["hyper_parameters"]["model"]["avg_num_neighbors"] = torch.tensor(7.0)

    with pytest.raises(CheckpointError, match="settings of a nequip model as plain data"):
        open_path(edited(plain, tmp_path / "scaled.ckpt", scaled))


def test_building_leaves_the_process_alone() -> None:
    """NequIP's own set-up seeds, and changes the default dtype, environment and more; and it still can, afterwards."""
    code = f"""
import json, os, torch
before, environment = torch.get_rng_state(), dict(os.environ)
from surgeon_adapters.nequip.models import build
build({dict(SETTINGS)!r})
same = torch.equal(before, torch.get_rng_state())
kept = torch.get_default_dtype() == torch.float32 and os.environ == environment
from nequip.utils.global_state import set_global_state
set_global_state()
print(json.dumps([same, kept, torch.get_default_dtype() == torch.float64]))
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, True]


def detached(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in outputs.items()}


def periodic_task(folder: Path) -> NequipTask:
    """Water in a box, with stresses."""
    stress = [0.1, 0.2, 0.3, 0.01, 0.02, 0.03]
    path = stored(folder / "water.xyz", frames(periodic=True, REF_energy=lambda i: -120.0 + i, REF_stress=stress))
    return NequipTask(path, fraction=0.25, batch_size=2).for_model(small())


@pytest.mark.parametrize("group", ["O3", "E3"])
def test_stresses_and_cells_turn_along(tmp_path: Path, group: str) -> None:
    task, model = periodic_task(tmp_path), small()
    assert task.labels == ("energy", "stress")
    batch = next(iter(task.batches("train", 0)))
    assert set(task.metrics(task.forward(model, batch), batch)) == {"energy_mae", "stress_mae"}
    before = detached(task.forward(model, batch))
    for part in range(2):
        g = parse_group(group).sample(1, torch.Generator().manual_seed(0), part)[0]
        moved = detached(task.forward(model, task.act(g, batch)))
        assert relative_difference(moved, task.act_output(g, before)) < 1e-9
        assert relative_difference(moved["forces"], before["forces"]) > 1e-3
        loss, turned = task.loss(before, batch), task.loss(moved, task.act(g, batch))
        assert float(turned) == pytest.approx(float(loss))


def test_the_loss_is_that_of_nequip(tmp_path: Path) -> None:
    task, model = periodic_task(tmp_path), small()
    batch = next(iter(task.batches("train", 0)))
    batch["forces"] = torch.randn(batch["pos"].shape, dtype=torch.float64)
    outputs = detached(task.forward(model, batch))
    coefficients = {"total_energy": 2.0, "forces": 5.0, "stress": 3.0}
    with default_dtype(torch.float64):
        theirs = import_nequip("train").EnergyForceStressLoss(
            coeffs=coefficients, per_atom_energy=True, type_names=SETTINGS["type_names"]
        )
        named = {**outputs, "total_energy": outputs["energy"]}
        expected = theirs({**batch, **named}, batch)["weighted_sum"]
    weighted = NequipTask(DATA, energy_weight=2.0, forces_weight=5.0, stress_weight=3.0)
    assert float(weighted.loss(outputs, batch)) == pytest.approx(float(expected))


def test_energies_are_those_of_interaction() -> None:
    """Labels and outputs lose the shifts of the model."""
    import ase.io

    model = small()
    task = NequipTask(DATA, batch_size=3).for_model(model)
    batch = next(iter(task.batches("train", 0)))
    atoms = ase.io.read(DATA, ":")
    shifts = SETTINGS["per_type_energy_shifts"]
    labels = [frame.info["REF_energy"] - sum(shifts[symbol] for symbol in frame.symbols) for frame in atoms[3:]]
    assert all(min(abs(float(value) - label) for label in labels) < 1e-9 for value in batch["total_energy"])
    whole = model({key: value.clone() for key, value in batch.items()})["total_energy"].detach()
    own = detached(task.forward(model, batch))["energy"]
    assert torch.allclose(own, whole - (2 * shifts["C"] + shifts["O"] + 6 * shifts["H"]))


def test_the_shifts_are_taken_if_the_file_has_no_isolated_atoms(tmp_path: Path) -> None:
    path = stored(tmp_path / "water.xyz", frames(REF_energy=-130.0))
    task = NequipTask(path, fraction=0.25).for_model(small())
    shifts = SETTINGS["per_type_energy_shifts"]
    batch = next(iter(task.batches("train", 0)))
    assert torch.allclose(batch["total_energy"], torch.tensor(-130.0 - shifts["O"] - 2 * shifts["H"]).double())
    assert task.primary_metric == "energy_mae"


def test_atom_types_with_other_names(tmp_path: Path) -> None:
    model = small(type_names=["light", "C", "O"], per_type_energy_shifts={"light": -1.0, "C": -2.0, "O": -3.0})
    path = stored(tmp_path / "water.xyz", frames(REF_energy=-130.0))
    with pytest.raises(TaskError, match=r"element for each atom type .* \(light, C, O\), got light: .*species"):
        NequipTask(path).for_model(model)
    species = {"H": "light", "C": "C", "O": "O"}
    task = NequipTask(path, fraction=0.25, species=species).for_model(model)
    assert sorted(next(iter(task.batches("test", 0)))["atom_types"].tolist()) == [0, 0, 2]


def test_the_model_may_not_write_into_the_batch() -> None:
    model = small()
    task = NequipTask(DATA).for_model(model)
    batch = next(iter(task.batches("train", 0)))
    before = {key: value.clone() for key, value in batch.items()}
    task.forward(model, batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], value) and not batch[key].requires_grad for key, value in before.items())


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"my_energy": 1.0}, "expected frames with energies or forces under REF_energy.*has my_energy"),
        ({"REF_energy": 1.0, "symbols": "HeH2"}, r"atoms of He, which the model lacks \(it has H, C, O\)"),
        ({"REF_energy": 1.0, "count": 2}, "enough frames for training, validation and test"),
    ],
)
def test_unusable_data(tmp_path: Path, labels: dict[str, Any], words: str) -> None:
    given = copy.copy(labels)
    symbols, count = given.pop("symbols", None), given.pop("count", 4)
    atoms = frames(count, **given)
    for frame in atoms if symbols else []:
        frame.symbols = symbols
    with pytest.raises(TaskError, match=words):
        NequipTask(stored(tmp_path / "data.xyz", atoms)).for_model(small())


def test_labels_that_some_frames_lack(tmp_path: Path) -> None:
    atoms = frames(REF_energy=1.0)
    del atoms[1].info["REF_energy"], atoms[2].info["REF_energy"]
    with pytest.raises(TaskError, match=r"expected energy of all 4 frames of .*, 2 lack it: leave these frames out"):
        NequipTask(stored(tmp_path / "data.xyz", atoms)).for_model(small())


def test_models_without_forces_and_of_others() -> None:
    with pytest.raises(TaskError, match="expected a NequIP potential with forces"):
        NequipTask(DATA).for_model(small(do_derivatives=False))
    with pytest.raises(TaskError, match="expected a NequIP potential for the task of nequip, got Linear"):
        NequipTask(DATA).for_model(nn.Linear(2, 2))
    with pytest.raises(TaskError, match="0 < fraction < 0.5"):
        NequipTask(DATA, fraction=0.7).for_model(small())
