"""SEGNN from a published file to a published file, with the ready task on N-body files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from surgeon.algebra.equivariance import relative_difference
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.errors import CheckpointError, ModelNotFoundError, ShapeError, TaskError
from surgeon.files.reading import open_checkpoint
from surgeon.opening.loading import load_into
from surgeon.opening.open import open_path
from surgeon.opening.task_calls import task_symmetry
from surgeon.opening.tasks import load_task
from surgeon.testing.contract import AdapterContract
from surgeon.testing.soundness import Model
from surgeon_adapters.zoo.segnn.adapter import adapter
from surgeon_adapters.zoo.segnn.models import build, recognised
from surgeon_adapters.zoo.segnn.particles import graph_of
from tests.commands import QUICK, Surgeon
from tests.families.segnn_files import EXAMPLE, FRAMES, SMALL, SUFFIX, example_module, network, published, write_motions

pytestmark = pytest.mark.e3nn

WHOLE = {
    "input_irreps": "5x0e",
    "output_irreps": "1x0e",
    "hidden_irreps": "4x0e+3x1o+2x2e",
    "edge_attr_irreps": "1x0e+1x1o+1x2e",
    "additional_message_irreps": "1x0e",
    "task": "graph",
    "norm": "instance",
}


@pytest.fixture(scope="module")
def motions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_motions(tmp_path_factory.mktemp("motions"), (6, 4, 4), 41)


def particles(count: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    positions, velocities = torch.randn(2, count, 5, 3, generator=generator, dtype=torch.float64)
    return positions, velocities, 2.0 * torch.randint(2, (count, 5), generator=generator).double() - 1


# Names, shapes, and settings


def test_published_names_shapes_and_order() -> None:
    """Of the published N-body command; and shapes alone tell its irreps."""
    expected = published()
    settings = recognised({name: torch.empty(shape) for name, shape in expected.items()})
    assert settings == {
        **SMALL,
        "hidden_irreps": "32x0e+32x1o",
        "layers": 4,
        "task": "node",
        "norm": None,
        "pool": "avg",
    }
    found = [(name, tuple(value.shape)) for name, value in build(**settings).state_dict().items()]
    assert found == list(expected.items())


def test_variants_are_named(tmp_path: Path) -> None:
    state = network().state_dict()
    other = {**state, "head.weight": torch.ones(2)}
    assert adapter.rebuild(other) is None
    assert "a SEGNN of 1 layers with 4x0e+3x1o for each node, but it has more head" in (adapter.recognise(other) or "")
    torch.save({**state, "embedding_layer.tp.weight": torch.ones(5)}, tmp_path / "variant.pt")
    with pytest.raises(ModelNotFoundError, match="a SEGNN, but their sizes are not .* --model-args"):
        open_path(tmp_path / "variant.pt")
    foreign = {"embedding_layer.tp.weight": torch.ones(3)}
    assert adapter.rebuild(foreign) is None
    assert adapter.recognise(foreign) is None
    wrong = (({"norm": "layer"}, "expected norm"), ({"hidden_irreps": "4x"}, "could not build a SEGNN"))
    for settings, message in wrong:
        with pytest.raises(CheckpointError, match=message):
            network(**settings)


# The function


def test_it_computes_what_the_example_computes() -> None:
    """The example's network is another implementation, on torch and e3nn alone, with the same keys."""
    checkpoint = open_checkpoint(EXAMPLE / "segnn_nbody.safetensors")
    ours = adapter.rebuild(checkpoint.tensors)
    assert ours is not None
    load_into(ours, checkpoint.tensors, "the example")
    segnn = example_module("segnn")
    example = segnn.SEGNN(segnn.SEGNNConfig())
    assert list(example.state_dict()) == list(ours.state_dict())
    load_into(example, checkpoint.tensors, "the example")
    positions, velocities, charges = (value.float() for value in particles())
    with torch.no_grad():
        expected = example(positions, velocities, charges)
        moved, other = (
            ours(**graph_of(positions, velocities, charges, (1, 1), kind)).view_as(positions)
            for kind in ("component", "integral")
        )
    assert relative_difference(positions + moved, expected) < 1e-6
    assert relative_difference(positions + other, expected) > 1e-3


