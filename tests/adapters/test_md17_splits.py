"""The splits published with rMD17: which frames they choose, where they are found, and files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surgeon.errors import TaskError
from surgeon_adapters.atoms.md17 import Sizes, read_md17
from surgeon_adapters.atoms.md17_splits import published_splits
from surgeon_adapters.zoo.equiformer.task import EquiformerTask
from tests.families.equiformer_models import L1, network, write_md17

FRAMES = 60
ORDER = [int(frame) for frame in np.random.default_rng(3).permutation(FRAMES)]
TRAIN, TEST = ORDER[:40], ORDER[40:55]


def distribution(root: Path, number: int = 1) -> Path:
    """Write a trajectory and one split, in the folders of the distribution."""
    for folder in ("npz_data", "splits"):
        (root / folder).mkdir()
    np.savetxt(root / "splits" / f"index_train_{number:02d}.csv", TRAIN, fmt="%d")
    np.savetxt(root / "splits" / f"index_test_{number:02d}.csv", TEST, fmt="%d")
    return write_md17(root / "npz_data" / "rmd17_ethanol.npz", FRAMES)


def test_the_lines_of_the_files_are_the_frames(tmp_path: Path) -> None:
    splits = published_splits(distribution(tmp_path, 3), 3, FRAMES, Sizes())
    assert splits["train"].tolist() == TRAIN[:38]
    assert splits["validation"].tolist() == TRAIN[38:]
    assert splits["test"].tolist() == TEST


def test_sizes_take_the_first_lines_and_validation_the_last(tmp_path: Path) -> None:
    splits = published_splits(distribution(tmp_path), 1, FRAMES, Sizes(train=10, validation=5, test=7))
    assert splits["train"].tolist() == TRAIN[:10]
    assert splits["validation"].tolist() == TRAIN[35:]
    assert splits["test"].tolist() == TEST[:7]


def test_files_beside_the_trajectory_come_first(tmp_path: Path) -> None:
    data = distribution(tmp_path)
    (data.parent / "index_train_01.csv").write_bytes(f"{TRAIN[4]}\r\n{TRAIN[2]}\r\n\r\n".encode())
    assert published_splits(data, 1, FRAMES, Sizes())["train"].tolist() == [TRAIN[4]]


def test_the_task_reads_them(tmp_path: Path) -> None:
    data = distribution(tmp_path)
    task = EquiformerTask(data, split=1, batch_size=50).for_model(network(L1))
    frames = read_md17(data)
    (batch,) = task.batches("test", 0)
    assert torch.equal(batch["forces"], frames.forces[TEST].reshape(-1, 3))
    assert task.mean == pytest.approx(float(frames.energies[TRAIN[:38]].mean()))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("frame\n1\n2\n", "got 'frame' in line 1"),
        ("1\n60\n", "from 0 to 59.*got '60' in line 2"),
        ("1\n-2\n", "got '-2' in line 2"),
        ("1.5\n", "got '1.5'"),
        ("4\n5\n4\n", "lines 1 and 3 have frame 4"),
        ("\n\n", "it is empty"),
        (f"{TEST[0]}\n1\n", f"both have frame {TEST[0]}"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    data = distribution(tmp_path)
    (tmp_path / "splits" / "index_train_01.csv").write_text(text)
    with pytest.raises(TaskError, match=words):
        published_splits(data, 1, FRAMES, Sizes())


@pytest.mark.parametrize(
    ("number", "sizes", "words"),
    [
        (2, Sizes(), r"no index_train_02\.csv.*npz_data.*splits.*leave split out"),
        (6, Sizes(), "from 1 to 5, got 6"),
        ("01", Sizes(), "from 1 to 5, got '01'"),
        (1, Sizes(train=39, validation=2), "at most 40 frames for training and validation together and 15"),
        (1, Sizes(test=16), "at most 40.*'test': 16"),
        (1, Sizes(train=0), "at least 1"),
        (1, Sizes(validation=40), "at least 1"),
    ],
)
def test_splits_that_do_not_exist_are_refused(tmp_path: Path, number: Any, sizes: Sizes, words: str) -> None:
    data = distribution(tmp_path)
    with pytest.raises(TaskError, match=words):
        published_splits(data, number, FRAMES, sizes)


def test_the_argument_comes_from_the_command_line() -> None:
    assert EquiformerTask(Path("x.npz"), **json.loads('{"split": 2}')).split == 2
