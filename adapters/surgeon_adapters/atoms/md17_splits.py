"""The five splits that are published with rMD17: ``index_train_01.csv`` to ``index_test_05.csv``."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from surgeon.errors import TaskError
from surgeon.plan import Split
from surgeon_adapters.atoms.md17 import Sizes

NUMBERS = range(1, 6)
HELD_OUT_SHARE = 20
"""One training frame in so many is for validation if no number is given: 50 of 1000, as is usual."""


def published_splits(data: Path, number: int, count: int, sizes: Sizes) -> dict[Split, Tensor]:
    """Return which frames each split takes, as the files say that are published with a trajectory.

    The files hold one number of a frame per line, counted from 0. They are looked for beside the trajectory and, as in
    the distribution, in a folder ``splits`` beside the trajectory's own.

    Args:
        number: of the split, from 1 to 5.
        count: number of frames of the trajectory.
        sizes: how many frames to take; default for validation: a twentieth of the training file, its last lines, for
            there is no third file; for training: all before them; for the test: all of the test file. The seed is not
            used.

    Returns:
        Indices, long, in the order of the files; no frame is in two splits.

    Raises:
        TaskError: if a file is missing, holds anything else, or has too few lines, or if there is no such split.
    """
    if type(number) is not int or number not in NUMBERS:
        raise TaskError(
            f"expected split to be a number from 1 to 5, got {number!r}: rMD17 has these; correct --task-args"
        )
    fitted, test = (_indices(_path(data, f"index_{part}_{number:02d}.csv"), count) for part in ("train", "test"))
    both = set(fitted) & set(test)
    if both:
        raise TaskError(
            f"expected different frames for training and test in split {number}, but both have frame {min(both)}: "
            "fetch the files again"
        )
    validation = max(1, len(fitted) // HELD_OUT_SHARE) if sizes.validation is None else sizes.validation
    train = len(fitted) - validation if sizes.train is None else sizes.train
    tested = len(test) if sizes.test is None else sizes.test
    wanted = {"train": train, "validation": validation, "test": tested}
    if any(type(size) is not int or size < 1 for size in wanted.values()):
        raise TaskError(f"expected numbers of frames of at least 1, got {wanted}: correct --task-args")
    if train + validation > len(fitted) or tested > len(test):
        raise TaskError(
            f"expected at most {len(fitted)} frames for training and validation together and {len(test)} for the test, "
            f"which split {number} has, got {wanted}: give smaller numbers in --task-args"
        )
    first = len(fitted) - validation
    return {
        "train": torch.tensor(fitted[:train]),
        "validation": torch.tensor(fitted[first:]),
        "test": torch.tensor(test[:tested]),
    }


def _path(data: Path, name: str) -> Path:
    folders = (data.absolute().parent, data.absolute().parent.parent / "splits")
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise TaskError(
        f"there is no {name} in {str(folders[0])!r} or {str(folders[1])!r}: unpack the folder `splits` of rMD17 beside "
        f"{data.name}, or leave split out of --task-args"
    )


def _indices(path: Path, count: int) -> list[int]:
    found: dict[int, int] = {}
    for place, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        text = line.strip()
        if not text:
            continue
        if not (text.isascii() and text.isdigit() and int(text) < count):
            raise TaskError(
                f"expected the number of a frame from 0 to {count - 1} in each line of {str(path)!r}, got {text[:40]!r}"
                f" in line {place}: is it the file of this trajectory?"
            )
        if int(text) in found:
            raise TaskError(
                f"expected different frames in {str(path)!r}, but lines {found[int(text)]} and {place} have frame "
                f"{text}: fetch it again"
            )
        found[int(text)] = place
    if not found:
        raise TaskError(
            f"expected the number of a frame in each line of {str(path)!r}, but it is empty: fetch it again"
        )
    return list(found)