def turned(g: Tensor, rho: str, x: Tensor) -> Tensor:
    return irreps(parse_group("O3"), rho).action(g).to(x).apply(x)[0]


@pytest.mark.parametrize(
    "settings",
    [{"norm": "batch", "layers": 2}, WHOLE, {"hidden_irreps": "2x0e+1x1o+1x2e+1x3o", "additional_message_irreps": ""}],
)
def test_other_forms_are_recognised_and_equivariant(settings: dict[str, Any]) -> None:
    model = network(**settings).double()
    assert recognised(model.state_dict()) == {"task": "node", "norm": None, "pool": "avg", **SMALL, **settings}
    whole = settings.get("task") == "graph"
    degree = 2 if whole else 1

    def run(positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        graph = graph_of(positions, velocities, charges, (degree, 1), "integral")
        if whole:
            graph |= {"x": torch.arange(75.0, dtype=torch.float64).reshape(15, 5).cos(), "extra": graph["extra"][:, :1]}
        if settings.get("additional_message_irreps") == "":
            del graph["extra"]
        result: Tensor = model(**graph)
        return result

    positions, velocities, charges = particles()
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    expected = run(positions, velocities, charges)
    assert expected.shape == ((3, 1) if whole else (15, 3))
    found = run(positions @ q.T, velocities @ q.T, charges)
    assert relative_difference(found, expected if whole else expected @ q.T) < 1e-9
    shear = torch.eye(3, dtype=torch.float64) + 0.5 * torch.eye(3, dtype=torch.float64).roll(1, 0)
    bent = run(positions @ shear.T, velocities @ shear.T, charges)
    assert relative_difference(bent, expected if whole else expected @ shear.T) > 1e-5


class TestContract(AdapterContract):
    adapter = "surgeon_adapters.zoo.segnn.adapter:adapter"
    libraries = ("e3nn", "scipy")
    annotates = False  # its layers are e3nn's

    @pytest.fixture(autouse=True)
    def _motions(self, motions: Path) -> None:
        self.motions = motions

    def sample(self) -> Model:
        module = network().double()
        task: Any = adapter.task(self.motions, {"batch_size": 3})
        task = task.for_model(module)
        batch = next(iter(task.batches("validation", 0)))
        return Model(module, (batch,), task_symmetry(task, parse_group("E3")))

    def data(self) -> Path:
        return self.motions


# From file to file


@pytest.mark.slow
def test_from_file_to_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    surgeon = Surgeon(tmp_path, capsys)
    data = write_motions(tmp_path)
    torch.save(network().state_dict(), "segnn.pt")
    task = ("--task", f"segnn:{data.name}", "--task-args", json.dumps({**FRAMES, "batch_size": 5}))
    surgeon("relax", "segnn.pt", "--group", "E3", *task, "--strip-mode", "fold", "-o", "relaxed")
    plan = json.loads((tmp_path / "relaxed" / "surgeon_config.json").read_text())["plan"]
    sites = {site["name"]: site["fold"] for site in plan["sites"]}
    for layer in ("message_layer_1", "message_layer_2", "update_layer_1", "update_layer_2"):
        assert sites[f"layers.0.{layer}.tp"] is not None  # before the gates, so that they fold
    surgeon("finetune", "relaxed", "--epochs", "3", "--lr", "5e-3", "-o", "run")
    report = surgeon("export", "run", "--container", *QUICK, "-o", "clean", "--json").data["certificate"]
    assert report["grade"] == "same function"
    for part in ("identity", "inversion"):
        errors = {name: report["equivariance"][name]["float64"][part]["maximum"] for name in ("original", "stripped")}
        assert errors["stripped"] < 3 * errors["original"] + 1e-12
    # the negative twin: while the branches act, the same check sees them
    assert next(iter(report["equivariance"]["relaxed, theta 1"].values()))["identity"]["median"] > 1e-4
    _require_equal_predictions(tmp_path / "clean")


def _require_equal_predictions(clean: Path) -> None:
    """Load the container strictly into a fresh network, as ``torch.load`` gives it; compare with the clean weights."""
    fresh, graph = network(), graph_of(*(value.float() for value in particles()), (1, 1), "integral")
    with torch.no_grad():
        before = fresh(**graph)
        fresh.load_state_dict(torch.load(clean / "segnn.pt", weights_only=True))
        after = fresh(**graph)
        again = adapter.rebuild(open_checkpoint(clean / "model.safetensors").tensors)
        assert again is not None
        load_into(again, open_checkpoint(clean / "model.safetensors").tensors, "clean")
        assert torch.equal(again.eval()(**graph), after)
    assert not torch.equal(before, after)


# The task


def test_frames_are_those_of_the_files(tmp_path: Path) -> None:
    path = write_motions(tmp_path)
    loaded = load_task(f"segnn:{path}", {**FRAMES, "samples": 7, "batch_size": 3})
    task: Any = loaded.for_model(network()).task
    batches = list(task.batches("train", 0))
    assert [len(batch["charges"]) for batch in batches] == [3, 3, 1]
    assert len(task.batches("train", 0)) == 3
    assert not torch.equal(batches[0]["positions"], next(iter(task.batches("train", 1)))["positions"])
    batch = next(iter(task.batches("validation", 0)))
    where = np.load(tmp_path / f"loc_valid_{SUFFIX}.npy")
    torch.testing.assert_close(batch["positions"], torch.tensor(where[:3, 2]).float().transpose(1, 2))
    torch.testing.assert_close(batch["targets"], torch.tensor(where[:3, 4]).float().transpose(1, 2))
    moving = np.load(tmp_path / f"vel_valid_{SUFFIX}.npy")
    torch.testing.assert_close(batch["velocities"], torch.tensor(moving[:3, 2]).float().transpose(1, 2))
    found = task.metrics(batch["targets"] + 2, batch)
    assert found == {"mse": (pytest.approx(180), 45.0), "mae": (pytest.approx(90), 45.0)}
    g = torch.eye(4, dtype=torch.float64)
    g[0, 3] = 1.5
    assert torch.equal(task.act(g, batch)["velocities"], batch["velocities"])
    torch.testing.assert_close(task.act(g, batch)["targets"][..., 0], batch["targets"][..., 0] + 1.5)
    with pytest.raises(ShapeError, match=r"\(3, 3\) or \(4, 4\), got \(2, 2\)"):
        task.act_output(torch.eye(2), batch["targets"])


def test_unusable_data_and_arguments(tmp_path: Path) -> None:
    path, model = write_motions(tmp_path), network()
    np.save(tmp_path / "other.npy", np.ones(3))
    broken = tmp_path / "broken"
    broken.mkdir()
    write_motions(broken)
    np.save(broken / f"vel_train_{SUFFIX}.npy", np.ones((2, 3)))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (path, {}, "0 <= start < end < 5 .* got 30 and 40"),
        (path, {"normalization": "norm"}, "integral or component, .* got 'norm'"),
        (path, {"batch_size": 0}, "batch_size of at least 1"),
        (path, {"colour": 1}, "colour"),
        (tmp_path / "other.npy", FRAMES, "loc_train_.*npy, got .* 'other.npy'"),
        (broken / path.name, FRAMES, r"positions and velocities \(m, frames, 3, n\) .* \(2, 3\)"),
    ]
    for file, arguments, message in cases:
        with pytest.raises(TaskError, match=message):
            load_task(f"segnn:{file}", arguments).for_model(model)
    with pytest.raises(TaskError, match="expected a SEGNN of inputs .* got Linear"):
        load_task(f"segnn:{path}", FRAMES).for_model(torch.nn.Linear(2, 2))
    with pytest.raises(TaskError, match="has not seen its model"):
        load_task(f"segnn:{path}", FRAMES).task.batches("train", 0)
    (broken / f"vel_train_{SUFFIX}.npy").write_bytes(b"\x93NUMPY damaged")
    with pytest.raises(TaskError, match="could not read .*vel_train"):
        load_task(f"segnn:{broken / path.name}", FRAMES).for_model(model)
    (tmp_path / f"charges_valid_{SUFFIX}.npy").unlink()
    with pytest.raises(TaskError, match="there is no file .*charges_valid"):
        load_task(f"segnn:{path}", FRAMES).for_model(model)
