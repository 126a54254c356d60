"""What MACE users bring: heads, stresses, other keys and elements; and what the adapter refuses, in one sentence."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import CheckpointError, TaskError, TrustError
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import load_task
from surgeon_adapters.mace.adapter import adapter
from surgeon_adapters.mace.models import build, import_mace
from surgeon_adapters.mace.task import MaceTask
from tests.commands import CHILD_ENVIRONMENT, ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")

from tests.families.mace_small import ENERGIES, HEADS, crystal, frame, reopened, saved, small, write

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

MOLECULES = ROOT / "examples" / "molecules"
DATA = MOLECULES / "ethanol_gfn2.xyz"


def test_stresses_and_results_of_ase(tmp_path: Path) -> None:
    task = MaceTask(crystal(tmp_path), batch_size=2, fraction=0.2).for_model(small())
    assert task.labels == ("energy", "forces", "stress")
    batch = next(iter(task.batches("train", 0)))
    outputs = task.forward(small(), batch)
    assert set(task.metrics(outputs, batch)) == {"energy_mae", "force_mae", "stress_mae"}
    g = parse_group("O3").sample(1, torch.Generator().manual_seed(0), 1)[0]
    moved, before = task.forward(small(), task.act(g, batch)), {key: value.detach() for key, value in outputs.items()}
    assert relative_difference(detached(moved), task.act_output(g, before)) < 1e-9
    assert relative_difference(detached(moved), before) > 1e-3
    assert float(task.loss(outputs, batch).detach()) == pytest.approx(
        float(task.loss(moved, task.act(g, batch)).detach())
    )


def detached(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in outputs.items()}


def test_the_loss_is_that_of_mace_on_energies_of_interaction(tmp_path: Path) -> None:
    """Weights: squared error per atom, mean over frames; squared errors of forces, mean over components."""
    task = MaceTask(DATA, batch_size=3, energy_weight=2.0, forces_weight=5.0).for_model(small())
    batch = next(iter(task.batches("train", 0)))
    outputs = detached(task.forward(small(), batch))
    energy = ((outputs["energy"] - batch["energy"]) / 9).square().mean()
    forces = (outputs["forces"] - batch["forces"]).square().mean()
    assert float(task.loss(outputs, batch)) == pytest.approx(float(2 * energy + 5 * forces))
    import ase.io

    own = dict(zip("HCO", ENERGIES, strict=True))
    frames = ase.io.read(DATA, ":")[3:]
    labels = [atoms.info["REF_energy"] - sum(own[symbol] for symbol in atoms.symbols) for atoms in frames]
    assert all(min(abs(float(value) - label) for label in labels) < 1e-9 for value in batch["energy"])


def test_an_isolated_atom_of_the_model_is_taken_if_the_file_has_none(tmp_path: Path) -> None:
    path = write(tmp_path / "water.xyz", [frame(REF_energy=7.5 + i) for i in range(4)])
    task = MaceTask(path, fraction=0.25).for_model(small())
    assert sorted(task.frames["train"].batch([0, 1])["energy"].tolist())[0] >= 7.5 - (3.0 + 2 * 1.0)
    assert task.labels == ("energy",)
    assert task.primary_metric == "energy_mae"
    batch = next(iter(task.batches("test", 0)))
    assert set(task.metrics(task.forward(small(), batch), batch)) == {"energy_mae"}


def test_the_model_may_not_write_into_the_batch() -> None:
    task = MaceTask(DATA).for_model(small())
    batch = next(iter(task.batches("train", 0)))
    before = {key: value.clone() for key, value in batch.items()}
    task.forward(small(), batch)
    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], value) and not batch[key].requires_grad for key, value in before.items())


def test_one_of_several_heads_has_to_be_chosen() -> None:
    with pytest.raises(TaskError, match=re.escape("2 heads (tight-binding, other): choose the one to train")):
        MaceTask(DATA).for_model(small(2))
    with pytest.raises(TaskError, match="among tight-binding, other, got 'pbe'"):
        MaceTask(DATA, head="pbe").for_model(small(2))
    task = MaceTask(DATA, head="other").for_model(small(2))
    assert next(iter(task.batches("train", 0)))["head"].unique().tolist() == [1]


def test_several_heads_are_described_and_rebuilt() -> None:
    described = adapter.describe(small(2))
    assert described is not None
    assert described["args"]["settings"]["heads"] == HEADS
    assert list(build(**described["args"]).state_dict()) == list(small(2).state_dict())


def test_a_whole_module_needs_trust(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "small.model")
    with pytest.raises(TrustError, match=r"it names mace\..*allow it with `--trust-pickle`"):
        open_path(tmp_path / "small.model")
    found = open_path(tmp_path / "small.model", OpenOptions(trust_pickle=True)).found
    assert found.factory is not None


def test_a_class_that_is_not_installed(tmp_path: Path) -> None:
    torch.save(small(), tmp_path / "small.model")
    content = (tmp_path / "small.model").read_bytes()
    (tmp_path / "custom.model").write_bytes(content)
    path = _renamed(tmp_path / "small.model", tmp_path / "other.model", b"mace.modules.models", b"mace.modules.absent")
    with pytest.raises(CheckpointError, match="needs the module 'mace.modules.absent', which is not installed"):
        open_path(path, OpenOptions(trust_pickle=True))
    path = _renamed(tmp_path / "small.model", tmp_path / "more.model", b"ScaleShiftBlock", b"ScaleShiftBlack")
    with pytest.raises(CheckpointError, match=r"ScaleShiftBlack.*needs another version of its library"):
        open_path(path, OpenOptions(trust_pickle=True))


def _renamed(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """Copy a file of torch.save with a name in its pickle replaced by one of the same length."""
    import zipfile

    assert len(old) == len(new)
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            data = archive.read(entry)
            copy.writestr(entry.filename, data.replace(old, new) if entry.filename.endswith("data.pkl") else data)
    return target


def pickled(folder: Path, module: nn.Module) -> Any:
    return reopened(saved(folder / "one.model", module))


def note_of(module: nn.Module) -> str:
    described = adapter.describe(module)
    assert described is not None
    assert described.keys() == {"note"}
    return str(described["note"])


def test_a_module_that_the_installed_version_cannot_run_is_refused(tmp_path: Path) -> None:
    module = pickled(tmp_path, small())
    del module.interactions[0].avg_num_neighbors
    with pytest.raises(CheckpointError, match=r"does not run with mace .*avg_num_neighbors.*if another version of"):
        adapter.describe(module)


def test_a_module_whose_settings_cannot_be_read_is_used_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pickled(tmp_path, small())
    monkeypatch.delattr(import_mace("tools.scripts_utils"), "extract_radial_MLP")
    assert re.search(r"cannot read its settings .*extract_radial_MLP", note_of(module))
    found = open_path(saved(tmp_path / "own.model", module), OpenOptions(trust_pickle=True)).found
    assert found.factory is None
    assert "the pickled module is used as it is, with --trust-pickle in every command" in found.notes[0]


def test_a_variant_that_the_settings_do_not_tell_is_used_as_it_is(tmp_path: Path) -> None:
    """Equal keys and a strict load prove nothing: only the outputs show it."""
    module = pickled(tmp_path, small())
    module.interactions[1].avg_num_neighbors = 3.0
    assert re.search(r"rebuilt from its settings by mace .* its forces deviate by", note_of(module))


def test_a_class_of_somebodys_own_is_used_as_it_is(tmp_path: Path) -> None:
    module = pickled(tmp_path, small())
    block = type(module.interactions[1])
    module.interactions[1].__class__ = type("MyInteraction", (block,), {})
    assert re.search(r"interaction_cls.*MyInteraction", note_of(module))


def in_a_copy(module: nn.Module, place: str) -> nn.Module:
    """The same potential on classes that are not mace's, but those of a copy of it, in place."""
    classes: dict[type, type] = {}
    for part in module.modules():
        own = type(part)
        if own.__module__.startswith("mace."):
            own = classes.setdefault(own, type(own.__name__, own.__bases__, {**vars(own), "__module__": ""}))
            own.__module__ = own.__module__ or f"{place}.{type(part).__module__}"
            part.__class__ = own
    return module


