"""Write the shipped ethanol frames in the format of MD17."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
KCAL_PER_EV = 23.060548
NUMBERS = {"H": 1, "C": 6, "O": 8}


def write_npz(source: Path, target: Path) -> None:
    """Write the frames of an extended-XYZ file in eV, isolated atoms left out, as an MD17 file in kcal/mol."""
    lines, first = source.read_text().splitlines(), 0
    positions, energies, forces, numbers = [], [], [], []
    while first < len(lines):
        count, header = int(lines[first]), lines[first + 1]
        rows = [line.split() for line in lines[first + 2 : first + 2 + count]]
        first += 2 + count
        if "IsolatedAtom" in header:
            continue
        numbers = [NUMBERS[row[0]] for row in rows]
        values = np.array([row[1:7] for row in rows], dtype=float)
        positions.append(values[:, :3])
        forces.append(KCAL_PER_EV * values[:, 3:])
        found = re.search(r"REF_energy=(\S+)", header)
        assert found is not None, f"{source} has a frame without energy"
        energies.append([KCAL_PER_EV * float(found[1])])
    np.savez(target, z=np.array(numbers, dtype=np.uint8), R=positions, E=energies, F=forces)


def write_both(folder: Path) -> None:
    """Write ``ethanol_gfn1.npz`` and ``ethanol_gfn2.npz`` into a folder."""
    for level in ("gfn1", "gfn2"):
        write_npz(HERE / f"ethanol_{level}.xyz", folder / f"ethanol_{level}.npz")
