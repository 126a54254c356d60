"""Run an exported potential with ONNX Runtime and numpy alone, and print its errors on the test frames.

    surgeon export demo-output/potential -o demo-output/potential-onnx --onnx
    python examples/potential/run_onnx.py demo-output/potential-onnx/model.onnx

Neither torch nor equisurgeon is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(path: str) -> None:
    """Print mean absolute errors: forces in meV/Angstrom, energies in meV per atom."""
    session = onnxruntime.InferenceSession(path)
    with np.load(Path(__file__).with_name("ethanol.npz")) as frames:
        positions, forces, energies = (frames[f"test_{name}"] for name in ("positions", "forces", "energies"))
        kinds = np.tile(frames["kinds"].astype(np.int64), (len(positions), 1))
    energy, force = session.run(["energy", "forces"], {"kinds": kinds, "positions": positions})
    print(f"force_mae {1e3 * np.abs(force - forces).mean():.6g} meV/A")
    print(f"energy_mae {1e3 * np.abs(energy - energies).mean() / kinds.shape[1]:.6g} meV/atom")
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1])
