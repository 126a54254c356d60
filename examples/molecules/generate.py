"""Molecular dynamics of ethanol, labelled with two semi-empirical methods: a small real data set for potentials.

    pip install "tblite==0.8.0" "ase==3.29.0"
    OMP_NUM_THREADS=1 python examples/molecules/generate.py

Langevin dynamics at 500 K on the GFN2-xTB surface. Frames for pretraining are labelled with GFN1-xTB (energies and
forces), others for fine-tuning with GFN2-xTB; both files begin with the isolated atoms of their method. The same
versions of the two packages write the same files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import ase.units
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from tblite.ase import TBLite

HERE = Path(__file__).parent
TEMPERATURE = 500.0  # K
MULTIPLICITIES = {"H": 2, "C": 3, "O": 3}
FILES = {"ethanol_gfn1.xyz": ("GFN1-xTB", 0), "ethanol_gfn2.xyz": ("GFN2-xTB", 1)}
FRAMES = 60
EQUILIBRATION, STEPS_BETWEEN = 300, 25
STEP = 0.5  # fs


def calculator(method: str, multiplicity: int = 1) -> TBLite:
    """Return a tight-binding calculator that prints nothing."""
    return TBLite(method=method, multiplicity=multiplicity, verbosity=0)


def labelled(atoms: Atoms, calc: TBLite, **info: Any) -> Atoms:
    """Return a copy with energy (eV) and forces (eV per angstrom) under the keys that MACE reads by default."""
    frame = Atoms(atoms.get_chemical_symbols(), positions=np.round(atoms.get_positions(), 6), info=info)
    frame.calc = calc
    frame.info["REF_energy"] = round(frame.get_potential_energy(), 8)
    frame.arrays["REF_forces"] = np.round(frame.get_forces(), 8)
    frame.calc = None
    return frame


def isolated(method: str) -> list[Atoms]:
    """Return the atoms by themselves, each in its ground state."""
    return [
        labelled(Atoms(symbol), calculator(method, multiplicity), config_type="IsolatedAtom")
        for symbol, multiplicity in MULTIPLICITIES.items()
    ]


def dynamics(count: int, seed: int) -> list[Atoms]:
    """Return frames of one trajectory, after a time of equilibration."""
    rng = np.random.RandomState(seed)
    atoms = molecule("CH3CH2OH")
    atoms.calc = calculator("GFN2-xTB")
    thermalize_momenta(atoms, TEMPERATURE, rng=rng)
    run = Langevin(
        atoms, STEP * ase.units.fs, temperature_K=TEMPERATURE, friction=0.02 / ase.units.fs, rng=rng, fixcm=False
    )
    run.run(EQUILIBRATION)
    frames = []
    for _ in range(count):
        run.run(STEPS_BETWEEN)
        frames.append(atoms.copy())
    return frames


def main() -> None:
    """Write both files beside this script."""
    for name, (method, seed) in FILES.items():
        frames = [labelled(frame, calculator(method)) for frame in dynamics(FRAMES, seed)]
        ase.io.write(HERE / name, [*isolated(method), *frames], format="extxyz")
        print(f"wrote {name}: {len(frames)} frames and {len(MULTIPLICITIES)} isolated atoms, {method}")


if __name__ == "__main__":
    main()
