"""The N-body example: simulator, network, task and shipped checkpoint."""

from __future__ import annotations

import doctest
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from surgeon.errors import ShapeError, UsageError
from surgeon.plan import Task
from tests.modules import importable

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "nbody"
CHECKPOINT = EXAMPLE / "segnn_nbody.safetensors"
# Relative errors: float32 through four layers of products, and float64.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}

pytestmark = pytest.mark.e3nn
Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module", autouse=True)
def example() -> Iterator[None]:
    with importable(EXAMPLE):
        yield


@pytest.fixture
def simulate() -> ModuleType:
    return import_module("simulate")


@pytest.fixture
def segnn() -> ModuleType:
    return import_module("segnn")


@pytest.fixture
def task_module() -> ModuleType:
    return import_module("task")


@pytest.fixture
def task(task_module: ModuleType) -> Any:
    return task_module.make_task(train_samples=6, validation_samples=4, test_samples=4, batch_size=4)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    """Four trajectories of the benchmark's public generator, the last one with close encounters."""
    with np.load(ROOT / "tests" / "data" / "nbody_slice.npz") as data:
        return dict(data)


def homogeneous(diagonal: float, shift: float) -> Tensor:
    """The multiple of the unit matrix, and the translation along x, as a homogeneous matrix, float64."""
    g = torch.diag(torch.tensor([diagonal, diagonal, diagonal, 1.0], dtype=torch.float64))
    g[0, 3] = shift
    return g


def element(seed: int, *, reflect: bool = False, shift: float = 1.0) -> Tensor:
    """A random element of E(3) as a homogeneous matrix, float64."""
    generator = torch.Generator().manual_seed(seed)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    g = torch.eye(4, dtype=torch.float64)
    g[:3, :3] = turn * torch.det(turn) * (-1 if reflect else 1)
    g[:3, 3] = shift * torch.randn(3, generator=generator, dtype=torch.float64)
    return g


