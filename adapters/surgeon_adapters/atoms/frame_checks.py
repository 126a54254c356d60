"""What makes frames unusable, and what a user should know of their labels: nothing is chosen in silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from surgeon.errors import TaskError

LABEL_LIKE = ("energ", "force", "stress", "virial", "gradient")
"""Parts of the names of what may be a label."""

LARGEST_CELL = 1e9
"""Volume in cubic angstrom; libraries look for neighbours in boxes of the cutoff, and fill the memory with more."""

Found = Mapping[str, tuple[str, Any] | None]
"""Label to its name in the file and its value; None if a frame lacks it."""


def require_usable(path: Path, frames: Sequence[Any], found: Sequence[Found]) -> None:
    """Check every frame: atoms, cell, and labels that are numbers, finite and of the right shape.

    Raises:
        TaskError: naming the first frame that has something else.
    """
    for index, (frame, labels) in enumerate(zip(frames, found, strict=True)):
        wrong = next(_wrong(frame, labels), None)
        if wrong is not None:
            raise TaskError(
                f"frame {index} of {str(path)!r}, counted from 0, has {wrong}: correct it, or leave it out of the file"
            )
    for label in ("energy", "forces", "stress"):
        names = Counter(each[0] for labels in found if (each := labels[label]) is not None)
        if len(names) > 1:
            told = " and ".join(f"{count} under {name}" for name, count in names.items())
            raise TaskError(
                f"expected {label} under one name in all frames of {str(path)!r}, got {told}, which need not be of one "
                f"method: say which counts as {label}_key in --task-args"
            )


def _wrong(frame: Any, labels: Found) -> Iterator[str]:
    """Tell what is wrong with a frame."""
    if not len(frame):
        yield "no atoms"
    if not np.isfinite(frame.positions).all():
        yield "positions that are not finite"
    if any(periodic and not edge.any() for periodic, edge in zip(frame.pbc, frame.cell.array, strict=True)):
        yield "a periodic axis without a cell (set pbc to F, or give the lattice)"
    if frame.pbc.any() and frame.cell.volume > LARGEST_CELL:
        yield f"a periodic cell of {frame.cell.volume:.1g} A^3 (set pbc to F, if it is a molecule in a box)"
    if labels["stress"] is not None and not frame.cell.volume:
        yield f"{labels['stress'][0]}, but no cell"
    shapes = {"energy": (1,), "forces": (3 * len(frame),), "stress": (6, 9)}
    for label, sizes in shapes.items():
        if (each := labels[label]) is not None:
            value = np.asarray(each[1])
            if value.dtype.kind not in "fiu" or value.size not in sizes or not np.isfinite(value).all():
                yield f"{each[0]} other than finite numbers, {' or '.join(str(size) for size in sizes)} of them"


def label_remarks(path: Path, places: Sequence[Mapping[str, Any]], found: Sequence[Found]) -> tuple[str, ...]:
    """Say which labels are read from where, if a file has others, or lacks some in some frames.

    Args:
        places: all named values of each frame.
        found: what counts as its labels.
    """
    used = [{each[0]: each[1] for each in labels.values() if each is not None} for labels in found]
    others = dict.fromkeys(
        name
        for values, own in zip(places, used, strict=True)
        for name, value in values.items()
        if name not in own and _like_a_label(name) and not any(np.array_equal(value, each) for each in own.values())
    )
    told = []
    for label in ("energy", "forces", "stress"):
        had = [each[0] for labels in found if (each := labels[label]) is not None]
        if had:
            told.append(f"{label} from {had[0]}" + f" in {len(had)} of {len(found)} frames" * (len(had) < len(found)))
    if not others and "of" not in " ".join(told).split():
        return ()
    unused = f"; not used: {', '.join(others)} (energy_key, forces_key and stress_key in --task-args name others)"
    if any("virial" in name.lower() for name in others):
        unused += "; of virials, in eV, write -virial / volume as stress"
    return (f"of {path.name} are read: {', '.join(told)}{unused * bool(others)}",)


def _like_a_label(name: str) -> bool:
    lowered = name.lower()
    return any(part in lowered for part in LABEL_LIKE) and not lowered.endswith("_weight")


def frame_key(frame: Any) -> bytes:
    """Return what two frames have in common only if they hold the same atoms at the same places."""
    return b"".join(np.ascontiguousarray(each).tobytes() for each in (frame.numbers, frame.positions, frame.cell.array))


def split_remarks(keys: Mapping[str, Sequence[bytes]]) -> tuple[str, ...]:
    """Say how many frames of other splits are training frames, too.

    Args:
        keys: of the frames of each split, as :func:`frame_key` makes them.
    """
    trained = set(keys["train"])
    twice = {split: sum(key in trained for key in own) for split, own in keys.items() if split != "train"}
    return tuple(
        f"{count} of the {len(keys[split])} {split} frames are among the training frames, too: the errors on them do "
        "not tell how the potential does on others"
        for split, count in twice.items()
        if count
    )
