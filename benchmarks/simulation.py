"""How much faster the N-body example simulates many trajectories at a time than one by one.

The two are taken in turn, in processor time, and the ratio of each pair counts: another machine, or a busy one, changes
both alike::

    python benchmarks/simulation.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "nbody"))

from simulate import initial_conditions, simulate

STEPS = 500


def seconds_each(count: int, trajectories: int) -> float:
    """Return the processor time for one of ``trajectories`` that are simulated ``count`` at a time."""
    starts = initial_conditions(trajectories, seed=0)
    began = time.process_time()
    for first in range(0, trajectories, count):
        simulate(*(array[first : first + count] for array in starts), steps=STEPS)
    return (time.process_time() - began) / trajectories


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--together", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    pairs = [(seconds_each(1, 8), seconds_each(options.together, options.together)) for _ in range(options.repeats)]
    low, middle, high = np.quantile([one / many for one, many in pairs], (0.25, 0.5, 0.75))
    one, many = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(
        f"{STEPS} steps of a trajectory: {1e3 * one:.1f} ms one by one, {1e3 * many:.2f} ms with {options.together} "
        f"at a time: {middle:.0f} times faster (quartiles {low:.0f} to {high:.0f})"
    )


if __name__ == "__main__":
    main()
