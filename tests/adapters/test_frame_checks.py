"""Labelled frames as strangers have them: what is refused, and what is said. ASE is not needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from surgeon.errors import TaskError
from surgeon_adapters.atoms.frame_checks import frame_key, label_remarks, require_usable, split_remarks
from surgeon_adapters.atoms.scales import scale_remarks

PATH = Path("frames.xyz")


class Atoms(SimpleNamespace):
    """Two atoms in a cell of this edge, periodic or not."""

    def __init__(self, edge: float = 5.0, pbc: bool = True, count: int = 2) -> None:
        cell = SimpleNamespace(array=edge * np.eye(3), volume=edge**3)
        axes, positions = np.array([pbc] * 3), np.arange(3.0 * count).reshape(count, 3)
        super().__init__(numbers=np.ones(count, int), positions=positions, cell=cell, pbc=axes)

    def __len__(self) -> int:
        return len(self.numbers)


def labels(**given: Any) -> dict[str, tuple[str, Any] | None]:
    return {label: (label, given[label]) if label in given else None for label in ("energy", "forces", "stress")}


@pytest.mark.parametrize(
    ("frame", "found", "words"),
    [
        (Atoms(count=0), labels(), "no atoms"),
        (Atoms(edge=0.0), labels(), "a periodic axis without a cell"),
        (Atoms(edge=1e4), labels(), r"a periodic cell of 1e\+12 A\^3"),
        (Atoms(edge=0.0, pbc=False), labels(stress=np.zeros(6)), "stress, but no cell"),
        (Atoms(), labels(energy="n/a"), "energy other than finite numbers, 1 of them"),
        (Atoms(), labels(energy=float("nan")), "energy other than finite numbers"),
        (Atoms(), labels(forces=np.full((2, 3), np.inf)), "forces other than finite numbers, 6 of them"),
        (Atoms(), labels(stress=np.zeros(3)), "stress other than finite numbers, 6 or 9 of them"),
    ],
)
def test_a_frame_that_nothing_can_be_learned_from(frame: Atoms, found: Any, words: str) -> None:
    usable = labels(energy=1, forces=np.zeros((2, 3)), stress=np.zeros((3, 3)))
    require_usable(PATH, [Atoms(), Atoms(edge=0.0, pbc=False)], [usable, labels(energy=np.float32(1))])
    with pytest.raises(TaskError, match=f"^frame 1 of 'frames.xyz', counted from 0, has {words}.*leave it out"):
        require_usable(PATH, [Atoms(), frame], [usable, found])


def test_labels_of_two_names_are_not_mixed() -> None:
    found = [{**labels(), "energy": (name, 1.0)} for name in ("energy", "REF_energy", "energy")]
    words = "got 2 under energy and 1 under REF_energy, .* say which counts as energy_key in --task-args"
    with pytest.raises(TaskError, match=words):
        require_usable(PATH, [Atoms()] * 3, found)


def test_labels_that_are_not_read_are_named() -> None:
    forces, stress = np.ones((2, 3)), np.ones(6)
    places = [
        {"REF_forces": forces, "forces": 2 * forces, "dft_energy": 1.0, "virial": stress, "config_energy_weight": 2.0},
        {"REF_forces": forces, "same_forces": forces, "positions": forces},
    ]
    found = [{**labels(), "forces": ("REF_forces", forces)}] * 2
    (said,) = label_remarks(PATH, places, found)
    assert "forces from REF_forces; not used: forces, dft_energy, virial (" in said
    assert "-virial / volume" in said
    assert label_remarks(PATH, [places[1]], found[:1]) == ()
    (said,) = label_remarks(PATH, [places[1], {}], [found[0], labels()])
    assert said == "of frames.xyz are read: forces from REF_forces in 1 of 2 frames"


def test_frames_are_equal_if_their_atoms_are() -> None:
    moved = Atoms()
    moved.positions = moved.positions + 1e-9
    assert frame_key(Atoms()) == frame_key(Atoms())
    assert len({frame_key(each) for each in (Atoms(), moved, Atoms(edge=6.0), Atoms(count=3))}) == 4


def test_frames_in_two_splits_are_counted() -> None:
    (said,) = split_remarks({"train": [b"a", b"b", b"b"], "validation": [b"b", b"c"], "test": [b"c"]})
    assert said.startswith("1 of the 2 validation frames are among the training frames, too")


def compared(factor: float, noise: float = 0.3, offset: float = 0.0) -> Mapping[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    computed, other = torch.randn(2, 40, generator=generator)
    label = factor * (computed + noise * other) + offset
    return {"energy (eV/atom)": (computed, label), "force on H (eV/A)": (computed, label)}


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (23.06, "energy labels are .* times what the model computes, as in kcal/mol .*expected are eV and"),
        (23.06, "force labels are .* times what the model computes, as in kcal/mol/A .*expected are eV/A and"),
        (1 / 51.4, "force labels are .*as in hartree/bohr "),
        (6.0, r"force labels are \S+ times what the model computes \(corr"),
        (-1.0, "force labels have the other sign, as gradients"),
        (-23.06, "force labels are .*as in kcal/mol/A and have the other sign"),
    ],
)
def test_labels_in_other_units_or_turned_round_are_noticed(factor: float, words: str) -> None:
    said = scale_remarks([compared(factor, offset=-400.0 * factor * ("energy" in words))])
    assert any(re.search(words, each) for each in said), said


@pytest.mark.parametrize(
    ("factor", "noise"), [(1.0, 0.3), (2.0, 0.3), (0.5, 0.3), (23.06, 3.0), (-1.0, 3.0), (0.0, 0.0)]
)
def test_labels_of_another_method_or_of_a_poor_model_are_not(factor: float, noise: float) -> None:
    """Nor are too few of them."""
    assert scale_remarks([compared(factor, noise)]) == ()
    assert scale_remarks([{name: (a[:4], b[:4]) for name, (a, b) in compared(23.06).items()}]) == ()
