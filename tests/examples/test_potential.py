"""The potential example: network, task, shipped checkpoint and frames."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.adjust import adjust
from surgeon.errors import UsageError
from surgeon.opening.evaluation import evaluate
from tests.modules import importable

EXAMPLE = Path(__file__).parents[2] / "examples" / "potential"

pytestmark = pytest.mark.e3nn


@pytest.fixture(scope="module", autouse=True)
def example() -> Iterator[None]:
    with importable(EXAMPLE):
        yield


@pytest.fixture(scope="module")
def task() -> Any:
    return import_module("task").make_task()


@pytest.fixture(scope="module")
def network(task: Any) -> Any:
    """The shipped checkpoint with the energy per atom that the task asks for, in float32."""
    network = task.model()
    network.load_state_dict(load_file(EXAMPLE / "potential.safetensors"), strict=True)
    adjust(network.eval(), task.adjustments(network))
    return network


def some_frames(task: Any) -> dict[str, Tensor]:
    """Two test frames in float64."""
    batch = next(iter(task.batches("test", 0)))
    return {name: values[:2].double() if values.is_floating_point() else values[:2] for name, values in batch.items()}


@pytest.mark.parametrize("group", ["SO3", "O3", "E3"])
def test_energies_are_invariant_and_forces_turn(task: Any, network: Any, group: str) -> None:
    twin = task.model().double().eval()
    twin.load_state_dict(network.state_dict())
    batch = some_frames(task)
    for element in parse_group(group).test_elements(torch.Generator().manual_seed(0)):
        g = element.g
        expected = task.act_output(g, task.forward(twin, batch))
        found = task.forward(twin, task.act(g, batch))
        assert relative_difference(found["forces"], expected["forces"]) < 1e-9
        assert relative_difference(found["energy"], expected["energy"]) < 1e-9
        stretched = task.forward(twin, task.act(torch.block_diag(1.1 * g[:3, :3], g[3:, 3:]), batch))
        assert relative_difference(stretched["energy"], expected["energy"]) > 1e-4


def test_forces_are_the_gradient_of_the_energy(task: Any, network: Any) -> None:
    twin = task.model().double().eval()
    twin.load_state_dict(network.state_dict())
    batch, step = some_frames(task), 1e-4
    forces = task.forward(twin, batch)["forces"]
    direction = torch.randn_like(forces)
    ends = [twin(batch["kinds"], batch["positions"] + sign * step * direction)[0] for sign in (1, -1)]
    torch.testing.assert_close((ends[1] - ends[0]) / (2 * step), (forces * direction).sum((1, 2)), rtol=1e-5, atol=1e-5)


def test_the_checkpoint_knows_something_of_these_molecules(task: Any, network: Any) -> None:
    torch.manual_seed(0)
    fresh = evaluate(task.model(), task, "validation")
    known = evaluate(network, task, "validation")
    assert known["force_mae"] < 0.6 * fresh["force_mae"]
    assert known["energy_mae"] < 0.6 * fresh["energy_mae"]


def test_the_shift_takes_the_mean_error_away_and_nothing_else_changes(task: Any, network: Any) -> None:
    shipped = load_file(EXAMPLE / "potential.safetensors")
    assert [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, shipped[name])] == [
        "shift"
    ]
    errors = [task.errors(task.forward(network, batch), batch)[0].detach() for batch in task.batches("train", 0)]
    assert abs(float(torch.cat(errors).mean())) < 1e-4


def test_frames_are_fit_for_the_task(task: Any) -> None:
    sizes = {
        split: [len(batch["energy"]) for batch in task.batches(split, 0)] for split in ("train", "validation", "test")
    }
    assert sizes == {"train": [5] * 20, "validation": [50], "test": [50] * 6}
    first, other = (next(iter(task.batches("train", seed)))["positions"] for seed in (0, 1))
    assert not torch.equal(first, other)
    files = ("ethanol.npz", "potential.safetensors")
    assert sum((EXAMPLE / name).stat().st_size for name in files) < 300_000
    with pytest.raises(UsageError, match="at least 1, got 0"):
        import_module("task").make_task(batch_size=0)


def test_frames_are_read_as_they_stand_in_the_file(tmp_path: Path) -> None:
    pretrain = import_module("pretrain")
    header = 'Properties=species:S:1:pos:R:3:REF_forces:R:3 REF_energy={} pbc="F F F"'
    frame = ["2", header.format(-7.5), "O 0 0 1 0.5 0 0", "H 0 2 0 -0.5 0 0"]
    text = ["1", header.format(-1.0), "H 0 0 0 0 0 0", *frame, *frame]
    path = tmp_path / "water_train.xyz.gz"
    path.write_bytes(gzip.compress("\n".join(text).encode()))
    frames = pretrain.read(pretrain.find_file(tmp_path, "water", "train"))
    assert frames.kinds.tolist() == [2, 0]
    assert frames.energies.tolist() == [-7.5, -7.5]
    assert frames.positions[1].tolist() == [[0, 0, 1], [0, 2, 0]]
    assert frames.forces[0].tolist() == [[0.5, 0, 0], [-0.5, 0, 0]]


def test_the_record_is_of_the_shipped_checkpoint(task: Any) -> None:
    record = json.loads((EXAMPLE / "potential.json").read_text(encoding="utf-8"))
    network = task.model()
    network.load_state_dict(load_file(EXAMPLE / "potential.safetensors"), strict=True)
    found = evaluate(network.eval(), task, "test")
    assert found["force_mae"] == pytest.approx(record["test"]["ethanol"]["force_mae"], rel=1e-3)
