"""Charged particles in three dimensions, integrated for many trajectories at once in float64.

The dynamics are those of the charged N-body benchmark (Kipf et al., "Neural Relational Inference", 2018; in three
dimensions: Fuchs et al., "SE(3)-Transformers", 2020). All quantities are dimensionless.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.intp]

PARTICLES = 5
SPEED = 0.5
TIME_STEP = 0.001
FORCE_LIMIT = 100.0
FRAME_INTERVAL = 100
TRAJECTORY_STEPS = 5_000
# Frame k is the state after (k + 1) * FRAME_INTERVAL steps, and the state after the last step is not stored: 49 frames.
TRAJECTORY_FRAMES = TRAJECTORY_STEPS // FRAME_INTERVAL - 1
INPUT_FRAME = 30
TARGET_FRAME = 40
# Trajectories per block: many enough to hide numpy's overhead per call, few enough that a step stays in the cache.
CHUNK = 1024


@dataclass(frozen=True)
class Trajectories:
    """States at equally spaced frames.

    Attributes:
        positions: shape (b, frames, n, 3).
        velocities: shape (b, frames, n, 3).
    """

    positions: FloatArray
    velocities: FloatArray


@dataclass(frozen=True)
class Pairs:
    """Inputs at frame 30 and positions at frame 40 of fresh trajectories.

    Attributes:
        positions: shape (b, n, 3), at frame 30.
        velocities: shape (b, n, 3), at frame 30.
        charges: shape (b, n), each +1 or -1.
        targets: shape (b, n, 3), positions at frame 40, that is 1.0 time units later.
    """

    positions: FloatArray
    velocities: FloatArray
    charges: FloatArray
    targets: FloatArray


def initial_conditions(
    count: int, seed: int | Sequence[int], *, particles: int = PARTICLES
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Draw positions from N(0, 1), velocity directions uniformly at speed 0.5, and charges +1 or -1 evenly.

    Args:
        count: number of trajectories b.
        seed: seed of ``numpy.random.default_rng``.
        particles: number of particles n in each.

    Returns:
        Positions of shape (b, n, 3), velocities of shape (b, n, 3), charges of shape (b, n).

    Example:
        >>> positions, velocities, charges = initial_conditions(2, seed=0)
        >>> positions.shape, charges.shape
        ((2, 5, 3), (2, 5))
    """
    generator = np.random.default_rng(seed)
    positions = generator.standard_normal((count, particles, 3))
    velocities = generator.standard_normal((count, particles, 3))
    velocities *= SPEED / np.linalg.norm(velocities, axis=-1, keepdims=True)
    charges = generator.choice(np.array([-1.0, 1.0]), size=(count, particles))
    return positions, velocities, charges


def simulate(
    positions: FloatArray,
    velocities: FloatArray,
    charges: FloatArray,
    *,
    steps: int,
    frame_interval: int = FRAME_INTERVAL,
    strength: float = 1.0,
) -> Trajectories:
    """Integrate ``v += dt F(x)``, then ``x += dt v``, and return the state after every ``frame_interval`` steps.

    F_i = strength * sum_j q_i q_j (r_i - r_j) / |r_i - r_j|^3, each component clipped to +-100; dt = 0.001.

    Args:
        positions: shape (b, n, 3).
        velocities: shape (b, n, 3).
        charges: shape (b, n).
        steps: number of steps.
        frame_interval: steps between frames; the first frame comes after the first interval, so the start is not one.
        strength: factor of the interaction; negative values make equal charges attract.

    Returns:
        ``steps // frame_interval`` frames.

    Raises:
        ValueError: if a shape or the frame interval does not fit.

    Example:
        >>> simulate(*initial_conditions(2, seed=0), steps=200).positions.shape
        (2, 2, 5, 3)
    """
    _check(positions, velocities, charges, frame_interval)
    frames = steps // frame_interval
    chunks = [
        _simulate_chunk(
            positions[start : start + CHUNK],
            velocities[start : start + CHUNK],
            charges[start : start + CHUNK],
            frames,
            frame_interval,
            strength,
        )
        for start in range(0, len(positions), CHUNK)
    ]
    return Trajectories(*(np.concatenate(parts) for parts in zip(*chunks, strict=True)))


def dataset(count: int, seed: int | Sequence[int], strength: float = 1.0) -> Pairs:
    """Simulate fresh trajectories up to frame 40 and return the pairs frame 30 -> frame 40.

    Args:
        count: number of trajectories b.
        seed: seed of the initial conditions.
        strength: factor of the interaction.

    Returns:
        The pairs, float64; the same arrays for the same arguments, so copy them before you write to them.
    """
    return _dataset(count, seed if isinstance(seed, int) else tuple(seed), strength)


