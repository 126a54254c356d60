"""Reference energies of a MACE potential: found, put into its isolated atoms, certified, and left alone otherwise."""

from __future__ import annotations

import functools
import json
import re
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.editing.adjust import adjust
from surgeon.errors import TaskError
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.support.copies import copied
from surgeon_adapters.atoms.potential import graphs_of
from surgeon_adapters.atoms.xyz_frames import LabelledFrames
from surgeon_adapters.mace.data import head_of
from surgeon_adapters.mace.models import import_mace
from surgeon_adapters.mace.task import MaceTask

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")

from tests.families.mace_small import ENERGIES, HEADS, saved, small
from tests.families.moved_atoms import require_work_of_the_forces

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

NAME = "atomic_energies_fn.atomic_energies"
OFFSETS = {"H": -12.5, "C": -1000.0, "O": 50.0}
MOLECULES = ["OHH", "CHHHH", "COO", "CHHOH", "HH", "CCHH"]


@functools.cache
def predicted(heads: int, count: int) -> list[tuple[Any, float, Any]]:
    """Molecules, with energies and forces of the small potential in its first head."""
    import ase
    import numpy as np

    model, rng, frames = small(heads), np.random.default_rng(0), []
    head = head_of(model, HEADS[0] if heads > 1 else None)
    for number in range(count):
        symbols = MOLECULES[number % len(MOLECULES)]
        atoms = ase.Atoms(symbols, 1.2 * np.arange(3 * len(symbols)).reshape(-1, 3) % 3.1)
        atoms.rattle(0.2, rng=rng)
        frames.append(atoms)
    values = [{"energy": 0.0, "forces": None, "stress": None}] * count
    graphs = graphs_of(LabelledFrames(frames, values, ("energy",), {}), Path("none"), head)
    batch = graphs.batch(range(count))
    outputs = MaceTask(Path("none")).forward(model, batch)
    energies, forces = outputs["energy"].tolist(), outputs["forces"].detach()
    own = dict(zip("HCO", ENERGIES, strict=True))
    return [
        (atoms, energies[index] + sum(own[symbol] for symbol in atoms.symbols), forces[start:end].numpy())
        for index, (atoms, start, end) in enumerate(zip(frames, batch["ptr"][:-1], batch["ptr"][1:], strict=True))
    ]


def labelled(count: int = 13, offsets: dict[str, float] | None = None, heads: int = 1, **results: Any) -> list[Any]:
    """The same as ASE's calculators label them, with offsets of the energy per element."""
    from ase.calculators.singlepoint import SinglePointCalculator

    frames = []
    for atoms, energy, forces in predicted(heads, count):
        shifted = energy + sum((offsets or {}).get(symbol, 0.0) for symbol in atoms.symbols)
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, **{"energy": shifted, "forces": forces.copy(), **results})
        frames.append(frame)
    return frames


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stored(name: str, frames: list[Any]) -> Path:
    import ase.io

    ase.io.write(name, frames)
    return Path(name)


def energies_of(model: Any, head: int = 0) -> list[float]:
    return [float(value) for value in model.get_buffer(NAME)[head]]


def test_shifted_labels_are_found_and_forces_stay() -> None:
    task = MaceTask(stored("far.xyz", labelled(offsets=OFFSETS))).for_model(small())
    found = task.adjustments(small())
    assert found is not None
    assert "fitted by least squares" in found.why
    assert {change.label: change.after - change.before for change in found.changes} == pytest.approx(OFFSETS, abs=1e-5)
    model = copied(small())
    adjust(model, found)
    (batch,) = replace(task, batch_size=50).batches("train", 0)
    before, after = task.forward(small(), batch), task.forward(model, batch)
    assert torch.equal(before["forces"], after["forces"])
    again = task.for_model(model)
    (batch,) = replace(again, batch_size=50).batches("train", 0)
    metrics = again.metrics(again.forward(model, batch), batch)
    assert float(metrics["energy_mae"][0]) / metrics["energy_mae"][1] < 0.01
    assert again.adjustments(model) is not None
    assert not again.adjustments(model)


def test_atoms_that_are_moved_change_the_energy_by_the_forces() -> None:
    require_work_of_the_forces(MaceTask(stored("own.xyz", labelled())).for_model(small()), copied(small()))


def test_labels_of_the_model_are_left_alone() -> None:
    """The negative twin: something is said, and nothing changed."""
    path = stored("own.xyz", labelled())
    found = MaceTask(path).for_model(small()).adjustments(small())
    assert found is not None
    assert not found
    assert "kept, since the labels of 11 training frames are" in found.sentence
    assert MaceTask(path, reference="keep").for_model(small()).adjustments(small()) is None


def test_only_the_head_that_is_trained_is_changed() -> None:
    model = copied(small(2))
    task = MaceTask(stored("far.xyz", labelled(offsets=OFFSETS, heads=2)), head=HEADS[0]).for_model(model)
    found = task.adjustments(model)
    assert found is not None
    adjust(model, found)
    assert energies_of(model, 1) == energies_of(small(2), 1)
    expected = [energy + OFFSETS[symbol] for symbol, energy in zip("HCO", ENERGIES, strict=True)]
    assert energies_of(model) == pytest.approx(expected, abs=1e-5)


