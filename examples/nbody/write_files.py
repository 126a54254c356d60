"""Write simulated trajectories as the public N-body files: ``{loc,vel,charges,edges}_{split}_{suffix}.npy``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from simulate import FRAME_INTERVAL, TRAJECTORY_FRAMES, initial_conditions, simulate

SUFFIX = "charged5_initvel1small"
STEPS = TRAJECTORY_FRAMES * FRAME_INTERVAL


def write_split(
    folder: Path, split: str, count: int, seed: tuple[int, int], strength: float, steps: int = STEPS
) -> None:
    """Write the four arrays of a split: (count, frames, 3, n), the same, (count, n, 1) and (count, n, n)."""
    start = initial_conditions(count, seed)
    found = simulate(*start, steps=steps, strength=strength)
    charges = start[2][..., None]
    arrays = {
        "loc": found.positions.transpose(0, 1, 3, 2),
        "vel": found.velocities.transpose(0, 1, 3, 2),
        "charges": charges,
        "edges": charges @ charges.transpose(0, 2, 1),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}_{split}_{SUFFIX}.npy", array)


def main() -> None:
    """Write three splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strength", type=float, default=2.0, help="factor of the interaction")
    parser.add_argument(
        "--samples", type=int, default=200, help="trajectories of the training split; the others have 100"
    )
    parser.add_argument("--output", type=Path, default=Path())
    options = parser.parse_args()
    for index, (split, count) in enumerate((("train", options.samples), ("valid", 100), ("test", 100))):
        write_split(options.output, split, count, (0, index), options.strength)


if __name__ == "__main__":
    main()
