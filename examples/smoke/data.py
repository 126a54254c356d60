"""Sequences of velocity fields: the shipped npz files, and folders in the format of the published smoke set."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from surgeon.errors import TaskError

PREFIX, SUFFIX = "raw_data_", ".pt"


@dataclass(frozen=True)
class Sequences:
    """Simulated experiments.

    Attributes:
        names: one per experiment.
        velocity: shape (n, t, 2, h, w), float32; (x, y) components, rows along y, in cells per step.
    """

    names: tuple[str, ...]
    velocity: Tensor


def read_sequences(path: Path) -> Sequences:
    """Read experiments.

    Args:
        path: an npz file with the arrays ``names`` (n,) and ``velocity`` (n, t, 2, h, w); or a folder with one tensor
            (t, 2, h, w) per experiment in ``raw_data_<name>.pt``, as the published smoke set has it.

    Raises:
        TaskError: if there is no such data; no code that a file may contain is executed.
    """
    if path.is_dir():
        return _from_folder(path)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, velocity = arrays["names"], torch.from_numpy(arrays["velocity"].astype(np.float32))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TaskError(
            f"expected a folder with {PREFIX}*{SUFFIX}, or an npz file with 'names' and 'velocity', at {str(path)!r}: "
            f"{error}"
        ) from error
    return _checked(tuple(str(name) for name in names), velocity, path)


def _from_folder(folder: Path) -> Sequences:
    files = sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))
    if not files:
        raise TaskError(f"expected files {PREFIX}*{SUFFIX} in {str(folder)!r}, got none: name the folder that has them")
    tensors = []
    for file in files:
        try:
            tensor = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:  # whatever the unpickler meets
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise TaskError(f"expected one plain tensor in {str(file)!r}, which could not be read: {reason}") from error
        if not isinstance(tensor, Tensor) or (tensors and tensor.shape[1:] != tensors[0].shape[1:]):
            got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TaskError(f"expected tensors (t, 2, h, w) of one size, got {got} in {str(file)!r}: take it out")
        tensors.append(tensor.float())
    shortest = min(len(tensor) for tensor in tensors)
    names = tuple(file.name[len(PREFIX) : -len(SUFFIX)] for file in files)
    return _checked(names, torch.stack([tensor[:shortest] for tensor in tensors]), folder)


def _checked(names: tuple[str, ...], velocity: Tensor, path: Path) -> Sequences:
    if velocity.ndim != 5 or velocity.shape[2] != 2 or len(names) != len(velocity):
        raise TaskError(
            f"expected velocities (n, t, 2, h, w) of n named experiments in {str(path)!r}, got shape "
            f"{tuple(velocity.shape)} and {len(names)} names: correct the file"
        )
    if not bool(velocity.isfinite().all()):
        raise TaskError(f"expected finite velocities in {str(path)!r}, got NaN or infinity: correct the file")
    return Sequences(names, velocity)