def in_an_archive(module: nn.Module, folder: Path) -> nn.Module:
    """The same potential out of an archive of torch.package that holds mace's code."""
    path = folder / "archive.pt"
    with warnings.catch_warnings(), PackageExporter(path) as exporter:
        warnings.simplefilter("ignore")
        exporter.intern("mace.**")
        exporter.extern("**", exclude="mace.**")
        exporter.save_pickle("model", "model.pkl", module)
    with pytest.raises(CheckpointError, match=r"archive of torch.package, .* model/model.pkl, .* `--model module:fu"):
        open_path(path, OpenOptions(trust_pickle=True))
    with warnings.catch_warnings(), torch.serialization.safe_globals([slice]):
        warnings.simplefilter("ignore")
        loaded: nn.Module = PackageImporter(path).load_pickle("model", "model.pkl")
        return loaded


@pytest.mark.parametrize("place", ["<torch_package_", "carrier._vendor"])
def test_a_potential_of_a_copy_of_mace_is_recognised(tmp_path: Path, place: str) -> None:
    module = pickled(tmp_path, small())
    module = in_a_copy(module, place) if place.startswith("carrier") else in_an_archive(module, tmp_path)
    assert not isinstance(module, import_mace().ScaleShiftMACE)
    assert re.fullmatch(rf"{place}(\d+>)?\.mace\.modules\.blocks", type(module.interactions[1]).__module__)
    copied, own = adapter.describe(module), adapter.describe(pickled(tmp_path, small()))
    assert copied is not None
    assert own is not None
    assert copied["args"] == own["args"]
    assert isinstance(copied["built"], import_mace().ScaleShiftMACE)
    task = MaceTask(DATA).for_model(module)
    assert next(iter(task.batches("test", 0)))["node_attrs"].shape[1] == 3


