"""MD17 and rMD17 files: both sets of names, the published splits, and files that are no such thing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgeon.errors import TaskError
from surgeon_adapters.atoms.md17 import NAMES, Sizes, read_md17, split_frames
from tests.families.equiformer_models import ETHANOL, trajectory, write_md17


def written(path: Path, **changes: Any) -> Path:
    """Write a file with some arrays changed, or left out if None."""
    arrays = {**trajectory(), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_file_of_md17_is_read(tmp_path: Path) -> None:
    frames, expected = read_md17(write_md17(tmp_path / "a.npz")), trajectory()
    assert len(frames) == 12
    assert tuple(frames.numbers.tolist()) == ETHANOL
    assert torch.equal(frames.positions, torch.from_numpy(expected["R"]))
    assert torch.equal(frames.energies, torch.from_numpy(expected["E"][:, 0]))
    assert torch.equal(frames.forces, torch.from_numpy(expected["F"]))


def test_a_file_of_rmd17_is_read_the_same(tmp_path: Path) -> None:
    md17 = trajectory()
    short = {"numbers": "z", "positions": "R", "energies": "E", "forces": "F"}
    arrays = {NAMES[what][1]: md17[name] for what, name in short.items()}
    arrays["energies"] = arrays["energies"][:, 0]
    np.savez(tmp_path / "b.npz", **arrays, old_indices=np.arange(12))
    again, frames = read_md17(tmp_path / "b.npz"), read_md17(write_md17(tmp_path / "a.npz"))
    for name in ("numbers", "positions", "energies", "forces"):
        assert torch.equal(getattr(again, name), getattr(frames, name))


def test_splits_are_a_permutation_that_the_seed_decides() -> None:
    sizes = Sizes(20, 5, 7, seed=1)
    splits = split_frames(40, sizes)
    assert [len(frames) for frames in splits.values()] == [20, 5, 7]
    assert len(set(torch.cat(list(splits.values())).tolist())) == 32
    order = np.random.default_rng(1).permutation(np.arange(40))  # how the published frames are chosen
    assert splits["train"].tolist() == order[:20].tolist()
    assert splits["validation"].tolist() == order[20:25].tolist()
    assert not torch.equal(splits["train"], split_frames(40, Sizes(20, 5, 7, seed=2))["train"])


def test_held_out_frames_are_a_tenth_and_not_too_many() -> None:
    assert [len(frames) for frames in split_frames(100_000, Sizes(train=950)).values()] == [950, 1000, 1000]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (Sizes(train=0), "at least 1.*'train': 0"),
        (Sizes(validation=-2), "'validation': -2"),
        (Sizes(train=35, validation=5, test=5), r"35 \+ 5 \+ 5 frames.*got 40"),
        (Sizes(validation=30, test=10), r"1 \+ 30 \+ 10 frames"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes: Sizes, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        split_frames(40, sizes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"R": None}, "positions.*under R .MD17. or coords .rMD17., but it has z, E, F"),
        ({"F": np.zeros((12, 8, 3))}, r"forces \(12, 8, 3\)"),
        ({"E": np.zeros(11)}, r"energies \(11,\)"),
        ({"z": np.zeros((12, 9))}, r"numbers \(12, 9\)"),
        ({"E": np.full(12, np.nan)}, "finite.*energies"),
        ({"z": np.array(list("CCOHHHHHH"))}, "expected numbers as z"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TaskError, match=words):
        read_md17(written(tmp_path / "a.npz", **changes))


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = write_md17(tmp_path / "ethanol.npz")
    with pytest.raises(TaskError, match=r"no data file.*ethanol\.npz"):
        read_md17(tmp_path / "ethanl.npz")
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "text.npz").write_text("ethanol")
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name in ("cut.npz", "text.npz", "single.npy"):
        with pytest.raises(TaskError, match=f"could not read.*{name}"):
            read_md17(tmp_path / name)


def test_no_pickle_inside_is_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "exploded",))

    written(tmp_path / "a.npz", E=np.array([Bomb()] * 12, dtype=object))
    with pytest.raises(TaskError, match="could not read"):
        read_md17(tmp_path / "a.npz")
    assert not (tmp_path / "exploded").exists()
