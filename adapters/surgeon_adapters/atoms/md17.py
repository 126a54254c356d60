"""Molecular dynamics of one molecule from MD17 and rMD17 files, as any adapter can use them.

A file is an ``.npz`` with atomic numbers, positions in Angstrom, energies in kcal/mol and forces in kcal/mol/Angstrom;
MD17 calls them ``z``, ``R``, ``E``, ``F``, rMD17 ``nuclear_charges``, ``coords``, ``energies``, ``forces``.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import TaskError
from surgeon.plan import Split
from surgeon.support.imports import close_names, one_line

NAMES = {
    "numbers": ("z", "nuclear_charges"),
    "positions": ("R", "coords"),
    "energies": ("E", "energies"),
    "forces": ("F", "forces"),
}
"""Names of the arrays in MD17 and in rMD17."""

HELD_OUT = 1000
"""Most frames that a held-out split takes when its size is not given: trajectories have a hundred thousand."""


@dataclass(frozen=True)
class Trajectory:
    """Frames of one molecule.

    Attributes:
        numbers: shape (a,), long: atomic numbers.
        positions: shape (f, a, 3), float64, in Angstrom.
        energies: shape (f,), float64, in kcal/mol.
        forces: shape (f, a, 3), float64, in kcal/mol/Angstrom.
    """

    numbers: Tensor
    positions: Tensor
    energies: Tensor
    forces: Tensor

    def __len__(self) -> int:
        return len(self.energies)


def read_md17(path: str | Path) -> Trajectory:
    """Read an MD17 or rMD17 file. No pickle inside is executed.

    Args:
        path: the ``.npz`` file.

    Raises:
        TaskError: if it is missing or damaged, lacks an array, or shapes do not fit.
    """
    path = Path(path)
    arrays = _arrays(path)
    numbers, positions, energies, forces = (_tensor(path, arrays, what) for what in NAMES)
    energies = energies.reshape(-1)
    expected = (len(energies), numbers.numel(), 3)
    if numbers.ndim != 1 or positions.shape != expected or forces.shape != expected or not len(energies):
        shapes = ", ".join(f"{what} {tuple(arrays[_name(arrays, what)].shape)}" for what in NAMES)
        raise TaskError(
            f"expected frames of one molecule in {str(path)!r}, numbers (a,), positions and forces (f, a, 3), energies "
            f"(f,) or (f, 1), got {shapes}: write it as MD17 or rMD17 does"
        )
    read = {"positions": positions, "energies": energies, "forces": forces}
    wrong = [what for what, values in read.items() if not bool(torch.isfinite(values).all())]
    if wrong:
        raise TaskError(f"expected finite numbers in {str(path)!r}, but {wrong[0]} has others: leave such frames out")
    return Trajectory(numbers.round().long(), positions, energies, forces)


def _arrays(path: Path) -> dict[str, Any]:
    """Return the arrays that are known, from a file that is opened without pickle."""
    numpy = importlib.import_module("numpy")
    try:
        # numpy leaves a file open that it cannot read
        with open(path, "rb") as handle, numpy.load(handle, allow_pickle=False) as archive:
            known = {name for pair in NAMES.values() for name in pair}
            found = {name: archive[name] for name in archive.files if name in known}
            names = list(archive.files)
    except FileNotFoundError as error:
        others = sorted(other.name for other in path.parent.glob("*.npz"))
        raise TaskError(
            f"there is no data file {str(path)!r}: its folder holds {close_names(path.name, others)}"
        ) from error
    except Exception as error:  # numpy, zipfile and zlib each have their own
        raise TaskError(
            f"could not read {str(path)!r} as an MD17 file ({one_line(error)}): fetch or write it again"
        ) from error
    for what, choices in NAMES.items():
        if not set(choices) & set(found):
            raise TaskError(
                f"expected the {what} in {str(path)!r} under {' (MD17) or '.join(choices)} (rMD17), but it has "
                f"{', '.join(names[:12]) or 'nothing'}: rename them"
            )
    return found


def _name(arrays: Mapping[str, Any], what: str) -> str:
    return next(name for name in NAMES[what] if name in arrays)


def _tensor(path: Path, arrays: Mapping[str, Any], what: str) -> Tensor:
    name = _name(arrays, what)
    try:
        tensor: Tensor = torch.from_numpy(arrays[name].astype("float64"))
        return tensor
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"expected numbers as {name} in {str(path)!r}, got {arrays[name].dtype}: write it again"
        ) from error


@dataclass(frozen=True)
class Sizes:
    """How many frames each split takes; None: a tenth, at most 1000, for a held-out split, and the rest to train on.

    Attributes:
        train, validation, test: numbers of frames.
        seed: of the permutation; 1 and (950, 50) give the published training and validation frames.
    """

    train: int | None = None
    validation: int | None = None
    test: int | None = None
    seed: int = 1


def split_frames(count: int, sizes: Sizes) -> dict[Split, Tensor]:
    """Return which frames each split takes: a permutation of all of them, cut into train, validation and test.

    Returns:
        Indices, long; no frame is in two splits.

    Raises:
        TaskError: if a size is not positive, or there are too few frames.

    Example:
        >>> {split: len(frames) for split, frames in split_frames(60, Sizes()).items()}
        {'train': 48, 'validation': 6, 'test': 6}
    """
    given = {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}
    wrong = {name: size for name, size in given.items() if size is not None and (type(size) is not int or size < 1)}
    if wrong:
        raise TaskError(f"expected numbers of frames of at least 1, got {wrong}: correct --task-args")
    tenth = min(HELD_OUT, max(1, math.floor(count / 10)))
    validation, test = (tenth if size is None else size for size in (sizes.validation, sizes.test))
    train = count - validation - test if sizes.train is None else sizes.train
    if train < 1 or train + validation + test > count:
        raise TaskError(
            f"expected at least {max(train, 1)} + {validation} + {test} frames for training, validation and test, got "
            f"{count}: give smaller train, validation and test in --task-args"
        )
    numpy = importlib.import_module("numpy")
    order = torch.from_numpy(numpy.random.default_rng(sizes.seed).permutation(count))
    ends = (train, train + validation, train + validation + test)
    return {"train": order[: ends[0]], "validation": order[ends[0] : ends[1]], "test": order[ends[1] : ends[2]]}
