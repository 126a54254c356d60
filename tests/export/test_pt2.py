"""torch.export archives that are checked before they are written, and that are read without running them."""

from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.insert import relax
from surgeon.editing.strip import strip
from surgeon.errors import CheckFailedError
from surgeon.export.archive import compare_archives, read_archive
from surgeon.export.program import to_program
from surgeon.export.pt2_file import differing_tensors, export_pt2
from surgeon.export.sample import sample_of
from surgeon.export.stripped import Stripped
from surgeon.finding.find import find
from tests.commands import QUICK, Surgeon
from tests.export.archives import in_file
from tests.tiny import Net, TinyTask

TASK = TinyTask()
SAMPLE = sample_of(TASK, torch.float32)
INPUTS = ["scalars", "vectors"]


def beside(model: nn.Module, original: nn.Module | None = None, group: str | None = None) -> Stripped:
    named = None if group is None else parse_group(group)
    double = copy.deepcopy(model).double()
    return Stripped(model, copy.deepcopy(model) if original is None else original, double, TASK, named)


def archive(model: nn.Module) -> Any:
    return in_file(to_program(model, TASK, SAMPLE, INPUTS))


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def exported(net: Net, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    return path, export_pt2(path, beside(net, group="O3"))


def test_the_archive_computes_what_the_model_does_at_any_size(net: Net, exported: tuple[Path, dict[str, Any]]) -> None:
    path, record = exported
    module = torch.export.load(path).module()
    assert record["inputs"] == INPUTS
    for length in (2, 3, 40):
        scalars, vectors = torch.randn(length, 2), torch.randn(length, 2, 3)
        found = module({"scalars": scalars, "vectors": vectors})
        assert list(found) == ["output"]
        torch.testing.assert_close(found["output"], net(scalars, vectors), rtol=1e-5, atol=1e-6)
    assert record["deviation"] <= 1
    assert set(record["equivariance"]) == set(parse_group("O3").component_names)
    json.dumps(record)


def test_tensors_keep_their_names_and_nothing_of_the_task_or_the_machine_is_in_it(
    net: Net, exported: tuple[Path, dict[str, Any]]
) -> None:
    found = read_archive(exported[0])
    assert set(found.weights) == {f"model.{name}" for name in net.state_dict()}
    assert differing_tensors(found, net) == []
    assert str(Path(__file__).parents[2]).encode() not in exported[0].read_bytes()
    with zipfile.ZipFile(exported[0]) as file:
        assert [info.file_size for info in file.infolist() if "sample_inputs" in info.filename] == [0]


def test_graphs_depend_on_the_architecture_and_not_on_weights(net: Net) -> None:
    special, other = copy.deepcopy(net), copy.deepcopy(net)
    with torch.no_grad():
        for parameter in special.parameters():
            parameter.fill_(1.0)
    other.broken = True
    before, same, changed = archive(net), archive(special), archive(other)
    assert compare_archives(before, same) == []
    assert before.digest == same.digest != changed.digest
    assert "nodes in the exported graph" in compare_archives(before, changed)[0]
    assert "first.weight has not the values of the model" in differing_tensors(before, special)


def test_a_constant_counts_by_value(net: Net) -> None:
    class Shifted(Net):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.register_buffer("shift", torch.tensor(shift), persistent=False)

        def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
            return super().forward(scalars, vectors) + self.shift

    found = compare_archives(archive(Shifted(0.5)), archive(Shifted(0.25)))
    assert len(found) == 1
    assert found[0].startswith("constant model.shift of the exported graph")


def test_a_branch_is_refused_even_at_theta_zero_and_stripping_gives_the_graph_back(net: Net) -> None:
    model = copy.deepcopy(net)
    batch = next(iter(TASK.batches("train", 0)))
    relaxation = relax(model, find(model, "O3", batch["scalars"], batch["vectors"]), dense=True)
    with pytest.raises(CheckFailedError, match=r"strip it first.*--drop.*--fold"):
        to_program(model, TASK, SAMPLE)
    strip(relaxation, "drop")
    assert compare_archives(archive(net), archive(model)) == []


class Stuck(Net):
    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        return super().forward(scalars, vectors) * (2.0 if scalars.sum() > 0 else 1.0)


class Force(Net):
    """The derivative of a scalar with respect to the vectors."""

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        vectors = vectors.detach().requires_grad_(True)
        energy = super().forward(scalars, vectors).square().sum()
        return -torch.autograd.grad(energy, vectors)[0]


class WrongForce(Force):
    """One component has the wrong sign."""

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        return super().forward(scalars, vectors) * torch.tensor([1.0, 1.0, -1.0])


@pytest.mark.slow
def test_derivatives_inside_the_forward_become_operations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = Force(), tmp_path / "model.pt2"
    record = export_pt2(path, beside(model, group="O3"))
    assert record["deviation"] <= 1
    assert set(read_archive(path).weights) == {f"model.{name}" for name in model.state_dict()}
    with torch.no_grad():
        scalars, vectors = torch.randn(1, 2), torch.randn(1, 2, 3)
        found = torch.export.load(path).module()({"scalars": scalars, "vectors": vectors})["output"]
    torch.testing.assert_close(found, model(scalars, vectors), rtol=1e-5, atol=1e-6)
    with pytest.raises(CheckFailedError, match="the model does not compute as the original"):
        export_pt2(path, beside(model, Net()))
    with pytest.raises(CheckFailedError, match="in the torch.export archive f.g x. and g f.x. differ"):
        export_pt2(path, beside(WrongForce(), group="O3"))


def test_what_differs_or_cannot_be_exported_is_said(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(CheckFailedError, match="the model does not compute as the original"):
        export_pt2(path, beside(net, Net(hidden=3)))
    broken = Net(broken=True)
    with pytest.raises(CheckFailedError, match="in the torch.export archive f.g x. and g f.x. differ .* identity"):
        export_pt2(path, beside(broken, group="O3"))
    with pytest.raises(CheckFailedError, match="Stuck cannot be exported: "):
        export_pt2(path, beside(Stuck()))


def rewritten(path: Path, target: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Copy an archive with its records changed."""
    with zipfile.ZipFile(path) as file:
        records = {name.partition("/")[2]: file.read(name) for name in file.namelist()}
    change(records)
    with zipfile.ZipFile(target, "w") as file:
        for name, content in records.items():
            file.writestr(f"model/{name}", content)
    return target


def other_node(records: dict[str, bytes]) -> None:
    records["models/model.json"] = records["models/model.json"].replace(b"aten.tanh.default", b"aten.sinh.default")


def other_scale(records: dict[str, bytes]) -> None:
    records["models/model.json"] = records["models/model.json"].replace(b"0.7071067811865476", b"0.7071067811865475")


def other_weight(records: dict[str, bytes]) -> None:
    name = next(name for name, content in records.items() if name.startswith("data/weights/weight") and content)
    records[name] = bytes([records[name][0] ^ 1]) + records[name][1:]


@pytest.mark.parametrize("change", [other_node, other_scale])
def test_a_changed_node_is_found(exported: tuple[Path, Any], tmp_path: Path, change: Any) -> None:
    found = read_archive(rewritten(exported[0], tmp_path / "changed.pt2", change))
    (told, *_) = compare_archives(read_archive(exported[0]), found)
    assert told.startswith("node ")


def test_a_changed_weight_is_found(net: Net, exported: tuple[Path, Any], tmp_path: Path) -> None:
    found = read_archive(rewritten(exported[0], tmp_path / "changed.pt2", other_weight))
    assert compare_archives(read_archive(exported[0]), found) == []
    (told,) = differing_tensors(found, net)
    assert "has not the values" in told


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def pickled_flag(records: dict[str, bytes]) -> None:
    name = "data/weights/model_weights_config.json"
    records[name] = records[name].replace(b'"use_pickle": false', b'"use_pickle": true', 1)
    records["data/weights/weight_0"] = pickle.dumps(Bomb())


def sample_inputs(records: dict[str, bytes]) -> None:
    records["data/sample_inputs/model.pt"] = pickle.dumps(Bomb())


def legacy_weights(records: dict[str, bytes]) -> None:
    records["data/weights/model.pt"] = pickle.dumps(Bomb())


@pytest.mark.parametrize("change", [pickled_flag, sample_inputs, legacy_weights])
def test_what_torch_would_unpickle_is_refused_and_not_run(
    exported: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckFailedError, match="pickle, which would run code|which was not exported"):
        read_archive(rewritten(exported[0], tmp_path / "bomb.pt2", change))
    assert not Path("exploded").exists()


def test_a_damaged_archive_ends_in_a_sentence(exported: tuple[Path, Any], tmp_path: Path) -> None:
    content = exported[0].read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"PK\x03\x04" + content[50:]):
        (tmp_path / "model.pt2").write_bytes(damaged)
        with pytest.raises(CheckFailedError, match="cannot be read as a torch.export archive"):
            read_archive(tmp_path / "model.pt2")


def test_the_command_writes_a_checked_archive(surgeon: Surgeon, work: Path) -> None:
    surgeon.once("relax", "net.pt", "--group", "O3", "--task", "task.py", "-o", "relaxed")
    told = surgeon("export", "relaxed", "-o", "clean", "--pt2", *QUICK).out
    assert "exporting the model with torch.export" in told
    assert json.loads((work / "clean/certificate.json").read_text())["details"]["pt2"]["deviation"] <= 1
    torch.export.load(work / "clean/model.pt2")


def test_a_full_disk_is_told_as_that(surgeon: Surgeon, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    surgeon.once("relax", "net.pt", "--group", "O3", "--task", "task.py", "-o", "relaxed")
    monkeypatch.setattr(Path, "write_bytes", full)
    told = surgeon("export", "relaxed", "-o", "full", "--pt2", *QUICK, code=2).err
    assert "the disk is full" in told
    assert "unexpected" not in told
    assert not (work / "full").exists()
