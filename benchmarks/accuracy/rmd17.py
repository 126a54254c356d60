"""Frames of rMD17 as the tables take them: ``MOLECULE_{train,valid,test}.xyz``, or the same with ``.gz``."""

from __future__ import annotations

import gzip
from pathlib import Path


def unpacked(folder: Path, molecule: str, split: str) -> str:
    """Return the text of the frames of one split.

    Raises:
        SystemExit: if there is no such file.
    """
    plain, packed = (folder / f"{molecule}_{split}.xyz{ending}" for ending in ("", ".gz"))
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
    if packed.is_file():
        return gzip.decompress(packed.read_bytes()).decode()
    raise SystemExit(f"expected {plain.name} or {packed.name} in '{folder}', found neither: name the folder of rMD17")


def write_frames(folder: Path, molecule: str, target: Path, train: int | None = None) -> dict[str, Path]:
    """Write the frames of a molecule as they are, and return one path for every split; errors as above.

    Args:
        train: number of training frames, the first of the file; default all.
    """
    paths = {split: target / f"{molecule}_{split}.xyz" for split in ("train", "valid", "test")}
    for split, path in paths.items():
        path.write_text(unpacked(folder, molecule, split), encoding="utf-8")
    if train is not None:
        text = paths["train"].read_text(encoding="utf-8")
        lines = text.splitlines(keepends=True)
        each = int(lines[0]) + 2  # a frame: the number of atoms, a line about it, and the atoms
        if len(lines) < train * each:
            raise SystemExit(f"expected {train} training frames of {molecule}, got {len(lines) // each}: ask for fewer")
        paths["train"].write_text("".join(lines[: train * each]), encoding="utf-8")
    return paths
