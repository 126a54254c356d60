"""The point cloud example: the layers and classifiers of vector neurons, clouds and task."""

from __future__ import annotations

import doctest
import functools
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import ShapeError, UsageError
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import task_symmetry
from surgeon.plan import Plan, Task
from surgeon.testing.soundness import Model, check_plan
from surgeon_adapters.zoo.vector_neurons import layers
from tests.modules import importable

EXAMPLE = Path(__file__).parents[2] / "examples" / "pointcloud"
NETWORKS = ("pointnet", "dgcnn")
POOLINGS = ("mean", "max")
CLASSES = 10
# Relative errors in float64.
TOLERANCE = 1e-9
BROKEN = 1e-5


@pytest.fixture(scope="module", autouse=True)
def example() -> Iterator[None]:
    with importable(EXAMPLE):
        yield


@pytest.fixture
def task() -> Any:
    return small_task()


def small_task(**arguments: Any) -> Any:
    settings = {
        "points": 12,
        "count": 10,
        "held_out": 5,
        "base": 6,
        "neighbours": 4,
        "batch_size": 4,
        "dtype": "float64",
    }
    return import_module("task").make_task(**{**settings, **arguments})


def network(name: str, pooling: str = "mean") -> nn.Module:
    """A small network in evaluation mode, whose batch normalisation has seen some data."""
    torch.manual_seed(0)
    task = small_task(network=name, pooling=pooling)
    model: nn.Module = task.model().double()
    for seed in range(5):
        for batch in task.batches("train", seed):
            model(batch["points"])
    return model.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(seed: int = 1) -> Tensor:
    turn, _ = torch.linalg.qr(normal(3, 3, seed=seed))
    return turn * torch.det(turn)


def relative_error(model: nn.Module, g: Tensor) -> float:
    task = small_task()
    with torch.no_grad():
        batch = next(iter(task.batches("test", 0)))
        outputs = task.act_output(g, task.forward(model, batch))
        return relative_difference(task.forward(model, task.act(g, batch)), outputs)


# Layers against their definitions


def test_leaky_relu_shrinks_what_points_against_the_direction() -> None:
    x, direction = normal(2, 4, 3, 5), normal(2, 1, 3, 5, seed=1)
    bent = layers.bend(x, direction, 0.2)
    unit = direction / direction.norm(dim=2, keepdim=True)
    before, after = (x * unit).sum(2), (bent * unit).sum(2)
    torch.testing.assert_close(after, torch.where(before < 0, 0.2 * before, before), rtol=0, atol=1e-4)
    across = x - before.unsqueeze(2) * unit
    torch.testing.assert_close(bent - after.unsqueeze(2) * unit, across, rtol=0, atol=1e-12)
    assert bool((before < 0).any())
    assert bool((before > 0).any())