def test_a_copy_of_mace_that_computes_something_else_is_not_taken_for_it(tmp_path: Path) -> None:
    """Names and parts are the same; only what it computes is not."""
    module = in_a_copy(pickled(tmp_path, small()), "carrier._vendor")
    block = type(module.interactions[1])
    forward = block.forward

    def weaker(self: Any, **named: Any) -> Any:
        message, skip = forward(self, **named)
        return 0.5 * message, skip

    block.forward = weaker
    assert re.search(r"rebuilt from its settings by mace .* its forces deviate by", note_of(module))


def test_an_archive_of_a_network_that_no_adapter_knows_names_the_way_out(tmp_path: Path) -> None:
    with warnings.catch_warnings(), PackageExporter(tmp_path / "network.pt") as exporter:
        warnings.simplefilter("ignore")
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match=r"archive of torch.package, .* model/model.pkl, .* `--model module:fu"):
        open_path(tmp_path / "network.pt", OpenOptions(trust_pickle=True))


def test_a_plain_mace_is_described_and_its_energies_lose_the_isolated_atoms(tmp_path: Path) -> None:
    """MACE's own function reads the settings of scaled potentials only."""
    path = saved(tmp_path / "plain.model", small(1, "MACE"))
    workspace = open_path(path, OpenOptions(task=f"mace:{DATA}", trust_pickle=True))
    assert workspace.found.factory is not None
    assert not [name for name in workspace.found.factory["args"]["settings"] if name.startswith("atomic_inter")]
    task: Any = workspace.require_task().task
    batch = next(iter(task.batches("test", 0)))
    outputs = task.forward(workspace.model, batch)
    isolated = batch["node_attrs"] @ torch.tensor(ENERGIES, dtype=torch.float64)
    whole = workspace.model({**batch, "positions": batch["positions"].clone()})["energy"].detach()
    counts = torch.zeros_like(whole).index_add(0, batch["batch"], isolated)
    assert torch.allclose(outputs["energy"].detach(), whole - counts)


