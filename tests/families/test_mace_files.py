"""Files of MACE that are not a plain ``.model``: what is recognised, and which file or flag is needed."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, ModelNotFoundError, TaskError
from surgeon.export.container import write_container
from surgeon.files.reading import open_checkpoint
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.support.modes import default_dtype
from surgeon_adapters.mace.adapter import adapter
from surgeon_adapters.mace.models import KINDS, decoded, import_mace
from surgeon_adapters.mace.task import MaceTask
from tests.commands import ROOT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")

from tests.families.mace_small import crystal, reopened, saved, small

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

DATA = ROOT / "examples" / "molecules" / "ethanol_gfn2.xyz"
TRUSTED = OpenOptions(trust_pickle=True)


def training_checkpoint(folder: Path) -> Path:
    """What MACE's training keeps in its folder ``checkpoints/``, after one step."""
    module: Any = reopened(saved(folder / "base.model", small()))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, amsgrad=True)
    task = MaceTask(crystal(folder), batch_size=2, fraction=0.2).for_model(module)
    assert task.preferred == {"optimizer": "soap", "learning_rate": 9e-2, "clip": 10.0}
    large = dataclasses.replace(task.potential_of(module), weights=1_000_000)
    assert dataclasses.replace(task, potential=large).preferred["learning_rate"] == 3e-2
    batch = next(iter(task.batches("train", 0)))
    task.loss(task.forward(module, batch), batch).backward()
    optimizer.step()
    tools = import_mace("tools.checkpoint")
    state = tools.CheckpointState(module, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99))
    path = folder / "checkpoints" / "small_run-3_epoch-7.pt"
    tools.CheckpointIO(str(path.parent), "small_run-3").save(tools.CheckpointBuilder.create_checkpoint(state), 7)
    return path


def test_a_training_checkpoint_is_recognised(tmp_path: Path) -> None:
    path = training_checkpoint(tmp_path)
    with pytest.raises(ModelNotFoundError) as caught:
        open_path(path)
    said = str(caught.value)
    assert "weights of a MACE potential (H, C, O; 2 interactions; cutoff 3)" in said
    assert "give the .model file that the same training wrote, with `--trust-pickle`" in said
    assert "CKPT.model.json" in said


def test_a_training_checkpoint_with_its_settings_goes_out_as_one(tmp_path: Path) -> None:
    """Without any pickle run: optimiser and schedule stay as they are, and MACE's own loader takes the new weights."""
    path = training_checkpoint(tmp_path)
    described = adapter.describe(small())
    assert described is not None
    statement = {key: described[key] for key in ("factory", "args")}
    path.with_name(path.name + ".model.json").write_text(json.dumps(statement))
    workspace = open_path(path, OpenOptions(task=f"mace:{DATA}"))
    assert type(workspace.model).__name__ == "ScaleShiftMACE"
    assert (workspace.checkpoint.container, workspace.checkpoint.entry) == ("nested", "model")
    new = {
        key: value * 2 if value.is_floating_point() else value for key, value in workspace.model.state_dict().items()
    }
    (tmp_path / "new").mkdir()
    write_container(open_checkpoint(path), new, tmp_path / "new" / path.name)
    module: Any = reopened(saved(tmp_path / "again.model", small()))
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2, amsgrad=True)
    tools = import_mace("tools.checkpoint")
    state = tools.CheckpointState(module, optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99))
    handler = tools.CheckpointHandler(str(tmp_path / "new"), "small_run-3")
    assert handler.load_latest(state, strict=True) == 7
    assert all(torch.equal(value, new[key]) for key, value in module.state_dict().items())
    assert optimizer.state_dict()["state"][0]["step"] == 1


def test_a_state_dict_of_something_else_is_not_called_mace() -> None:
    assert adapter.recognise(nn.Linear(2, 2).state_dict()) is None
    weights = dict(small().state_dict())
    assert adapter.recognise(weights) is not None
    del weights["atomic_energies_fn.atomic_energies"]
    assert adapter.recognise(weights) is None


def test_what_the_script_for_lammps_writes_is_refused(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "small.model-lammps.pt")
    with pytest.raises(CheckpointError, match=r"small.model-lammps.pt' is a TorchScript archive, which is code"):
        open_path(tmp_path / "small.model-lammps.pt", TRUSTED)


