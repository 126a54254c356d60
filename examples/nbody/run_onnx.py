"""Run an exported N-body model with ONNX Runtime and numpy alone, and print its test error.

    surgeon export demo-output/run -o demo-output/clean-onnx --onnx
    python examples/nbody/run_onnx.py demo-output/clean-onnx/model.onnx

Neither torch nor equisurgeon is imported.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from simulate import dataset


def main(path: str, samples: str = "3000") -> None:
    """Print the mean squared error over the first test trajectories of the fine-tuning task; dimensionless."""
    session = onnxruntime.InferenceSession(path)
    pairs = dataset(int(samples), (0, 2), 2.0)  # the task's seed, its third split, its interaction strength
    inputs = {name: getattr(pairs, name).astype(np.float32) for name in ("positions", "velocities", "charges")}
    (predicted,) = session.run(None, inputs)
    error = predicted.astype(np.float64) - pairs.targets.astype(np.float32)
    print(f"mse {np.square(error).mean():.8g}")
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main(*sys.argv[1:])
