"""ViSNet as torch_geometric ships it, from a state dict to a state dict, on molecular dynamics of ethanol."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from surgeon.algebra.groups.parse import parse_group
from surgeon.finding.find import find
from surgeon.opening.task_calls import task_symmetry
from surgeon.support.modes import default_dtype
from surgeon.support.trees import to_dtype
from surgeon.testing.soundness import Model, check_plan
from tests.commands import Surgeon

visnet = pytest.importorskip(
    "torch_geometric.nn.models.visnet", reason="torch_geometric is not installed: make test-pyg"
)

FOLDER = Path(__file__).parents[2] / "examples" / "molecules"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The shipped task file, with its data beside it."""
    folder = tmp_path_factory.mktemp("visnet")
    modules = {}
    for name in ("md17_files", "visnet"):
        spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[name])
    modules["md17_files"].write_both(folder)
    shutil.copy(FOLDER / "visnet.py", folder / "visnet.py")
    modules["visnet"].folder = folder
    return modules["visnet"]


def edges_within(x: Tensor, r: float, batch: Tensor, loop: bool, max_num_neighbors: int) -> Tensor:
    """What pyg-lib would find: pairs (neighbour, centre), the atom itself among them."""
    spatial = pytest.importorskip("scipy.spatial")
    assert loop
    pairs = []
    for graph in batch.unique():
        atoms = (batch == graph).nonzero().squeeze(1)
        tree = spatial.cKDTree(x[atoms].detach().numpy())
        for centre, found in enumerate(tree.query_ball_tree(tree, r)):
            assert len(found) <= max_num_neighbors
            pairs += [(int(atoms[other]), int(atoms[centre])) for other in found]
    return torch.tensor(pairs).T


def sample(example: ModuleType, **settings: Any) -> Model:
    """A small network with random weights, in float64."""
    torch.manual_seed(0)
    task = example.EthanolTask(example.folder / "ethanol_gfn2.npz", batch_size=2)
    small = {"hidden_channels": 8, "num_heads": 2, "num_rbf": 4, **settings}
    net = visnet.ViSNet(**{**example.SETTINGS, **small})
    net.representation_model.distance = example.AllDistances(5.0)
    batch = to_dtype(next(iter(task.batches("validation", 0))), torch.float64)
    return Model(net.double().eval(), (batch,), task_symmetry(task, parse_group("O3")))


HIDDEN = [f"representation_model.vis_mp_layers.{name}" for name in ("1.vec_proj", "1.w_src_proj", "1.w_trg_proj")]
LAST = ["representation_model.vis_mp_layers.2.vec_proj"]
OUTPUT = [f"output_model.output_network.{name}" for name in ("0.vec1_proj", "0.vec2_proj", "1.vec1_proj")]
VERTEX = [f"representation_model.vis_mp_layers.1.{name}" for name in ("t_src_proj", "t_trg_proj")]


@pytest.mark.parametrize(("lmax", "vertex"), [(1, False), (2, True)])
def test_every_linear_map_of_vectors_is_found_and_sound(example: ModuleType, lmax: int, vertex: bool) -> None:
    """That of the first layer gets vectors that are 0; each of the others breaks the symmetry."""
    model = sample(example, lmax=lmax, vertex=vertex)
    symmetry = model.symmetry
    actions = {"act": symmetry.act, "act_output": symmetry.act_output, "forward": symmetry.forward}
    plan = find(model.module, symmetry.group, *model.inputs, **actions)
    assert [site.name for site in plan.sites] == [*HIDDEN, *(VERTEX if vertex else []), *LAST, *OUTPUT]
    assert all(site.fold for site in plan.sites)
    assert {bool(site.fold_note) for site in plan.sites} == {lmax == 2}
    check_plan(model, plan)


@pytest.mark.slow
def test_from_a_state_dict_to_one_that_its_own_class_loads(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(example.folder)
    torch.manual_seed(0)
    torch.save(example.network().state_dict(), "visnet.pt")
    surgeon = Surgeon(example.folder, capsys)
    surgeon("relax", "visnet.pt", "--group", "O3", "--task", "visnet.py", "--strip-mode", "fold", "-o", "relaxed")
    surgeon("finetune", "relaxed", "--epochs", "2", "--lr", "1e-3", "-o", "run")
    report = surgeon("export", "run", "--container", "-o", "clean", "--json").data["certificate"]
    assert report["grade"] == "same function"
    assert report["metrics"]["stripped"]["force_mae"] < report["metrics"]["original"]["force_mae"]
    assert all(
        report["equivariance"]["stripped"]["float64"][part]["maximum"] < 1e-12 for part in ("identity", "inversion")
    )
    assert next(iter(report["equivariance"]["relaxed, theta 1"].values()))["identity"]["median"] > 1e-4
    surgeon("verify", "clean", "--against", "visnet.pt")
    predictions(example, monkeypatch)


def predictions(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare torch_geometric's own class, with its own search for neighbours, with the model of the task."""
    weights = load_file("clean/model.safetensors")
    assert all(torch.equal(value, weights[key]) for key, value in torch.load("clean/visnet.pt").items())
    monkeypatch.setattr(visnet, "radius_graph", edges_within)
    theirs, ours = visnet.ViSNet(**example.SETTINGS), example.network()
    for net in (theirs, ours):
        net.load_state_dict(weights, strict=True)
    assert type(theirs.representation_model.distance) is visnet.Distance
    task = example.EthanolTask(example.folder / "ethanol_gfn2.npz")
    batch = to_dtype(next(iter(task.batches("test", 0))), torch.float64)
    with default_dtype(torch.float64):
        expected, found = (task.forward(net.double().eval(), batch) for net in (theirs, ours))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-9, atol=1e-9 * float(value.detach().abs().max()))
