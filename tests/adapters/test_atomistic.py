"""What the tasks of all potentials share: splits, batches, and how a group acts on atoms and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import TaskError
from surgeon_adapters.atoms.acting import act_on_atoms, act_on_labels
from surgeon_adapters.atoms.potential import Frames, Potential
from surgeon_adapters.atoms.reference import Energies
from surgeon_adapters.atoms.task import ATOMS, AtomisticTask, few
from surgeon_adapters.atoms.xyz_frames import LabelledFrames

SIZES = {"many.xyz": 20, "few.xyz": 2, "other.xyz": 5}


class Numbers(Frames):
    """Frames that are known by their numbers."""

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {"number": torch.tensor([self.graphs[index] for index in indices], dtype=self.dtype)}


@dataclass(frozen=True)
class NumbersTask(AtomisticTask):
    library = "numbers"
    positions = "positions"
    vectors = ("cell",)

    def potential_of(self, model: nn.Module) -> Potential:
        raise NotImplementedError

    def for_model(self, model: nn.Module) -> NumbersTask:
        return replace(self, frames=self.split((1,), build))

    def read(self, path: Path, elements: Iterable[int]) -> LabelledFrames:
        return LabelledFrames(range(SIZES[path.name]), (), ("energy",), {1: -0.5})

    def outputs(self, model: Any, batch: Mapping[str, Tensor], twice: bool) -> dict[str, Tensor]:
        return {"energy": batch["number"]}


class Potentialless(Potential):
    """Knows its energies and nothing else."""

    kind = Numbers

    def graph(self, read: LabelledFrames, index: int) -> Any:
        raise NotImplementedError


def build(read: LabelledFrames, path: Path) -> Numbers:
    keys = [b"%d" % number for number in read.frames]
    return Numbers(read.frames, [[1]] * len(keys), read.labels, read.isolated, torch.float64, keys, ())


def numbers(task: NumbersTask, split: str, seed: int = 0) -> list[int]:
    batches = list(task.batches(split, seed))  # type: ignore[arg-type]
    assert len(batches) == len(task.batches(split, seed))  # type: ignore[arg-type]
    return [int(number) for batch in batches for number in batch["number"]]


def test_ops_are_looked_for_on_few_frames_with_every_element() -> None:
    usual = [6, *[1] * 8]
    many = [[1] * 200, *[usual] * 30, [1, 1], [*usual, 8]]
    chosen = few(many, most=8)
    assert chosen == [1, 2, 3, 32], "of usual size, with as many atoms as are wanted, and the one oxygen"
    assert sum(len(many[index]) for index in chosen) >= ATOMS
    assert few([[1] * 200] * 4, most=8) == [0, 1], "two, however large, so that rows differ"
    assert few([[1] * 200] * 4, most=1) == [0], "no more than the user's batches have"
    assert few([[1], [6]], most=1) == [0, 1], "but every element"


def test_every_frame_is_in_one_split() -> None:
    task = NumbersTask(Path("many.xyz"), fraction=0.15, batch_size=4).for_model(nn.Identity())
    splits = {split: numbers(task, split) for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in splits.items()} == {"train": 14, "validation": 3, "test": 3}
    assert sorted(sum(splits.values(), [])) == list(range(20))
    other = NumbersTask(Path("many.xyz"), fraction=0.15, seed=1).for_model(nn.Identity())
    assert set(numbers(other, "test")) != set(splits["test"])
    assert numbers(task, "train", 1) != splits["train"]
    assert sorted(numbers(task, "train", 1)) == sorted(splits["train"])
    assert numbers(task, "test", 1) == splits["test"]


def test_a_split_may_have_a_file_of_its_own() -> None:
    task = NumbersTask(Path("many.xyz"), validation="other.xyz").for_model(nn.Identity())
    assert numbers(task, "validation") == list(range(5))
    assert len(task.frames["train"]) == 18


def test_unusable_settings_are_refused() -> None:
    with pytest.raises(TaskError, match="expected enough frames .* in 'few.xyz', got 2"):
        NumbersTask(Path("few.xyz")).for_model(nn.Identity())
    with pytest.raises(TaskError, match="0 < fraction < 0.5"):
        NumbersTask(Path("many.xyz"), fraction=0.5).for_model(nn.Identity())
    with pytest.raises(TaskError, match="the task of numbers has not seen its model yet"):
        NumbersTask(Path("many.xyz")).batches("train", 0)


def random_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"positions": (4, 3), "cell": (3, 3), "forces": (4, 3), "stress": (2, 3, 3), "energy": (2,)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def test_the_action_follows_the_group() -> None:
    """Acting twice is acting with the product; for the negative twin, in the other order."""
    batch = random_batch()
    first, second = parse_group("E3").sample(2, torch.Generator().manual_seed(1), 1)
    twice = act_on_atoms(second, act_on_atoms(first, batch, "positions", ("cell",)), "positions", ("cell",))
    product, wrong = (act_on_atoms(g, batch, "positions", ("cell",)) for g in (second @ first, first @ second))
    for name in batch:
        torch.testing.assert_close(twice[name], product[name])
    for name in ("positions", "cell", "forces", "stress"):
        assert (twice[name] - wrong[name]).abs().max() > 0.1
    assert list(act_on_labels(first, {"energy": batch["energy"]})) == ["energy"]


def test_work_and_pressure_are_invariant_and_only_positions_are_shifted() -> None:
    batch, g = random_batch(), torch.eye(4, dtype=torch.float64)
    g[:3, :3], g[:3, 3] = parse_group("O3").sample(1, torch.Generator().manual_seed(2), 1)[0], torch.tensor([1, 2, 3])
    moved, turned = (act_on_atoms(each, batch, "positions", ("cell",)) for each in (g, g[:3, :3]))
    torch.testing.assert_close(
        (turned["positions"] * turned["forces"]).sum(), (batch["positions"] * batch["forces"]).sum()
    )
    normal = batch["cell"][0]
    pressure, again = normal @ batch["stress"][0] @ normal, turned["cell"][0] @ turned["stress"][0] @ turned["cell"][0]
    torch.testing.assert_close(again, pressure)
    assert (turned["stress"] - batch["stress"]).abs().max() > 0.1
    torch.testing.assert_close(moved["positions"] - turned["positions"], g[:3, 3].expand(4, 3))
    assert all(torch.equal(moved[name], turned[name]) for name in batch if name != "positions")


def test_pairs_are_energies_per_atom_and_forces_by_element_where_there_are_labels() -> None:
    energies = Energies((0.0, 0.0), ("H", "C"), {1: 0, 6: 1})
    task = NumbersTask(Path("many.xyz"), potential=Potentialless(energies, torch.float64))
    batch = {"num_atoms": torch.tensor([2, 1]), "atomic_numbers": torch.tensor([6, 1, 1])}
    batch |= {"energy": torch.tensor([4.0, 3.0]), "forces": torch.arange(9.0).reshape(3, 3)}
    outputs = {"energy": torch.tensor([6.0, 5.0]), "forces": batch["forces"] + 1}
    found = task.pairs(outputs, batch)
    assert list(found) == ["energy (eV/atom)", "force on H (eV/A)", "force on C (eV/A)"]
    assert [value.tolist() for value in found["energy (eV/atom)"]] == [[3.0, 5.0], [2.0, 3.0]]
    assert [value.flatten().tolist() for value in found["force on C (eV/A)"]] == [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]
    weights = {"energy_weight": torch.tensor([0.0, 1.0]), "forces_weight": torch.tensor([1.0, 0.0])}
    found = task.pairs(outputs, {**batch, **weights})
    assert found["energy (eV/atom)"][1].tolist() == [3.0]
    assert found["force on H (eV/A)"][1].tolist() == [[3.0, 4.0, 5.0]]
    del batch["forces"]
    assert list(task.pairs(outputs, batch)) == ["energy (eV/atom)"]
