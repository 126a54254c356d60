"""Batches of torch_geometric as inputs of a network, of which the engine itself does not import anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.finding.find import find
from surgeon.opening.task_calls import task_symmetry
from surgeon.support.trees import equal, map_tensors, tensor_at, tensor_leaves, to_device, to_dtype, with_tensor
from surgeon.testing.soundness import Model, check_plan
from tests.commands import CHILD_ENVIRONMENT, QUICK, Surgeon

pyg = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed: make test-pyg")

from tests.families import pyg_task  # noqa: E402 (it needs torch_geometric)

TASK = pyg_task.task
EDGES = ("atom", "near", "site")


def batch_of(split: str = "validation") -> Any:
    return next(TASK.batches(split, 0))


def hetero() -> Any:
    """Two kinds of nodes, and edges between them."""
    data = pyg.HeteroData()
    data["atom"].pos, data["site"].pos = torch.randn(4, 3), torch.randn(2, 3)
    data[EDGES].edge_index = torch.tensor([[0, 1, 2], [0, 1, 1]])
    return data


MAKERS: list[Any] = [
    lambda: pyg_task.graph(torch.Generator().manual_seed(0), 4),
    batch_of,
    hetero,
    lambda: pyg.Batch.from_data_list([hetero(), hetero()]),
]
IDS = ["Data", "Batch", "HeteroData", "hetero batch"]


@pytest.mark.parametrize("make", MAKERS, ids=IDS)
def test_every_tensor_is_mapped_and_the_original_untouched(make: Any) -> None:
    batch = make()
    before = {path: value.clone() for path, value in tensor_leaves(batch).items()}
    assert len(before) >= 2
    doubled = to_dtype(batch, torch.float64)
    assert type(doubled) is type(batch)
    for path, value in tensor_leaves(doubled).items():
        assert value.dtype == (torch.float64 if before[path].is_floating_point() else before[path].dtype)
    assert tensor_leaves(to_device(batch, "meta")).keys() == before.keys()
    assert all(value.is_meta for value in tensor_leaves(to_device(batch, "meta")).values())
    shifted = map_tensors(lambda tensor: tensor + 1, batch)
    assert all(torch.equal(value, before[path] + 1) for path, value in tensor_leaves(shifted).items())
    assert all(torch.equal(value, before[path]) for path, value in tensor_leaves(batch).items())
    assert equal(batch, map_tensors(Tensor.clone, batch))
    assert not equal(batch, shifted)


@pytest.mark.parametrize("make", MAKERS, ids=IDS)
def test_one_tensor_is_read_and_replaced_by_its_path(make: Any) -> None:
    batch = make()
    if isinstance(batch, pyg.HeteroData):
        assert ("atom__near__site", "edge_index") in tensor_leaves(batch)
    for path, value in tensor_leaves(batch).items():
        replaced = with_tensor(batch, path, value + 1)
        assert torch.equal(tensor_at(replaced, path), value + 1)
        assert torch.equal(tensor_at(batch, path), value)
        others = {other: tensor for other, tensor in tensor_leaves(replaced).items() if other != path}
        assert all(torch.equal(tensor, tensor_at(batch, other)) for other, tensor in others.items())


class MixEdges(nn.Module):
    """A linear map that is given all nodes and edges, and mixes the channels of vectors on edges of one type."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, data: Any) -> Any:
        result = data.clone()
        result[EDGES].vectors = data[EDGES].vectors @ self.weight.T
        return result