@pytest.mark.parametrize("shape", [(2, 4, 3), (2, 4, 3, 5), (2, 4, 3, 5, 6)])
def test_layers_mix_channels_only(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = normal(*shape)
    linear = layers.VNLinear(4, 7).double()
    expected = torch.einsum("dc,bc...->bd...", linear.map_to_feat.weight, x)
    torch.testing.assert_close(linear(x), expected)
    block = layers.VNLinearLeakyReLU(4, 7, dim=len(shape)).double().eval()
    relu = layers.VNLeakyReLU(4, share_nonlinearity=True).double()
    g = rotation()
    for module in (linear, block, relu, layers.VNStdFeature(4, dim=len(shape)).double().eval()):
        moves = not isinstance(module, layers.VNStdFeature)
        with torch.no_grad():
            turned, result = module(torch.einsum("ij,bcj...->bci...", g, x)), module(x)
        if not moves:
            frames = turned[1], result[1]
            torch.testing.assert_close(
                frames[0], torch.einsum("ij,bcj...->bci...", g, frames[1]), rtol=0, atol=TOLERANCE
            )
            turned, result = turned[0], result[0]
        expected = torch.einsum("ij,bcj...->bci...", g, result) if moves else result
        torch.testing.assert_close(turned, expected, rtol=0, atol=TOLERANCE)
        assert not moves or float((turned - result).detach().norm()) > 0.1 * float(result.detach().norm())


def test_batch_normalisation_changes_lengths_only() -> None:
    norm = layers.VNBatchNorm(4, dim=4).double()
    x = normal(3, 4, 3, 5)
    y = norm(x)
    torch.testing.assert_close(torch.linalg.cross(x, y, dim=2), torch.zeros_like(x), rtol=0, atol=1e-12)
    lengths = y.square().sum(2).sqrt() * (x * y).sum(2).sign()
    torch.testing.assert_close(lengths, norm.bn(x.norm(dim=2)), rtol=0, atol=1e-4)


def test_max_pooling_takes_the_furthest_vector() -> None:
    torch.manual_seed(0)
    pool = layers.VNMaxPool(4).double()
    x = normal(2, 4, 3, 5, 6)
    directions = torch.einsum("dc,bc...->bd...", pool.map_to_dir.weight.detach(), x)
    result = pool(x)
    for b, c, n in torch.cartesian_prod(torch.arange(2), torch.arange(4), torch.arange(5)).tolist():
        scores = [float(x[b, c, :, n, k] @ directions[b, c, :, n, k]) for k in range(6)]
        assert torch.equal(result[b, c, :, n], x[b, c, :, n, scores.index(max(scores))])


def test_neighbours_are_the_nearest() -> None:
    x = normal(2, 2, 3, 7)
    features = layers.neighbour_features(x, 3, cross=True)
    assert features.shape == (2, 6, 3, 7, 3)
    for b in range(2):
        flat = x[b].flatten(0, 1).T
        nearest = torch.cdist(flat, flat).argsort(-1)[:, :3]
        other = x[b][:, :, nearest]
        own = x[b].unsqueeze(-1).expand_as(other)
        expected = torch.cat([other - own, own, torch.linalg.cross(other, own, dim=1)])
        torch.testing.assert_close(features[b], expected)


# Symmetry


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_invariant_under_rotations(name: str, pooling: str) -> None:
    model = network(name, pooling)
    assert relative_error(model, rotation()) < TOLERANCE
    shear = torch.eye(3, dtype=torch.float64)
    shear[0, 1] = 0.5
    assert relative_error(model, shear) > BROKEN


@pytest.mark.parametrize("name", NETWORKS)
def test_mixing_components_is_not_invariant(name: str) -> None:
    """Negative twin: one linear layer adds each vector's components in another order."""
    model = network(name)
    layer = model.get_submodule("feat.std_feature.vn_lin" if name == "pointnet" else "std_feature.vn_lin")
    layer.register_forward_hook(lambda module, args, output: output + output.roll(1, dims=-2) * output.new_tensor(0.5))
    g = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
    assert relative_error(model, g) > BROKEN


def test_only_dgcnn_is_invariant_under_reflections() -> None:
    inversion = -torch.eye(3, dtype=torch.float64)
    assert relative_error(network("dgcnn"), inversion) < TOLERANCE
    assert relative_error(network("pointnet"), inversion) > BROKEN


@pytest.mark.parametrize("name", NETWORKS)
def test_order_of_points_does_not_matter(name: str) -> None:
    model = network(name)
    x = next(iter(small_task().batches("test", 0)))["points"]
    with torch.no_grad():
        assert relative_difference(model(x.flip(-1)), model(x)) < TOLERANCE
        assert relative_difference(model(x.flip(0)), model(x)) > BROKEN


@functools.cache
def measured_plan(name: str, pooling: str) -> Plan:
    """Return what is found without labels."""
    task = small_task(network=name)
    batch, actions = next(iter(task.batches("train", 0))), {"act": task.act, "act_output": task.act_output}
    return surgeon.find(network(name, pooling), "SO3", batch, forward=task.forward, adapters={}, **actions)


@pytest.mark.parametrize(("name", "pooling"), list(zip(NETWORKS, POOLINGS, strict=True)))
def test_annotation_and_measurement_agree_and_the_plan_is_sound(name: str, pooling: str) -> None:
    task, model = small_task(network=name), network(name, pooling)
    batch = next(iter(task.batches("train", 0)))
    actions: Any = {"act": task.act, "act_output": task.act_output}
    annotated = surgeon.find(model, "SO3", batch, forward=task.forward)
    measured = measured_plan(name, pooling)
    both = surgeon.find(model, "SO3", batch, forward=task.forward, **actions)
    keys = [[site.key for site in plan.sites] for plan in (annotated, measured, both)]
    assert keys[0] == keys[1] == keys[2]
    assert {site.source for site in both.sites} == {"both"}
    assert not both.notes
    assert not [entry for entry in both.audit if entry.coverage in ("unexplained", "not equivariant")]
    check_plan(Model(model, (batch,), task_symmetry(task, parse_group("SO3"))), measured)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_keeps_the_equivariant_part(name: str) -> None:
    task, model = small_task(network=name), network(name)
    batch = next(iter(task.batches("train", 0)))
    plan = surgeon.find(model, "SO3", batch, forward=task.forward)
    original = task.forward(model, batch)
    relaxation = surgeon.relax(model, plan, dense=True, mode="fold", init_scale=1.0)
    relaxation.set_theta(0.0, 1.0)
    with relaxation.clean():
        clean = task.forward(model, batch)
    surgeon.strip(model)
    folded = task.forward(model, batch)
    assert relative_difference(folded, clean) < TOLERANCE
    assert relative_difference(folded, original) > 1e-6


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_measurement_finds_every_linear_layer_on_vectors(name: str, pooling: str) -> None:
    model, plan = network(name, pooling), measured_plan(name, pooling)
    on_vectors = [
        child
        for child, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.bias is None and "pool" not in child
    ]
    assert sorted(site.name for site in plan.sites) == sorted(on_vectors)
    with_neighbours = {"pointnet": ("feat.conv_pos.",), "dgcnn": ("conv1.", "conv2.", "conv3.", "conv4.")}[name]
    for site in plan.sites:
        expected = (-3, -1) if site.name.startswith(with_neighbours) else (-2, -1)
        assert (site.axes_in, site.axes_out) == (expected, expected)
        into, channels = model.get_submodule(site.name).weight.shape
        assert site.shape == (3 * into, 3 * channels)


# Task


def test_doctests() -> None:
    result = doctest.testmod(import_module("task"), extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0


def test_task_has_the_protocol(task: Any) -> None:
    batch = next(iter(task.batches("validation", 0)))
    assert isinstance(task, Task)
    assert set(task.input_names) < set(batch)
    metrics = task.metrics(torch.zeros(len(batch["labels"]), CLASSES), batch)
    assert task.primary_metric in metrics
    assert set(metrics) == set(task.units)


def test_batches_depend_on_split_and_seed_only(task: Any) -> None:
    def rows(source: Any, split: str, seed: int) -> Tensor:
        return torch.cat([batch["points"] for batch in source.batches(split, seed)])

    first = rows(task, "train", 0)
    assert first.shape == (10, 3, 12)
    assert torch.equal(rows(task, "train", 0), first)
    assert not torch.equal(rows(task, "train", 1), first)
    assert torch.equal(rows(task, "train", 1).flatten().sort()[0], first.flatten().sort()[0])
    assert torch.equal(rows(task, "validation", 0), rows(task, "validation", 1))
    assert not torch.equal(rows(task, "validation", 0), rows(task, "test", 0))
    assert torch.equal(rows(small_task(), "train", 0), first)
    assert not torch.equal(rows(small_task(data_seed=1), "train", 0), first)


def test_batches_are_fresh_objects(task: Any) -> None:
    for batch in task.batches("test", 0):
        batch["points"].zero_()
    assert all(float(batch["points"].abs().sum()) > 0 for batch in task.batches("test", 0))


def test_a_single_cloud_is_no_training_batch() -> None:
    task = small_task(count=9, held_out=1)
    sizes = {split: [len(b["labels"]) for b in task.batches(split, 0)] for split in ("train", "test")}
    assert sizes == {"train": [4, 4], "test": [1]}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_action_turns_points_and_leaves_its_input_alone(dtype: str) -> None:
    task = small_task(dtype=dtype)
    batch = next(iter(task.batches("test", 0)))
    copies = {name: value.clone() for name, value in batch.items()}
    g = rotation()
    acted = task.act(g, batch)
    assert all(torch.equal(batch[name], copies[name]) for name in batch)
    assert torch.equal(acted["labels"], batch["labels"])
    expected = torch.einsum("ij,bjn->bin", g, batch["points"].double()).to(batch["points"].dtype)
    torch.testing.assert_close(acted["points"], expected)
    assert not torch.equal(acted["points"], batch["points"])
    assert torch.equal(task.act_output(g, acted["points"]), acted["points"])


def test_loss_and_metrics_agree(task: Any) -> None:
    batch = next(iter(task.batches("test", 0)))
    outputs = normal(len(batch["labels"]), CLASSES)
    total, count = task.metrics(outputs, batch)["cross_entropy"]
    assert count == len(batch["labels"])
    assert total / count == pytest.approx(task.loss(outputs, batch).item())
    right = torch.nn.functional.one_hot(batch["labels"], CLASSES).double()
    assert task.metrics(right, batch)["accuracy"] == (count, count)
    assert task.metrics(-right, batch)["accuracy"] == (0.0, count)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_all_weights_but_those_that_choose(name: str, pooling: str) -> None:
    torch.manual_seed(0)
    task = small_task(network=name, pooling=pooling)
    model = task.model().double()
    batch = next(iter(task.batches("train", 0)))
    task.loss(task.forward(model, batch), batch).backward()
    without = {key for key, value in model.named_parameters() if value.grad is None or not bool(value.grad.any())}
    assert without == {key for key in model.state_dict() if "pool" in key}
    assert bool(without) is (pooling == "max")


@pytest.mark.parametrize("name", NETWORKS)
def test_training_uses_the_points(name: str) -> None:
    """Balanced labels: an answer that ignores the points has a cross-entropy of at least that of equal odds."""
    task = small_task(network=name, count=20, batch_size=20)
    batch = next(iter(task.batches("train", 0)))
    assert trained_loss(task, batch) < math.log(CLASSES) - 0.1
    same = {**batch, "points": batch["points"][:1].expand_as(batch["points"]).contiguous()}
    assert trained_loss(task, same) > math.log(CLASSES) - 1e-6


def trained_loss(task: Any, batch: dict[str, Tensor]) -> float:
    """Fit one batch, without dropout, and return the loss at the end."""
    torch.manual_seed(0)
    model = task.model().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(task.forward(model, batch), batch).backward()
        optimizer.step()
    with torch.no_grad():
        return float(task.loss(task.forward(model, batch), batch))


def test_pretraining_writes_the_published_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py", reason="h5py is not installed: make test")
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--epochs", "0", "--output", str(tmp_path)])
    import_module("pretrain").main()
    workspace = open_path(tmp_path / "vn_pointnet.pth", OpenOptions(task=f"vn:{tmp_path / 'ply_data_train0.h5'}"))
    batch = next(iter(workspace.require_task().task.batches("validation", 0)))
    assert batch["points"].shape == (32, 3, 64)
    assert workspace.model(batch["points"]).shape == (32, CLASSES)


def test_errors_say_what_to_do(task: Any) -> None:
    with pytest.raises(UsageError, match="train, validation, test, got 'dev'"):
        next(iter(task.batches("dev", 0)))
    with pytest.raises(ShapeError, match=r"\(3, 3\), got \(4, 4\)"):
        task.act(torch.eye(4), next(iter(task.batches("test", 0))))
    for arguments, message in (
        ({"network": "transformer"}, "pointnet or dgcnn, got 'transformer'"),
        ({"pooling": "median"}, "mean or max, got 'median'"),
        ({"dtype": "half"}, "float32 or float64, got 'half'"),
        ({"neighbours": 13}, "1 to 12 neighbours, got 13"),
        ({"held_out": 0}, "at least 1 held-out cloud, got 0"),
        ({"batch_size": 1}, "at least 2 clouds per batch, got 1"),
        ({"base": 2}, "at least 3, got 2"),
    ):
        with pytest.raises(UsageError, match=message):
            small_task(**arguments)