def test_energies_can_be_given_and_forces_alone_have_none() -> None:
    path = stored("far.xyz", labelled(offsets=OFFSETS))
    Path("given.json").write_text(json.dumps({"H": -13.0, "C": -900, "O": 20}))
    found = MaceTask(path, reference="given.json").for_model(small()).adjustments(small())
    assert found is not None
    assert [change.after for change in found.changes] == [-13.0, -900.0, 20.0]
    frames = labelled()
    for atoms in frames:
        del atoms.calc.results["energy"]
    task = MaceTask(stored("forces.xyz", frames), reference="estimate").for_model(small())
    with pytest.raises(TaskError, match="expected energies in 'forces.xyz' to fit reference energies to, got none"):
        task.adjustments(small())
    assert replace(task, reference=None).adjustments(small()) is None


@pytest.mark.parametrize("name", ["frames.traj", "frames.db", "more.xyz"])
def test_labels_in_the_calculator_alone_in_any_format_of_ase(name: str) -> None:
    task = MaceTask(stored(name, labelled())).for_model(small())
    assert {split: len(frames) for split, frames in task.frames.items()} == {"train": 11, "validation": 1, "test": 1}
    assert task.labels == ("energy", "forces")
    (batch,) = replace(task, batch_size=50).batches("train", 0)
    outputs = task.forward(small(), batch)
    assert (outputs["energy"] - batch["energy"]).abs().max() < 1e-5
    assert (outputs["forces"] - batch["forces"]).abs().max() < 1e-5


def test_names_of_the_users_own_in_a_database() -> None:
    import ase.db

    with ase.db.connect("own.db") as database:
        for atoms in labelled():
            energy, atoms.calc = atoms.calc.results["energy"], None
            database.write(atoms, key_value_pairs={"my_energy": energy})
    assert MaceTask(Path("own.db"), energy_key="my_energy").for_model(small()).labels == ("energy",)


def test_free_energies_are_named_or_refused() -> None:
    frames = labelled(free_energy=1.0)
    assert MaceTask(stored("both.traj", frames)).for_model(small()).labels == ("energy", "forces")
    for atoms in frames:
        del atoms.calc.results["energy"]
    path = stored("free.traj", frames)
    with pytest.raises(TaskError, match=r"under REF_energy or energy, got free_energy only: .*energy_key"):
        MaceTask(path).for_model(small())
    task = MaceTask(path, energy_key="free_energy").for_model(small())
    batch: dict[str, Tensor] = next(iter(task.batches("train", 0)))
    assert task.labels == ("energy", "forces")
    assert (batch["energy"] + 100).abs().max() < 101


def test_a_missing_element_is_the_first_thing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph is made before all files were looked through."""
    frames = labelled(16)
    frames[5].symbols[0], frames[11].symbols[0] = "Pt", "N"
    path = stored("platinum.xyz", frames)
    import surgeon_adapters.atoms.task as module

    monkeypatch.setattr(module, "graphs_of", lambda *_: pytest.fail("a graph was made"))
    words = r"platinum.xyz' has atoms of N, Pt, which the model lacks \(it has H, C, O\), first in frame 5, counted"
    for task in (MaceTask(path), MaceTask(stored("own.xyz", labelled()), validation="platinum.xyz")):
        with pytest.raises(TaskError, match=words):
            task.for_model(small())


def command(*arguments: str) -> str:
    from surgeon_cli.main import main

    with redirect_stdout(StringIO()) as out, pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 0, f"{arguments}: {out.getvalue()}"
    return out.getvalue()


@pytest.mark.slow
def test_the_exported_potential_gives_the_energies_of_the_labels(folder: Path) -> None:
    """Also in MACE's own calculator, from the file in MACE's own format."""
    frames = labelled(offsets=OFFSETS)
    saved(Path("base.model"), small())
    task = ("--task", f"mace:{stored('far.xyz', frames)}")
    said = command("relax", "base.model", "--trust-pickle", *task, "-o", "relaxed", "--include", "*linear_up*")
    assert "3 entries of atomic_energies_fn.atomic_energies were changed" in said.replace("\n", " ")
    before = re.search(r"before: .*energy_mae (\S+) meV/atom", said)
    assert before is not None
    assert float(before[1]) < 0.1
    command("finetune", "relaxed", "--epochs", "1", "--lr", "1e-5", "-o", "run")
    command("export", "run", "--trust-pickle", "--container", "-o", "clean", "--elements", "1", "--batches", "1")
    assert "| `atomic_energies_fn.atomic_energies[0, 1]` | C | 2.0 | -998." in Path("clean/CERTIFICATE.md").read_text()
    command("verify", "clean", "--against", "base.model", "--trust-pickle", *task)
    model = open_path("clean/model.safetensors", OpenOptions()).model
    assert energies_of(model) == pytest.approx([-11.5, -998.0, 53.0], abs=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = import_mace("calculators").MACECalculator("clean/base.model", device="cpu", default_dtype="float64")
    for atoms in frames[:3]:
        label = atoms.calc.results["energy"]
        atoms.calc = made
        assert atoms.get_potential_energy() == pytest.approx(label, abs=0.05)