class HeteroNet(nn.Module):
    """Vectors on edges to one vector per edge."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.readout = nn.Linear(3, 3, bias=False), MixEdges(), nn.Linear(3, 1, bias=False)

    def forward(self, data: Any) -> Tensor:
        given = data.clone()
        given[EDGES].vectors = self.embed(data[EDGES].vectors)
        vectors = self.mix(given)[EDGES].vectors
        return self.readout(vectors * vectors.norm(dim=1, keepdim=True)).squeeze(-1)


def test_a_branch_reads_and_writes_features_on_edges_of_one_type() -> None:
    net, data = HeteroNet().double(), hetero()
    data[EDGES].vectors = torch.randn(3, 3, 3, dtype=torch.float64)

    def act(g: Tensor, data: Any) -> Any:
        moved = data.clone()
        moved[EDGES].vectors = torch.einsum("ij,ejc->eic", g, data[EDGES].vectors)
        return moved

    model = Model(net, (data,), Symmetry(parse_group("O3"), act, lambda g, y: y @ g.T))
    plan = find(net, "O3", data, act=act, act_output=model.symmetry.act_output)
    sites = {site.name: site for site in plan.sites}
    assert sites.keys() == {"embed", "mix", "readout"}
    assert sites["mix"].path_in == sites["mix"].path_out == ("atom__near__site", "vectors")
    check_plan(model, plan)


def test_a_mapped_batch_still_knows_its_graphs() -> None:
    batch = to_dtype(batch_of(), torch.float64)
    assert batch.num_graphs == len(pyg_task.SIZES)
    assert batch[1].num_nodes == pyg_task.SIZES[1]
    assert batch.name == ["q"] * 3


def sample() -> Model:
    torch.manual_seed(0)
    net, batch = pyg_task.Net().double().eval(), to_dtype(batch_of(), torch.float64)
    return Model(net, (batch,), task_symmetry(TASK, parse_group("O3")))


def test_sites_are_found_and_sound() -> None:
    """Annotated, and measured alone; each branch breaks the symmetry."""
    model = sample()
    plan = find(model.module, "O3", *model.inputs)
    assert [site.name for site in plan.sites] == [
        *("embed", "layers.0.linear", "layers.0.product", "layers.1.linear", "layers.1.product", "readout")
    ]
    measured = find(
        model.module,
        "O3",
        *model.inputs,
        act=TASK.act,
        act_output=TASK.act_output,
        adapters={},
    )
    assert {site.name for site in measured.sites} == {site.name for site in plan.sites}
    check_plan(model, plan)


@pytest.mark.slow
def test_from_a_checkpoint_to_clean_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(pyg_task.__file__, tmp_path / "task.py")
    torch.manual_seed(0)
    torch.save(pyg_task.Net().state_dict(), tmp_path / "net.pt")
    surgeon = Surgeon(tmp_path, capsys)
    plan = surgeon("inspect", "net.pt", "--group", "O3", "--task", "task.py", "--json").data["plan"]
    assert len(plan["sites"]) == 6
    assert all(site["verified"] for site in plan["sites"])
    surgeon("relax", "net.pt", "--group", "O3", "--task", "task.py", "--strip-mode", "fold", "-o", "relaxed")
    surgeon("finetune", "relaxed", "--epochs", "3", "--lr", "1e-2", "-o", "run")
    report = surgeon("export", "run", *QUICK, "-o", "clean", "--json").data["certificate"]
    assert report["grade"] == "same function"
    assert report["metrics"]["stripped"]["loss"] < report["metrics"]["original"]["loss"]
    assert report["equivariance"]["stripped"]["float64"]["identity"]["maximum"] < 1e-12
    assert next(iter(report["equivariance"]["relaxed, theta 1"].values()))["identity"]["median"] > 1e-3
    net = pyg_task.Net()
    net.load_state_dict(load_file(tmp_path / "clean" / "model.safetensors"), strict=True)
    total = sum(float(TASK.loss(net(batch), batch).detach()) for batch in TASK.batches("test", 0))
    assert total / 3 == pytest.approx(report["metrics"]["stripped"]["loss"], rel=1e-4)


def test_the_engine_does_not_import_it() -> None:
    code = "import sys, surgeon, surgeon.opening.open, surgeon.training; print('torch_geometric' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=CHILD_ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
