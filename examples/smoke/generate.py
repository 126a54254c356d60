"""Simulate smoke in a closed box with PhiFlow: the shipped files ``smoke_rotation.npz`` and ``smoke_scale.npz``.

Needs ``pip install phiflow`` (3.4.0 made the shipped files). Smoke enters near a wall and is driven into the box by
buoyancy; what is kept is the velocity at cell centres, in cells per step.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from phi.flow import (
    Box,
    CenteredGrid,
    Solve,
    Sphere,
    StaggeredGrid,
    advect,
    extrapolation,
    fluid,
)

DIRECTIONS = ((0, 1), (-1, 0), (0, -1), (1, 0))
"""Where buoyancy pushes, by the number of quarter turns; smoke enters at the opposite wall."""


@dataclass(frozen=True)
class Settings:
    """The simulated box.

    Attributes:
        cells: along each side; odd, so that a cell lies in the centre.
        frames: that are kept.
        every: steps between two of them.
        start: step of the first one.
        tolerance: relative, of the pressure.
    """

    cells: int = 25
    frames: int = 9
    every: int = 2
    start: int = 8
    tolerance: float = 1e-4


def simulate(settings: Settings, turns: int, buoyancy: float, factor: float = 1.0) -> np.ndarray:
    """Return velocities (frames, 2, y, x) in cells per step.

    Args:
        settings: the box.
        turns: direction of the buoyancy, in quarter turns.
        buoyancy: acceleration by a unit of smoke, in cells per step squared.
        factor: the same experiment in a box of so many times the cells; the result is brought back to the first grid.
    """
    cells, size = round(settings.cells * factor), float(round(settings.cells * factor))
    grid = {"x": cells, "y": cells, "bounds": Box(x=size, y=size)}
    push = np.array(DIRECTIONS[turns], dtype=float)
    x, y = size * (0.5 - 0.34 * push)
    smoke = CenteredGrid(0, extrapolation.BOUNDARY, **grid)
    velocity = StaggeredGrid(0, extrapolation.ZERO, **grid)
    inflow = CenteredGrid(Sphere(x=x, y=y, radius=0.1 * size), extrapolation.BOUNDARY, **grid)
    force = tuple(float(part) for part in push * buoyancy * factor)
    kept = []
    for step in range(settings.start + settings.every * (settings.frames - 1) + 1):
        smoke = advect.mac_cormack(smoke, velocity, dt=1) + inflow
        velocity = advect.semi_lagrangian(velocity, velocity, dt=1) + (smoke * force) @ velocity
        velocity, _ = fluid.make_incompressible(velocity, (), Solve("CG", settings.tolerance, 1e-5, rank_deficiency=0))
        if step >= settings.start and (step - settings.start) % settings.every == 0:
            kept.append(_at_centres(velocity, settings.cells, size) / factor)
    return np.stack(kept)


def _at_centres(velocity: StaggeredGrid, cells: int, size: float) -> np.ndarray:
    target = CenteredGrid(0, extrapolation.ZERO, x=cells, y=cells, bounds=Box(x=size, y=size))
    centred: np.ndarray = (velocity @ target).values.numpy("vector,y,x")
    return centred


def rotation(settings: Settings) -> Iterator[tuple[str, np.ndarray]]:
    """Yield smoke that rises in each of four directions, in each with another strength: the symmetry is imperfect."""
    for strength in (1, 2):
        for turns in range(len(DIRECTIONS)):
            buoyancy = 0.02 * strength * (1 + 0.25 * turns)
            yield f"{strength}_{turns}", simulate(settings, turns, buoyancy)


def scale(settings: Settings) -> Iterator[tuple[str, np.ndarray]]:
    """Yield experiments with other steps of space and time: each factor resolves other eddies."""
    for strength in (1, 2):
        for number, factor in enumerate((1.0, 1.5, 2.0)):
            yield f"{strength}_{number}", simulate(settings, 0, 0.02 * strength, factor)


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--cells", type=int, default=Settings.cells)
    parser.add_argument("--frames", type=int, default=Settings.frames)
    given = parser.parse_args()
    settings = Settings(cells=given.cells, frames=given.frames)
    for name, make in (("rotation", rotation), ("scale", scale)):
        sequences = dict(make(settings))
        path = given.output / f"smoke_{name}.npz"
        velocity = np.stack(list(sequences.values())).astype(np.float16)
        np.savez_compressed(path, names=np.array(list(sequences)), velocity=velocity)
        print(
            f"wrote {path}: {velocity.shape}, largest speed {np.abs(velocity).max():.2f}, {path.stat().st_size} bytes"
        )


if __name__ == "__main__":
    main()
