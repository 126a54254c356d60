"""Point clouds in HDF5 files, as ModelNet40 and ShapeNet parts are commonly distributed.

A file has ``data`` (m, n, 3), ``label`` (m,) or (m, 1), and for parts ``pid`` (m, n). A text file of the archive, such
as ``train_files.txt``, names several of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import TaskError
from surgeon.support.imports import close_names, one_line

H5 = (".h5", ".hdf5")


@dataclass(frozen=True)
class Clouds:
    """Point clouds, each centred and scaled so that its furthest point has length 1.

    Attributes:
        points: shape (m, 3, n).
        labels: shape (m,), long: class or category.
        parts: shape (m, n), long; None without parts.
    """

    points: Tensor
    labels: Tensor
    parts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def chosen(self, rows: Tensor) -> Clouds:
        """Return some of the clouds."""
        return Clouds(self.points[rows], self.labels[rows], None if self.parts is None else self.parts[rows])


def read_clouds(path: Path, points: int, dtype: torch.dtype) -> Clouds:
    """Read the first points of every cloud, as the published code takes them; fewer if there are no more.

    Args:
        path: an HDF5 file, or a text file that names some, one per line; their folders are ignored, they are looked
            for beside it.
        points: largest number of points to take of each.
        dtype: of the result.

    Raises:
        TaskError: if h5py is missing, or a file, or what has to be in it.
    """
    read = [_read(file, points) for file in _files(path)]
    if len({clouds.parts is None for clouds in read}) > 1:
        raise TaskError(f"expected all or none of the files in {str(path)!r} to have `pid`: give files of one kind")
    counts = sorted({clouds.points.shape[1] for clouds in read})
    if len(counts) > 1:
        raise TaskError(
            f"expected clouds of as many points in all files of {str(path)!r}, got {counts[0]} and {counts[-1]}: "
            f"give --task-args '{{\"points\": {counts[0]}}}' or fewer"
        )
    parts = [clouds.parts for clouds in read if clouds.parts is not None]
    raw = torch.cat([clouds.points for clouds in read])
    return Clouds(
        _normalised(raw).transpose(1, 2).contiguous().to(dtype),
        torch.cat([clouds.labels for clouds in read]),
        torch.cat(parts) if parts else None,
    )


def _files(path: Path) -> Sequence[Path]:
    if path.suffix in H5:
        return [path]
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"expected an HDF5 file (.h5) or a list of such files, got {str(path)!r} ({one_line(error)}): "
            "give one of these"
        ) from error
    files = [path.parent / Path(name).name for name in names]
    missing = [file.name for file in files if not file.is_file() or file.suffix not in H5]
    if missing or not files:
        beside = sorted(file.name for file in path.parent.glob("*.h5"))
        raise TaskError(
            f"expected {str(path)!r} to name HDF5 files beside it, one per line, but "
            f"{missing[0] if missing else 'any name'} is missing: its folder holds "
            f"{close_names(missing[0] if missing else '', beside)}"
        )
    return files


def _read(path: Path, points: int) -> Clouds:
    """Return the raw clouds of one file in float64, points of shape (m, n, 3)."""
    try:
        h5py = importlib.import_module("h5py")
    except ImportError as error:
        raise TaskError(
            f"reading {str(path)!r} needs h5py, which is not installed: pip install 'equisurgeon[pointclouds]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            _require_form(path, {name: tuple(file[name].shape) for name in file if hasattr(file[name], "shape")})
            arrays: dict[str, Any] = {"data": file["data"][:, :points], "label": file["label"][()]}
            if "pid" in file:
                arrays["pid"] = file["pid"][:, :points]
    except TaskError:
        raise
    except Exception as error:  # a damaged file raises whatever its fields lead to
        raise TaskError(
            f"could not read {str(path)!r} as HDF5 ({one_line(error)}): it is damaged or another format, fetch it again"
        ) from error
    labels = torch.as_tensor(arrays["label"]).long().reshape(-1)
    parts = torch.as_tensor(arrays["pid"]).long() if "pid" in arrays else None
    return Clouds(torch.as_tensor(arrays["data"]).double(), labels, parts)


def _require_form(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    data, label = shapes.get("data", ()), shapes.get("label", ())
    fits = len(data) == 3 and data[-1] == 3 and label in ((data[0],), (data[0], 1))
    if not fits or ("pid" in shapes and shapes["pid"] != data[:2]):
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing"
        raise TaskError(
            f"expected {str(path)!r} to hold data (m, n, 3), label (m,) or (m, 1), and pid (m, n) if it has parts, "
            f"got {found}: write it so"
        )


def _normalised(points: Tensor) -> Tensor:
    """Centre clouds of shape (m, n, 3) and scale them into the unit ball; a single point stays at the origin."""
    centred = points - points.mean(1, keepdim=True)
    radius = torch.linalg.vector_norm(centred, dim=-1).amax(-1)[:, None, None]
    return centred / torch.where(radius > 0, radius, torch.ones_like(radius))