class OnGpu:
    """``torch.save`` as on a machine with a GPU: every tensor, also inside TorchScript, says that it was there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._save: Callable[..., None] = torch.jit.save
        monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
        monkeypatch.setattr("torch.jit.save", self.save_script)

    def save_script(self, module: Any, target: io.BytesIO) -> None:
        plain = io.BytesIO()
        self._save(module, plain)
        with zipfile.ZipFile(plain) as archive, zipfile.ZipFile(target, "w") as moved:
            for entry in archive.infolist():
                content = archive.read(entry)
                if entry.filename.endswith(".pkl"):  # a string of pickle: X, four bytes of length, the text
                    content = content.replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
                moved.writestr(entry.filename, content)


def test_a_potential_saved_on_a_gpu_opens_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    module = variant(max_ell=2)  # tensor products with Clebsch-Gordan coefficients inside their scripts
    with monkeypatch.context() as patch:
        OnGpu(patch)
        path = saved(tmp_path / "gpu.model", module)
    # what torch.load can do alone: it knows where tensors go, but not those of the scripts inside
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, map_location="cpu", weights_only=False)
    workspace = open_path(path, TRUSTED)
    assert {value.device.type for value in workspace.model.state_dict().values()} == {"cpu"}
    expected: dict[str, Tensor] = module.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in workspace.model.state_dict().items())
    assert adapter.reopen(path) is not None
    assert torch.jit.load.__module__ == "torch.jit._serialization"  # as it was
    checkpoint = workspace.checkpoint
    write_container(checkpoint, checkpoint.tensors, tmp_path / "cpu.model")
    assert type(reopened(tmp_path / "cpu.model")).__name__ == "ScaleShiftMACE"


def variant(kind: str = "ScaleShiftMACE", **changes: Any) -> nn.Module:
    """A scripted potential with other settings, of which it gets those that its class takes."""
    described = adapter.describe(small())
    assert described is not None
    settings = {key: decoded(value) for key, value in described["args"]["settings"].items()}
    made = getattr(import_mace(), kind)
    if kind not in KINDS:
        settings = {key: value for key, value in settings.items() if key in inspect.signature(made).parameters}
    with default_dtype(torch.float64):
        module: nn.Module = made(**{**settings, **changes})
    return module


def test_a_last_layer_with_all_irreps_is_described(tmp_path: Path) -> None:
    described = adapter.describe(variant(keep_last_layer_irreps=True))
    assert described is not None
    assert described["args"]["settings"]["keep_last_layer_irreps"] is True


@pytest.mark.parametrize("kind", ["MACE", "ScaleShiftMACE"])
def test_settings_that_older_versions_do_not_have_may_be_missing(tmp_path: Path, kind: str) -> None:
    module = reopened(saved(tmp_path / "old.model", small(1, kind)))
    for name in (
        "heads",
        "apply_cutoff",
        "edge_irreps",
        "use_agnostic_product",
        "use_last_readout_only",
        "lammps_mliap",
    ):
        delattr(module, name)
    described = adapter.describe(module)
    assert described is not None
    assert MaceTask(DATA).for_model(module).labels == ("energy", "forces")


def test_what_a_newer_version_may_have_added_is_noticed(tmp_path: Path) -> None:
    module = reopened(saved(tmp_path / "new.model", small()))
    module.charges = nn.Linear(2, 2)
    described = adapter.describe(module)
    assert described is not None
    assert re.search(r"gives it other weights \(2 differ, first charges", described["note"])


def test_low_rank_layers_have_to_be_merged(tmp_path: Path) -> None:
    lora = import_mace("modules.lora")
    module = reopened(saved(tmp_path / "lora.model", small()))
    lora.inject_LoRAs(module, rank=2)
    with pytest.raises(CheckpointError, match=r"low-rank \(LoRA\) layers .*merge_lora_weights and save it again"):
        adapter.describe(module)
    lora.merge_lora_weights(module)
    assert adapter.describe(module) is not None


def test_further_inputs_leave_the_module_as_it_is_and_need_a_task(tmp_path: Path) -> None:
    specs = {"total_charge": {"type": "continuous", "in_dim": 1, "emb_dim": 2, "per": "graph"}}
    path = saved(tmp_path / "charged.model", variant(embedding_specs=specs))
    assert open_path(path, TRUSTED).found.factory is None
    words = "potential that takes only atoms for the task of mace, got one that takes total_charge as well: give a task"
    with pytest.raises(TaskError, match=words):
        open_path(path, OpenOptions(trust_pickle=True, task=f"mace:{DATA}"))


def test_potentials_of_dipoles_need_a_task(tmp_path: Path) -> None:
    path = saved(tmp_path / "dipoles.model", variant("EnergyDipolesMACE"))
    assert open_path(path, TRUSTED).found.source == "the module inside dipoles.model"
    words = re.escape("energies and forces (MACE or ScaleShiftMACE) for the task of mace, got EnergyDipolesMACE: give")
    with pytest.raises(TaskError, match=words):
        open_path(path, OpenOptions(trust_pickle=True, task=f"mace:{DATA}"))
