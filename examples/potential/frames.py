"""Write frames of revised MD17 ethanol in extended XYZ: ``ethanol.xyz``, 100 of them, and 40 others in ``others.xyz``.

    python examples/potential/frames.py [FOLDER]

Energies (eV) are less their mean, as in ``ethanol.npz``; forces are in eV/Å. Needs ase.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from potential import SYMBOLS

FILES = {"ethanol.xyz": ("train", 100), "others.xyz": ("test", 40)}
"""Name of a file to the split and the number of its frames."""


def main(folder: Path) -> None:
    """Write both files."""
    data = np.load(Path(__file__).with_name("ethanol.npz"))
    symbols = [SYMBOLS[kind] for kind in data["kinds"]]
    for name, (split, count) in FILES.items():
        frames = [Atoms(symbols, each) for each in data[f"{split}_positions"][:count]]
        for frame, energy, forces in zip(frames, data[f"{split}_energies"], data[f"{split}_forces"], strict=False):
            frame.info["REF_energy"] = float(energy)
            frame.arrays["REF_forces"] = forces
        write(folder / name, frames)


if __name__ == "__main__":
    main(Path(*sys.argv[1:]))
