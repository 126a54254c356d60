"""State dicts of many versions of e3nn: opened by the installed one, compared with what those predicted, and back."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import CheckpointError
from surgeon.export.container import write_container
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.support.e3nn_compat import import_e3nn
from tests.families.old_files.write_e3nn import inputs, network

FOLDER = Path(__file__).parent / "old_files"
RECORDS: dict[str, Any] = json.loads((FOLDER / "e3nn.json").read_text())
OTHER_NAMES = {"e3nn-0.4.0", "e3nn-0.4.1"} & RECORDS.keys()
"""Of buffers, before version 0.4.2."""
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Share of the largest entry."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("versions")
    with tarfile.open(FOLDER / "e3nn.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def built() -> nn.Module:
    o3 = import_e3nn()
    from e3nn import nn as layers

    return network(o3, layers)


def predicted(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(*inputs(next(model.parameters()).dtype))
    return found.double()


def require_as_then(name: str, model: nn.Module) -> None:
    expected = torch.tensor(RECORDS[name]["predicted"], dtype=torch.float64)
    tolerance = TOLERANCE[next(model.parameters()).dtype]
    assert relative_difference(predicted(model), expected) < tolerance
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    assert relative_difference(predicted(model), expected) > 10 * tolerance


@pytest.mark.parametrize("name", [name for name in RECORDS if name not in OTHER_NAMES])
def test_the_file_opens_predicts_what_it_did_and_goes_back(name: str, files: Path, tmp_path: Path) -> None:
    path = files / f"{name}.pt"
    workspace = open_path(path, OpenOptions(build=built))
    require_as_then(name, workspace.model)
    write_container(workspace.checkpoint, workspace.model.state_dict(), tmp_path / "new.pt")
    before, after = torch.load(path), torch.load(tmp_path / "new.pt")
    assert list(before) == list(after)
    again = open_path(tmp_path / "new.pt", OpenOptions(build=built)).model
    assert torch.equal(predicted(again), predicted(workspace.model))


@pytest.fixture
def default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Another one of e3nn's global settings than the file was written under."""
    import e3nn

    name, before = request.param, e3nn.get_optimization_defaults()
    if name not in before:
        pytest.skip(f"this version of e3nn has no {name}")
    e3nn.set_optimization_defaults(**{name: "script" if name == "jit_mode" else not before[name]})
    yield
    e3nn.set_optimization_defaults(**before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("default", ["optimize_einsums", "jit_script_fx", "jit_mode"], indirect=True)
def test_optimisation_defaults_change_neither_keys_nor_function(files: Path) -> None:
    require_as_then("e3nn-0.5.1", open_path(files / "e3nn-0.5.1.pt", OpenOptions(build=built)).model)


@pytest.mark.usefixtures("default")
@pytest.mark.parametrize("default", ["specialized_code"], indirect=True)
def test_the_default_that_adds_buffers_is_said_to(files: Path) -> None:
    with pytest.raises(CheckpointError, match=r"only buffers are missing: build it with the .* global settings"):
        open_path(files / "e3nn-0.5.1.pt", OpenOptions(build=built))


TASK = """
import torch
from tests.families.test_e3nn_versions import built


class Task:
    def batches(self, split, seed):
        raise NotImplementedError

    def loss(self, outputs, batch):
        raise NotImplementedError

    def load_model(self, path):
        stored, model = torch.load(path), built()
        state = model.state_dict()
        state.update({key: value for key, value in stored.items() if key in state})
        model.to(stored["first.weight"].dtype).load_state_dict(state)
        return model


def make_task():
    return Task()
"""


@pytest.mark.parametrize("name", sorted(OTHER_NAMES))
def test_other_names_of_buffers_are_said_and_a_loader_helps(name: str, files: Path, tmp_path: Path) -> None:
    path = files / f"{name}.pt"
    words = r"all its parameters are there and only buffers are missing.*`load_model\(path\)`"
    with pytest.raises(CheckpointError, match=words):
        open_path(path, OpenOptions(build=built))
    (tmp_path / "task.py").write_text(TASK)
    workspace = open_path(path, OpenOptions(task=str(tmp_path / "task.py")))
    require_as_then(name, workspace.model)
    with pytest.raises(CheckpointError, match="export without --container"):
        write_container(workspace.checkpoint, workspace.model.state_dict(), tmp_path / "new.pt")
