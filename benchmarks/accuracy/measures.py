"""The metrics of the tables."""

from __future__ import annotations

from findings import Measure

FORCES = Measure("force_mae", "forces, meV/Å", "energy_mae", "energies, meV/atom", "frames")
POSITIONS = Measure("mse", "squared error · 10³", "mae", "absolute error · 10³", "trajectories", factor=1e3)
CLASSES = Measure(
    "accuracy", "accuracy, %", "cross_entropy", "cross-entropy, 0.01 nats", "clouds", factor=1e2, accuracy=True
)
MOLECULES = Measure(
    "force_mae", "forces, meV/Å", "energy_mae", "energies, meV", "frames", factor=43.3641
)  # of kcal/mol
FIELDS = Measure("rmse", "future, 10⁻³ cells per step", "domain rmse", "domain, 10⁻³", "windows", factor=1e3)
