"""Labels beside what a model computes: a pretrained potential shows when they are in other units, or turned round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

COMPARED = 32
"""Training frames that are looked at, at most."""

ALIKE, FACTOR, FEWEST = 0.6, 2.5, 8
"""Correlation from which labels count as the model's but for a factor, the factor that is told, and numbers needed."""

UNITS: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "energy (eV/atom)": {
            "kcal/mol": 23.06,
            "kJ/mol": 96.49,
            "hartree": 1 / 27.211,
            "rydberg": 1 / 13.606,
            "meV": 1e3,
        },
        "force (eV/A)": {
            "kcal/mol/A": 23.06,
            "kJ/mol/A": 96.49,
            "kJ/mol/nm": 964.9,
            "hartree/bohr": 1 / 51.42,
            "rydberg/bohr": 1 / 25.71,
            "meV/A": 1e3,
        },
        "stress (eV/A^3)": {"GPa": 160.2, "kbar": 1602.0, "MPa": 160218.0, "hartree/bohr^3": 1 / 183.6},
    }
)
"""What is compared, and how many of other units one of ours is."""


def scale_remarks(pairs: Sequence[Mapping[str, tuple[Tensor, Tensor]]]) -> tuple[str, ...]:
    """Say which labels go with what the model computes, but are larger or smaller by a factor, or have another sign.

    Energies are compared without their mean, which other codes have elsewhere.

    Args:
        pairs: of each batch, by quantity, what is computed and its label; forces of each element apart, and energies of
            one composition.
    """
    told = []
    for quantity, units in UNITS.items():
        what, _, unit = quantity.partition(" ")
        found = [pair for each in pairs for name, pair in each.items() if name.startswith(what)]
        if sum(label.numel() for _, label in found) < FEWEST:
            continue
        computed, label = (torch.cat([side.flatten().double() for side in sides]) for sides in zip(*found, strict=True))
        if what == "energy":
            computed, label = computed - computed.mean(), label - label.mean()
        alike = float(computed @ label / (computed.norm() * label.norm()))
        factor = float(computed @ label / (computed @ computed))
        if not (alike < -ALIKE or (alike > ALIKE and max(factor, 1 / factor) > FACTOR)):
            continue
        size = abs(factor)
        near = min(units, key=lambda name: abs(math.log(units[name] / size)))
        guess = f", as in {near}" if abs(math.log(units[near] / size)) < math.log(1.5) else ""
        scaled = [f"are {size:.3g} times what the model computes{guess}"] * (max(size, 1 / size) > FACTOR)
        turned = ["have the other sign, as gradients and pressures have"] * (alike < 0)
        told.append(
            f"the {what} labels {' and '.join((*scaled, *turned))} (correlation with the model {alike:.2f}): expected "
            f"are {unit.strip('()').removesuffix('/atom')} and the signs of ASE, so correct the file if that is right"
        )
    return tuple(told)