def inputs(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positions, velocities = torch.randn(2, 3, 5, 3, generator=generator, dtype=torch.float64).to(dtype)
    charges = 2 * torch.randint(0, 2, (3, 5), generator=generator).to(dtype) - 1
    return {"positions": positions, "velocities": velocities, "charges": charges}


# Simulator


def test_frames_equal_the_reference(simulate: ModuleType, reference: dict[str, np.ndarray]) -> None:
    positions, velocities = reference["positions"], reference["velocities"]
    for frame in range(simulate.TRAJECTORY_FRAMES - 1):
        start = (positions[:, frame], velocities[:, frame], reference["charges"])
        result = simulate.simulate(*start, steps=100, frame_interval=100, strength=1.0)
        np.testing.assert_allclose(result.positions[:, 0], positions[:, frame + 1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(result.velocities[:, 0], velocities[:, frame + 1], rtol=0, atol=1e-12)


def test_another_strength_leaves_the_reference(simulate: ModuleType, reference: dict[str, np.ndarray]) -> None:
    start = (reference["positions"][:, 0], reference["velocities"][:, 0], reference["charges"])
    result = simulate.simulate(*start, steps=100, strength=1.01)
    assert np.abs(result.positions[:, 0] - reference["positions"][:, 1]).max() > 1e-6


def test_equals_a_loop_over_particles(simulate: ModuleType) -> None:
    positions, velocities, charges = simulate.initial_conditions(1, seed=3)
    result = simulate.simulate(positions, velocities, charges, steps=20, frame_interval=10, strength=0.7)
    x, v, q = positions[0].copy(), velocities[0].copy(), charges[0]
    for _ in range(20):
        forces = np.zeros((5, 3))
        for i in range(5):
            for j in set(range(5)) - {i}:
                forces[i] += 0.7 * q[i] * q[j] * (x[i] - x[j]) / np.linalg.norm(x[i] - x[j]) ** 3
        v += 0.001 * np.clip(forces, -100, 100)
        x += 0.001 * v
    assert result.positions.shape == (1, 2, 5, 3)
    np.testing.assert_allclose(result.positions[0, -1], x, rtol=0, atol=1e-13)


def test_force_is_clipped(simulate: ModuleType) -> None:
    positions = np.array([[[0.0, 0.0, 0.0], [0.01, 0.0, 0.0]]])
    result = simulate.simulate(positions, np.zeros_like(positions), np.ones((1, 2)), steps=1, frame_interval=1)
    np.testing.assert_allclose(result.velocities[0, 0, :, 0], [-0.1, 0.1], rtol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
def test_inputs_stay_as_they_are(simulate: ModuleType, count: int) -> None:
    start = simulate.initial_conditions(count, seed=0)
    copies = [array.copy() for array in start]
    simulate.simulate(*start, steps=10, frame_interval=10)
    for array, copy in zip(start, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_blocks_do_not_change_the_result(simulate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    start = simulate.initial_conditions(5, seed=1)
    whole = simulate.simulate(*start, steps=100)
    monkeypatch.setattr(simulate, "CHUNK", 2)
    np.testing.assert_allclose(simulate.simulate(*start, steps=100).positions, whole.positions, rtol=0, atol=1e-12)


def test_initial_conditions(simulate: ModuleType) -> None:
    positions, velocities, charges = simulate.initial_conditions(2000, seed=5)
    np.testing.assert_allclose(np.linalg.norm(velocities, axis=-1), 0.5, rtol=1e-12)
    assert set(np.unique(charges)) == {-1.0, 1.0}
    assert abs(charges.mean()) < 0.05
    assert abs(positions.std() - 1) < 0.02
    assert abs(velocities.mean()) < 0.01
    np.testing.assert_array_equal(simulate.initial_conditions(2000, seed=5)[0], positions)
    assert not np.array_equal(simulate.initial_conditions(2000, seed=6)[0], positions)


def test_pairs_are_frames_30_and_40(simulate: ModuleType) -> None:
    start = simulate.initial_conditions(2, seed=4)
    frames = simulate.simulate(*start, steps=4100)
    pairs = simulate.dataset(2, seed=4)
    np.testing.assert_array_equal(pairs.positions, frames.positions[:, 30])
    np.testing.assert_array_equal(pairs.velocities, frames.velocities[:, 30])
    np.testing.assert_array_equal(pairs.targets, frames.positions[:, 40])
    np.testing.assert_array_equal(pairs.charges, start[2])


def test_bad_shapes_are_named(simulate: ModuleType) -> None:
    positions, velocities, charges = simulate.initial_conditions(2, seed=0)
    with pytest.raises(ValueError, match=r"got \(2, 5, 3\), \(2, 5, 3\) and \(2, 4\)"):
        simulate.simulate(positions, velocities, charges[:, 1:], steps=1)
    with pytest.raises(ValueError, match="at least 1 step, got 0"):
        simulate.simulate(positions, velocities, charges, steps=1, frame_interval=0)


def test_simulator_command_line(
    simulate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs.npz"
    monkeypatch.setattr(sys, "argv", ["simulate.py", str(output), "--count", "2", "--seed", "9", "--strength", "0.5"])
    simulate.main()
    assert "2 trajectories" in capsys.readouterr().out
    expected = simulate.dataset(2, 9, 0.5)
    with np.load(output) as data:
        for field in fields(expected):
            np.testing.assert_array_equal(data[field.name], getattr(expected, field.name))


# Network


def relative_error(forward: Forward, g: Tensor, batch: dict[str, Tensor], task: Any) -> float:
    """Relative deviation of forward(g x) from g forward(x), the displacement being the scale."""
    positions = batch["positions"]
    plain = forward(positions, batch["velocities"], batch["charges"])
    acted = task.act(g, batch)
    difference = forward(acted["positions"], acted["velocities"], acted["charges"]) - task.act_output(g, plain)
    return float((difference.norm() / (plain - positions).norm()).item())


Build = Callable[..., Any]


@pytest.fixture(scope="module")
def build(example: None) -> Build:
    """Small networks, each built once, in its dtype: constants of e3nn would otherwise keep float32's rounding."""

    @functools.cache
    def build_network(dtype: torch.dtype, lmax: int = 1) -> Any:
        segnn, default = import_module("segnn"), torch.get_default_dtype()
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            return segnn.SEGNN(segnn.SEGNNConfig(scalars=8, vectors=4, lmax_attributes=lmax, layers=2))
        finally:
            torch.set_default_dtype(default)

    return build_network


ELEMENTS = {
    "rotation": element(1, shift=0.0),
    "inversion": homogeneous(-1.0, 0.0),
    "translation": homogeneous(1.0, 2.0),
    "all": element(2, reflect=True),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("lmax", [1, 2])
def test_network_is_equivariant(build: Build, task: Any, dtype: torch.dtype, name: str, lmax: int) -> None:
    model = build(dtype, lmax)
    assert relative_error(model, ELEMENTS[name], inputs(dtype=dtype), task) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", ELEMENTS)
def test_mixing_coordinates_is_not_equivariant(build: Build, task: Any, name: str) -> None:
    """Negative twin: to each velocity component add the mean of x, y and z and the distance from the origin."""
    model = build(torch.float64)

    def broken(positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        shift = positions.norm(dim=-1, keepdim=True) + positions.mean(-1, keepdim=True)
        moved: Tensor = model(positions, velocities + shift, charges)
        return moved

    assert relative_error(broken, ELEMENTS[name], inputs(dtype=torch.float64), task) > 1e-2


def test_particles_can_be_renumbered_and_graphs_do_not_mix(build: Build) -> None:
    model = build(torch.float64)
    batch = inputs(dtype=torch.float64)
    whole = model(**batch)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(model(**{name: value[:, order] for name, value in batch.items()}), whole[:, order])
    torch.testing.assert_close(model(**{name: value[1:2] for name, value in batch.items()}), whole[1:2])
    changed = {**batch, "charges": batch["charges"] * torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])}
    assert (model(**changed) - whole).norm().item() > 1e-3


def test_scalar_of_the_attributes_is_exactly_one(build: Build, segnn: ModuleType) -> None:
    model = build(torch.float32)
    seen: list[Tensor] = []
    products = [module for module in model.modules() if isinstance(module, segnn.O3TensorProduct)]
    handles = [module.register_forward_pre_hook(lambda module, args: seen.append(args[1])) for module in products]
    model(**inputs())
    for handle in handles:
        handle.remove()
    assert len(seen) == len(products) == 11
    assert all(torch.equal(attributes[:, 0], torch.ones(len(attributes))) for attributes in seen)
    # Not a constant altogether: the other entries do steer.
    assert all(float(attributes[:, 1:].std()) > 0.1 for attributes in seen)


def test_parameter_names_and_shapes(segnn: ModuleType) -> None:
    model = segnn.SEGNN(segnn.SEGNNConfig(scalars=4, vectors=2, layers=1))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if value.numel()}
    assert shapes == {
        "embedding_layer.biases": (4,),
        "embedding_layer.tp.weight": (18,),
        "layers.0.message_layer_1.biases": (6,),
        "layers.0.message_layer_1.tp.weight": (112,),
        "layers.0.message_layer_2.biases": (6,),
        "layers.0.message_layer_2.tp.weight": (48,),
        "layers.0.update_layer_1.biases": (6,),
        "layers.0.update_layer_1.tp.weight": (96,),
        "layers.0.update_layer_2.biases": (4,),
        "layers.0.update_layer_2.tp.weight": (36,),
        "pre_pool1.biases": (6,),
        "pre_pool1.tp.weight": (48,),
        "pre_pool2.tp.weight": (6,),
    }


def test_doctests() -> None:
    for name in ("simulate", "segnn", "task"):
        result = doctest.testmod(import_module(name), extraglobs={"torch": torch})
        assert result.attempted > 0
        assert result.failed == 0


# Task


def test_task_has_the_protocol(task: Any) -> None:
    assert task.primary_metric in task.metrics(torch.zeros(1, 5, 3), {"targets": torch.zeros(1, 5, 3)})
    batch = next(iter(task.batches("validation", 0)))
    assert set(task.input_names) < set(batch)
    assert isinstance(task, Task)


def test_batches_depend_on_split_and_seed_only(task: Any, task_module: ModuleType) -> None:
    def rows(source: Any, split: str, seed: int) -> Tensor:
        return torch.cat([batch["positions"] for batch in source.batches(split, seed)])

    first = rows(task, "train", 0)
    assert first.shape == (6, 5, 3)
    assert torch.equal(rows(task, "train", 0), first)
    assert not torch.equal(rows(task, "train", 1), first)
    assert torch.equal(rows(task, "train", 1).flatten().sort()[0], first.flatten().sort()[0])
    assert torch.equal(rows(task, "validation", 0), rows(task, "validation", 1))
    assert not torch.equal(rows(task, "validation", 0), rows(task, "test", 0))
    again = task_module.make_task(train_samples=6, validation_samples=4, test_samples=4, batch_size=4)
    assert torch.equal(rows(again, "train", 0), first)
    weaker = task_module.make_task(train_samples=6, strength=1.0)
    assert not torch.equal(rows(weaker, "train", 0), first)


def test_batches_are_fresh_objects(task: Any) -> None:
    for batch in task.batches("test", 0):
        batch["positions"].zero_()
    assert all(float(batch["positions"].abs().sum()) > 0 for batch in task.batches("test", 0))


def test_action_is_a_symmetry_of_the_data(task_module: ModuleType, simulate: ModuleType) -> None:
    """Simulating from a transformed start leads to transformed targets; transforming the targets otherwise does not."""
    task = task_module.make_task(test_samples=2, dtype="float64")
    batch = next(iter(task.batches("test", 0)))
    g = element(7, reflect=True)
    acted = task.act(g, batch)
    start = [acted[name].numpy() for name in task.input_names]
    end = torch.tensor(simulate.simulate(*start, steps=1000, frame_interval=1000, strength=2.0).positions[:, 0])
    torch.testing.assert_close(end, acted["targets"], rtol=0, atol=1e-9)
    torch.testing.assert_close(task.act_output(g, batch["targets"]), acted["targets"])
    assert float((task.act_output(element(8), batch["targets"]) - end).norm()) > 0.1


@pytest.mark.parametrize("size", [3, 4])
def test_action_leaves_its_input_alone(task: Any, size: int) -> None:
    batch = next(iter(task.batches("test", 0)))
    copies = {name: value.clone() for name, value in batch.items()}
    acted = task.act(element(3)[:size, :size], batch)
    assert all(torch.equal(batch[name], copies[name]) for name in batch)
    assert not torch.equal(acted["velocities"], batch["velocities"])
    torch.testing.assert_close(acted["velocities"].norm(dim=-1), batch["velocities"].norm(dim=-1))
    assert acted["positions"].dtype == batch["positions"].dtype


def test_loss_and_metrics_agree(task: Any, build: Build) -> None:
    batch = next(iter(task.batches("test", 0)))
    outputs = task.forward(build(torch.float32), batch)
    total, count = task.metrics(outputs, batch)["mse"]
    assert count == outputs.numel()
    assert total / count == pytest.approx(task.loss(outputs, batch).item(), rel=1e-5)
    total, count = task.metrics(batch["targets"] + 0.5, batch)["mae"]
    assert total / count == pytest.approx(0.5, rel=1e-5)


def test_task_errors_say_what_to_do(task: Any, task_module: ModuleType) -> None:
    with pytest.raises(UsageError, match="train, validation, test, got 'dev'"):
        next(iter(task.batches("dev", 0)))
    with pytest.raises(ShapeError, match=r"\(3, 3\) or \(4, 4\), got \(2, 2\)"):
        task.act_output(torch.eye(2), torch.zeros(1, 5, 3))
    with pytest.raises(UsageError, match="at least 1, got 0"):
        task_module.make_task(train_samples=0)
    with pytest.raises(UsageError, match="float32 or float64, got 'half'"):
        task_module.make_task(dtype="half")


# Checkpoint


def test_checkpoint_is_small_and_fits_the_model(task: Any) -> None:
    state = load_file(CHECKPOINT)
    model = task.model()
    assert list(sorted(state)) == sorted(model.state_dict())
    model.load_state_dict(state, strict=True)
    assert CHECKPOINT.stat().st_size <= 2_000_000


def test_checkpoint_predicts_and_transfers(task_module: ModuleType) -> None:
    """It beats constant velocity at both strengths, and is worse at the new one: there is something to fine-tune."""
    scores = {}
    for strength in (1.0, 2.0):
        task = task_module.make_task(test_samples=200, strength=strength, batch_size=200)
        model = task.model()
        model.load_state_dict(load_file(CHECKPOINT))
        batch = next(iter(task.batches("test", 0)))
        with torch.no_grad():
            scores[strength] = task.loss(task.forward(model, batch), batch).item()
        assert scores[strength] < 0.5 * task.loss(batch["positions"] + batch["velocities"], batch).item()
    assert scores[1.0] < 0.02
    assert scores[2.0] > 2 * scores[1.0]


@pytest.mark.parametrize("name", ELEMENTS)
def test_checkpoint_is_equivariant(task: Any, name: str) -> None:
    model = task.model()
    model.load_state_dict(load_file(CHECKPOINT))
    batch = next(iter(task.batches("test", 0)))
    assert relative_error(model, ELEMENTS[name], batch, task) < TOLERANCE[torch.float32]


def test_record_describes_the_checkpoint(task_module: ModuleType) -> None:
    record = json.loads((EXAMPLE / "segnn_nbody.json").read_text())
    assert record["model"] == vars(task_module.CONFIG)
    assert record["strength"] == 1.0
    assert record["settings"]["samples"] >= 3000
    assert record["settings"]["test_samples"] >= 3000
    assert record["test_mse"]["segnn"]["mean"] < 0.1 * record["test_mse"]["constant velocity"]["mean"]


def test_pretraining_writes_checkpoint_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain = import_module("pretrain")
    flags = ["--steps", "4", "--samples", "6", "--batch-size", "4", "--test-samples", "4", "--warmup", "1"]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *flags, "--output", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        pretrain.main()
    finally:
        torch.set_num_threads(threads)
    record = json.loads((tmp_path / "segnn_nbody.json").read_text())
    assert record["command"] == ("python pretrain.py --steps 4 --samples 6 --test-samples 4 --batch-size 4 --warmup 1")
    assert load_file(tmp_path / "segnn_nbody.safetensors").keys() == load_file(CHECKPOINT).keys()


def test_learning_rate_rises_and_falls_to_nearly_zero() -> None:
    pretrain = import_module("pretrain")
    settings = pretrain.Settings(steps=100, warmup=10, learning_rate=1.0)
    rates = [pretrain.learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates.index(max(rates)) in (9, 10)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 1e-3
