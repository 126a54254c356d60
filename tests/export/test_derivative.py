"""Forces as derivatives inside the forward: recorded as a graph, exported, and left out on request."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.insert import relax
from surgeon.editing.strip import strip
from surgeon.errors import CheckFailedError, UsageError
from surgeon.export.archive import Archive, compare_archives
from surgeon.export.checks import check_onnx
from surgeon.export.convert import to_onnx
from surgeon.export.derivative import record_derivatives
from surgeon.export.onnx_file import export_onnx
from surgeon.export.outputs import Selection
from surgeon.export.program import Positional, outputs_by_derivative, to_program
from surgeon.export.sample import sample_of
from surgeon.export.stripped import Stripped
from surgeon.finding.find import find
from surgeon.support.trees import tensors_in
from tests.export.archives import in_file
from tests.export.potential import Potential, PotentialTask, WrongForces, molecules
from tests.tiny import Net, TinyTask

TASK = PotentialTask()
SAMPLE = sample_of(TASK, torch.float32)
GROUP = parse_group("O3")


def recorded(model: nn.Module) -> nn.Module:
    model.eval()
    return record_derivatives(Positional(model, TASK, SAMPLE).eval(), model, SAMPLE)


def stripped(model: nn.Module) -> Stripped:
    """Return a model beside an original whose weights are equal, and ones: what an optimiser would merge or drop."""
    original = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.fill_(1.0)
    return Stripped(model, original, copy.deepcopy(model).double(), TASK, GROUP)


def export(model: nn.Module, path: Path, selection: Selection | None = None) -> dict[str, Any]:
    return export_onnx(path / "model.onnx", stripped(model), selection=selection or Selection())


@pytest.fixture(scope="module")
def potential() -> Potential:
    torch.manual_seed(0)
    return Potential()


@pytest.fixture(scope="module")
def exported(potential: Potential, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("forces")
    return folder / "model.onnx", export(potential, folder)


def run(path: Path, batch: dict[str, Tensor]) -> list[Any]:
    session = onnxruntime.InferenceSession(str(path))
    return list(session.run(None, {item.name: batch[item.name].numpy() for item in session.get_inputs()}))


def test_outputs_that_need_a_derivative_are_found(potential: Potential) -> None:
    assert outputs_by_derivative(potential, TASK, SAMPLE) == {1}
    task = TinyTask()
    assert outputs_by_derivative(Net(), task, sample_of(task, torch.float32)) is None


class Flat(Potential):
    """Its forces are 0, and it is still a derivative that says so."""

    def energy(self, *arguments: Tensor) -> Tensor:
        return super().energy(*arguments) * 0.0


class Functional(Potential):
    """The derivative is taken with torch.func."""

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        rest = [batch[name] for name in ("species", "edges", "graph", "ptr")]
        gradient = torch.func.grad(lambda positions: self.energy(positions, *rest).sum())(batch["positions"])
        return {"energy": self.energy(batch["positions"], *rest), "forces": self.forces(gradient)}


@pytest.mark.parametrize("network", [Flat, Functional])
def test_derivatives_that_are_zero_or_functional_are_found(network: type[Potential]) -> None:
    assert outputs_by_derivative(network(), TASK, SAMPLE) == {1}


@pytest.mark.parametrize("network", [Potential, Functional, WrongForces])
def test_the_recorded_graph_computes_energies_and_forces_at_any_size(network: type[Potential]) -> None:
    torch.manual_seed(0)
    model = network()
    graph = recorded(model)
    for counts in ((2, 3), (4, 4, 4, 1), (9,)):
        batch = molecules(counts, 7)
        with torch.no_grad():  # nothing in the graph needs autograd
            found = graph(*tensors_in(batch))
        for own, value in zip(found, model(batch).values(), strict=True):
            torch.testing.assert_close(own, value, rtol=1e-5, atol=1e-6)


def test_the_recorded_graph_reads_the_present_weights_under_their_names(potential: Potential) -> None:
    model = copy.deepcopy(potential)
    graph = recorded(model)
    assert set(model.state_dict()) == {
        name.removeprefix("model.") for name in graph.state_dict() if name.startswith("model.")
    }
    batch = molecules((3, 4), 1)
    before = graph(*tensors_in(batch))[1]
    with torch.no_grad():
        model.mix.weight *= 2
    after = graph(*tensors_in(batch))[1]
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, model(batch)["forces"], rtol=1e-5, atol=1e-6)


class Remembering(Potential):
    """It keeps what it computed last."""

    last: Tensor | None = None

    def forces(self, gradient: Tensor) -> Tensor:
        self.last = gradient
        return -gradient


def test_recording_leaves_nothing_behind_in_the_model() -> None:
    model = Remembering()
    model(molecules((2, 3), 0))
    kept = model.last
    recorded(model)
    assert model.last is kept
    assert isinstance(model(molecules((2, 3), 0))["forces"], Tensor)


class Measuring(Potential):
    """It asks for the number of atoms in the ways of Python."""

    def forces(self, gradient: Tensor) -> Tensor:
        return -gradient * len(gradient) / int(gradient.shape[0])


def test_len_and_int_leave_sizes_dynamic() -> None:
    model = Measuring().eval()
    graph = record_derivatives(Positional(model, TASK, SAMPLE).eval(), model, SAMPLE, {"tests"})
    batch = molecules((2, 5, 4), 1)
    torch.testing.assert_close(graph(*tensors_in(batch))[1], model(batch)["forces"], rtol=1e-5, atol=1e-6)


class Counting(Potential):
    """It uses the number of atoms as a plain number."""

    def forces(self, gradient: Tensor) -> Tensor:
        return -gradient * len(list(range(gradient.shape[0])))


def test_a_size_that_becomes_a_number_is_said_with_its_place() -> None:
    with pytest.raises(CheckFailedError, match=r"axis 0 of positions the fixed size 9 .*test_derivative.py, in forces"):
        to_onnx(Counting(), TASK, SAMPLE)


class Deciding(Potential):
    """What it computes depends on values."""

    def forces(self, gradient: Tensor) -> Tensor:
        return -gradient if gradient.sum() > 0 else gradient


def test_a_decision_by_values_ends_in_a_sentence() -> None:
    with pytest.raises(CheckFailedError, match="Deciding cannot be exported: "):
        to_onnx(Deciding(), TASK, SAMPLE)


@pytest.mark.slow
def test_energy_and_forces_are_in_one_file_for_any_number_of_atoms_edges_and_molecules(
    potential: Potential, exported: tuple[Path, dict[str, Any]]
) -> None:
    path, record = exported
    assert record["outputs"] == ["energy", "forces"]
    assert record["inputs"] == ["positions", "species", "edges", "graph", "ptr"]
    assert record["derivatives"] == ["forces"]
    assert record["left_out"] == []
    assert record["deviation"] <= 1
    assert set(record["equivariance"]) == set(GROUP.component_names)
    for counts in ((2, 2), (1, 6, 3, 3, 2), (12,)):
        batch = molecules(counts, 3)
        for found, value in zip(run(path, batch), potential(batch).values(), strict=True):
            np.testing.assert_allclose(found, value.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_file_says_how_it_transforms_and_in_which_units(exported: tuple[Path, dict[str, Any]]) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(exported[0]).metadata_props}
    assert metadata["group"] == "O3"
    assert metadata["irreps.positions"] == metadata["irreps.forces"] == "1x1o"
    assert metadata["irreps.energy"] == "1x0e"
    assert metadata["units.forces"] == "eV/Å"
    assert metadata["equisurgeon.graph_sha256"] == exported[1]["graph_sha256"]


@pytest.mark.slow
def test_weights_keep_their_names_and_bytes_and_a_damaged_one_is_found(
    potential: Potential, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    damaged = onnx.load(exported[0])
    stored = {tensor.name: tensor for tensor in damaged.graph.initializer}
    for name, value in potential.named_parameters():
        assert value.detach().numpy().tobytes() == onnx.numpy_helper.to_array(stored[name]).tobytes()
    weight = stored["radial.2.weight"]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), weight.name))
    onnx.save(damaged, tmp_path / "damaged.onnx")
    beside = stripped(potential)
    assert "deviates" in check_onnx(tmp_path / "damaged.onnx", beside, SAMPLE).differences[0]
    assert check_onnx(exported[0], beside, SAMPLE).differences == ()


def archive(model: nn.Module) -> Archive:
    return in_file(to_program(model, TASK, SAMPLE, SAMPLE.names))


@pytest.mark.slow
def test_stripping_gives_the_program_back_and_other_forces_are_seen(potential: Potential) -> None:
    """They depend on the architecture; that they do not depend on weights is part of the export, see ``stripped``."""
    model = copy.deepcopy(potential).eval()
    relaxation = relax(model, find(model, "O3", molecules((3, 4), 0)), dense=True)
    with pytest.raises(CheckFailedError, match="strip it first"):
        to_onnx(model, TASK, SAMPLE)
    strip(relaxation, "drop")
    before = archive(potential)
    assert compare_archives(before, archive(model)) == []
    assert compare_archives(before, archive(WrongForces()))


@pytest.mark.slow
def test_energies_alone_need_no_derivative(
    potential: Potential, exported: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    record = export(potential, tmp_path, Selection(energy_only=True))
    assert (record["outputs"], record["left_out"]) == (["energy"], ["forces"])
    assert record["nodes"] < 0.6 * exported[1]["nodes"]
    assert record["equivariance"]["identity"] <= 1
    batch = molecules((2, 5), 3)
    (energy,) = run(tmp_path / "model.onnx", batch)
    assert record["selection"] == ["energy"]
    np.testing.assert_array_almost_equal_nulp(energy, run(exported[0], batch)[0], nulp=64)


@pytest.mark.parametrize(
    ("selection", "derived", "words"),
    [
        (Selection(("stress",)), {1}, "got 'stress'"),
        (Selection(()), {1}, "at least one output"),
        (Selection(energy_only=True), None, "takes no derivative"),
        (Selection(("forces",), energy_only=True), {1}, "would leave none"),
    ],
)
def test_a_selection_that_selects_nothing_is_refused(selection: Selection, derived: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        selection.positions(("energy", "forces"), derived)


def test_outputs_are_selected_by_name_or_by_derivative() -> None:
    names = ("energy", "forces", "charges")
    assert Selection().positions(names, {1}) == (0, 1, 2)
    assert Selection(energy_only=True).positions(names, {1}) == (0, 2)
    assert Selection(("charges", "forces")).positions(names, {1}) == (1, 2)


def test_outputs_are_chosen_with_onnx_only(surgeon: Callable[..., Any], work: Path) -> None:
    assert "add --onnx" in surgeon("export", "net.pt", "--energy-only", code=2).err
