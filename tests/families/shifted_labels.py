"""Labels of a potential's own, but for other energies per element: found, put into it, and read by its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surgeon.editing.adjust import adjust
from surgeon.export.container import write_container
from surgeon.opening.open import open_path

OFFSETS = {"H": -12.5, "C": -1000.0, "O": 50.0}
Energies = Callable[[Path, Path], Sequence[tuple[float, Any]]]
"""From a file of the library and one of frames: energies in eV and forces in eV/A, by the library's calculator."""


def stored(path: Path, labels: Sequence[tuple[float, Any]] | None = None, offsets: bool = True) -> Path:
    """Write small molecules in a box; with energies and forces, the energies moved by the offsets."""
    import ase
    import ase.io
    import numpy as np
    from ase.calculators.singlepoint import SinglePointCalculator

    draw, frames = np.random.default_rng(0), []
    for number, symbols in enumerate(["OHH", "CHH", "COO", "CHO", "OHH", "CHH"]):
        positions = 1.2 * np.arange(3 * len(symbols)).reshape(-1, 3) % 3.1 + 0.2 * draw.normal(size=(len(symbols), 3))
        atoms = ase.Atoms(symbols, positions, cell=[12.0] * 3, pbc=True)
        if labels is not None:
            energy, forces = labels[number]
            energy += sum(OFFSETS[symbol] for symbol in symbols) if offsets else 0.0
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.array(forces))
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return path


def energies_of(path: Path) -> list[float]:
    """The energies that a file is labelled with."""
    import ase.io

    return [float(atoms.get_potential_energy()) for atoms in ase.io.read(path, ":")]


def require_shift(
    file: Path, tensor: str, make_task: Callable[[Path], Any], calculated: Energies, folder: Path
) -> None:
    """The offsets are found and applied, forces stay, and the library's calculator gives the labels' energies."""
    own = calculated(file, stored(folder / "bare.xyz"))
    far = stored(folder / "far.xyz", own)
    workspace = open_path(file)
    model = workspace.model
    near = make_task(stored(folder / "own.xyz", own, offsets=False)).for_model(model).adjustments(model)
    assert near is not None
    assert not near  # the negative twin: labels of its own are left alone
    task = make_task(far).for_model(model)
    found = task.adjustments(model)
    assert found is not None
    assert "fitted by least squares" in found.why
    assert {change.tensor for change in found.changes} == {tensor}
    assert {change.label: change.after - change.before for change in found.changes} == pytest.approx(OFFSETS, abs=0.02)
    (batch,) = replace(task, batch_size=50).batches("train", 0)
    before = task.forward(model, batch)["forces"]
    adjust(model, found)
    assert torch.equal(task.forward(model, batch)["forces"], before)
    write_container(workspace.checkpoint, model.state_dict(), folder / f"new{file.suffix}")
    read = [energy for energy, _ in calculated(folder / f"new{file.suffix}", far)]
    assert read == pytest.approx(energies_of(far), abs=0.05)
    assert [energy for energy, _ in own] != pytest.approx(energies_of(far), abs=5)