@lru_cache(maxsize=8)
def _dataset(count: int, seed: int | tuple[int, ...], strength: float) -> Pairs:
    """Simulate; once for all commands of a process, which take longer than a second for a thousand trajectories."""
    positions, velocities, charges = initial_conditions(count, seed)
    start = simulate(
        positions,
        velocities,
        charges,
        steps=(INPUT_FRAME + 1) * FRAME_INTERVAL,
        frame_interval=(INPUT_FRAME + 1) * FRAME_INTERVAL,
        strength=strength,
    )
    gap = (TARGET_FRAME - INPUT_FRAME) * FRAME_INTERVAL
    positions, velocities = start.positions[:, 0], start.velocities[:, 0]
    end = simulate(positions, velocities, charges, steps=gap, frame_interval=gap, strength=strength)
    return Pairs(positions, velocities, charges, end.positions[:, 0])


def _check(positions: FloatArray, velocities: FloatArray, charges: FloatArray, frame_interval: int) -> None:
    fits = positions.ndim == 3 and positions.shape[2] == 3 and len(positions) > 0
    if not (fits and velocities.shape == positions.shape and charges.shape == positions.shape[:2]):
        raise ValueError(
            "expected positions (b, n, 3), velocities (b, n, 3) and charges (b, n) with b > 0, got "
            f"{positions.shape}, {velocities.shape} and {charges.shape}: give all three for the same particles"
        )
    if frame_interval < 1:
        raise ValueError(f"expected a frame interval of at least 1 step, got {frame_interval}: give a positive number")


def _simulate_chunk(
    positions: FloatArray,
    velocities: FloatArray,
    charges: FloatArray,
    frames: int,
    frame_interval: int,
    strength: float,
) -> tuple[FloatArray, FloatArray]:
    """Integrate with the trajectories on the last axis, where numpy's loops are fastest."""
    count, particles, _ = positions.shape
    pairs = np.triu_indices(particles, k=1)
    products = strength * (charges[:, pairs[0]] * charges[:, pairs[1]]).T
    x, v = positions.transpose(1, 2, 0).copy(), velocities.transpose(1, 2, 0).copy()
    saved = np.empty((2, frames, particles, 3, count))
    for frame in range(frames):
        for _ in range(frame_interval):
            forces = _forces(x, products, pairs)
            v += TIME_STEP * np.clip(forces, -FORCE_LIMIT, FORCE_LIMIT, out=forces)
            x += TIME_STEP * v
        saved[0, frame], saved[1, frame] = x, v
    both = saved.transpose(0, 4, 1, 2, 3)
    return both[0], both[1]


def _forces(x: FloatArray, products: FloatArray, pairs: tuple[IntArray, IntArray]) -> FloatArray:
    """Return the forces before clipping, shape (n, 3, b), at positions x of the same shape.

    Squared distances come from |a|^2 + |b|^2 - 2 ab, and the sums run in the order of the public generator: so its
    data are reproduced to the last bit, rounding in close encounters included. A product of many small matrices is
    three times as fast if both are contiguous.

    ``products`` is strength * q_i q_j, shape (pairs, b).
    """
    first, second = pairs
    squares = x[:, 0] ** 2 + x[:, 1] ** 2 + x[:, 2] ** 2
    rows, columns = (np.ascontiguousarray(x.transpose(2, *axes)) for axes in ((0, 1), (1, 0)))
    inner = np.matmul(rows, columns)[:, first, second].T
    distances = squares[first] + squares[second] - 2 * inner
    along = x[first] - x[second]
    along *= (products / np.power(distances, 1.5))[:, None]
    forces = np.zeros_like(x)
    for pair, (i, j) in enumerate(zip(first, second, strict=True)):
        forces[i] += along[pair]
        forces[j] -= along[pair]
    return forces


def main() -> None:
    """Command line: simulate pairs and write them to an .npz file."""
    parser = argparse.ArgumentParser(description="Simulate charged particles; write frame 30 -> frame 40 pairs.")
    parser.add_argument("output", type=Path, help="file to write (.npz)")
    parser.add_argument("--count", type=int, default=1000, help="number of trajectories")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial conditions")
    parser.add_argument("--strength", type=float, default=1.0, help="factor of the interaction")
    options = parser.parse_args()
    started = time.perf_counter()
    pairs = dataset(options.count, options.seed, options.strength)
    seconds = time.perf_counter() - started
    np.savez_compressed(options.output, **{field.name: getattr(pairs, field.name) for field in fields(pairs)})
    print(f"{options.count} trajectories in {seconds:.2f} s ({1e3 * seconds / options.count:.2f} ms each)")


if __name__ == "__main__":
    main()
