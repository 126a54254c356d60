"""Print how far the forces of SevenNet's own calculator are off on ``others.xyz``, for each of some files.

python examples/potential/by_sevennet.py 7net-0.pth 7net-0-clean/7net-0.pth
"""

from __future__ import annotations

import sys

import numpy as np
from ase.io import read
from sevenn.calculator import SevenNetCalculator

frames = read("others.xyz", ":")
for path in sys.argv[1:]:
    calculator = SevenNetCalculator(path, device="cpu")
    errors = [calculator.get_forces(frame) - frame.arrays["REF_forces"] for frame in frames]
    print(f"{path} on {len(frames)} other frames: forces {1e3 * np.abs(errors).mean():.1f} meV/Å off")