def test_other_libraries_modules_are_left_alone() -> None:
    class ScaleShiftMACE(nn.Module):
        pass

    assert adapter.describe(ScaleShiftMACE()) is None


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([("He", {"REF_energy": 1.0})], r"atoms of He, which the model lacks \(it has H, C, O\)"),
        ([("H", {"my_energy": 1.0})], "expected frames with energies or forces under REF_energy.*has my_energy"),
        ([("H", {"REF_energy": 1.0})], "enough frames for training, validation and test"),
    ],
)
def test_unusable_data(tmp_path: Path, frames: list[tuple[str, dict[str, Any]]], words: str) -> None:
    import ase

    path = write(tmp_path / "data.xyz", [ase.Atoms(symbol, info=info) for symbol, info in frames])
    with pytest.raises(TaskError, match=words):
        MaceTask(path).for_model(small())


def test_what_there_is_to_know_of_the_data_is_said(tmp_path: Path) -> None:
    """Frames in two splits, a label that is not read, and forces in another unit; nothing of sound data."""
    import ase.io

    model, frames = small(), ase.io.read(DATA, "3:11")
    task = MaceTask(write(tmp_path / "data.xyz", frames), validation=str(DATA), test=str(DATA)).for_model(model)
    assert len(task.remarks(model)) == 2
    forces = task.forward(model, task.frames["train"].batch(range(8)))["forces"].detach().reshape(8, 9, 3).numpy()
    for atoms, own in zip(frames, forces, strict=True):
        atoms.arrays["REF_forces"], atoms.info["pbe_energy"] = 23.06 * own, 1.0
    write(tmp_path / "data.xyz", frames)
    said = replace(task, frames={}).for_model(model).remarks(model)
    for words, each in zip(
        ("not used: pbe_energy", "8 of the 60 val", "8 of the 60 test", "as in kcal"), said, strict=True
    ):
        assert words in each
    assert MaceTask(DATA).for_model(model).remarks(model) == ()


def test_other_keys_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "data.xyz", [frame(my_energy=float(i)) for i in range(4)])
    assert MaceTask(path, energy_key="my_energy").for_model(small()).labels == ("energy",)


def test_a_broken_file_and_a_wrong_model(tmp_path: Path) -> None:
    (tmp_path / "broken.xyz").write_text("3\nProperties=species:S:1:pos:R:3\nH 0 0 zero\n")
    with pytest.raises(TaskError, match="could not read .*broken.xyz.* as extended XYZ"):
        MaceTask(tmp_path / "broken.xyz").for_model(small())
    with pytest.raises(TaskError, match="expected a MACE potential for the task of mace, got Linear"):
        MaceTask(DATA).for_model(nn.Linear(2, 2))


def test_the_command_line_names_the_task(tmp_path: Path) -> None:
    loaded = load_task(f"mace:{DATA}", {"batch_size": 4})
    assert (loaded.data, loaded.spec) == (DATA, f"mace:{DATA}")
    assert len(loaded.sha256) == 64
    assert loaded.for_model(small()).task.labels == ("energy", "forces")  # type: ignore[attr-defined]
    with pytest.raises(TaskError, match=r"no data file .*ethanol_gfn3.xyz.*holds ethanol_gfn"):
        load_task(f"mace:{MOLECULES / 'ethanol_gfn3.xyz'}")
    with pytest.raises(TaskError, match="the task of mace cannot be called like this.*batchsize"):
        load_task(f"mace:{DATA}", {"batchsize": 4})


def test_importing_mace_leaves_the_environment_alone() -> None:
    """MACE switches off the safe reader of torch for the whole process; nor is anything printed."""
    code = "import os; from surgeon_adapters.mace.models import import_mace; import_mace(); print(dict(os.environ))"
    clean = {name: value for name, value in CHILD_ENVIRONMENT.items() if not name.startswith("TORCH_FORCE")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in done.stdout
    assert done.stdout.startswith("{")
