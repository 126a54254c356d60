"""Tiny MACE potentials of every kind, as files, and frames of a crystal with all labels."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.support.modes import default_dtype
from surgeon_adapters.mace.adapter import adapter
from surgeon_adapters.mace.models import build, decoded, import_mace

HEADS = ["tight-binding", "other"]
ENERGIES = [1.0, 2.0, 3.0]
"""Of isolated H, C and O in the first head; one more in each further head."""


@functools.cache
def small(heads: int = 1, kind: str = "ScaleShiftMACE") -> nn.Module:
    """A potential for H, C, O with random weights in float64; not to be changed."""
    block = {"class": "RealAgnosticInteractionBlock"}
    settings = {
        "r_max": 3.0,
        "num_bessel": 3,
        "num_polynomial_cutoff": 5,
        "max_ell": 1,
        "interaction_cls": {"class": "RealAgnosticResidualInteractionBlock"},
        "interaction_cls_first": block,
        "num_interactions": 2,
        "num_elements": 3,
        "hidden_irreps": {"irreps": "4x0e+4x1o"},
        "MLP_irreps": {"irreps": "4x0e"},
        "gate": {"gate": "silu"},
        "atomic_energies": {"array": [[energy + head for energy in ENERGIES] for head in range(heads)]},
        "avg_num_neighbors": 8.0,
        "atomic_numbers": [1, 6, 8],
        "correlation": 2,
        "radial_MLP": [8],
        "heads": HEADS[:heads],
    }
    if kind == "ScaleShiftMACE":
        settings["atomic_inter_scale"] = {"array": [1.0 + 0.5 * head for head in range(heads)]}
        settings["atomic_inter_shift"] = {"array": [0.1 * head for head in range(heads)]}
    torch.manual_seed(0)
    return build(kind, "float64", settings)


def scripted(module: nn.Module) -> nn.Module:
    """The same potential as MACE's own training makes it: with TorchScript inside its layers."""
    described = adapter.describe(module)
    assert described is not None
    settings = {key: decoded(value) for key, value in described["args"]["settings"].items()}
    with default_dtype(torch.float64):
        again: nn.Module = getattr(import_mace(), described["args"]["kind"])(**settings)
    assert any(isinstance(part, torch.jit.ScriptModule) for part in again.modules())
    again.load_state_dict(module.state_dict())
    return again.to(next(module.parameters()).dtype)


def saved(path: Path, module: nn.Module) -> Path:
    """Write a potential as MACE does: the whole module."""
    torch.save(module, path)
    return path


def reopened(path: Path) -> Any:
    """Open such a file without this package."""
    return torch.load(path, weights_only=False)


def frame(**info: Any) -> Any:
    """A molecule of water in a small periodic cell."""
    import ase

    atoms = ase.Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.2, 0.93, 0]], cell=4 * torch.eye(3).numpy(), pbc=True)
    atoms.info.update(info)
    return atoms


def write(path: Path, frames: list[Any]) -> Path:
    """Write extended XYZ."""
    import ase.io

    ase.io.write(path, frames, format="extxyz")
    return path


def crystal(folder: Path, count: int = 6, isolated: bool = False) -> Path:
    """Frames as ASE's calculators label them: energy, forces and stress without MACE's names.

    With ``isolated`` the file has isolated atoms of its own, 10 eV above those of the model's first head.
    """
    import ase
    import numpy as np
    from ase.calculators.singlepoint import SinglePointCalculator

    rng, frames = np.random.default_rng(0), []
    if isolated:
        for number, energy in zip((1, 6, 8), ENERGIES, strict=True):
            atom = ase.Atoms([number], [[0, 0, 0]], info={"config_type": "IsolatedAtom"})
            atom.calc = SinglePointCalculator(atom, energy=energy + 10)
            frames.append(atom)
    for _ in range(count):
        atoms = frame()
        atoms.rattle(0.1, rng=rng)
        # small, so that a few steps of training improve on random weights
        labels = {"energy": rng.normal(), "forces": rng.normal(size=(3, 3)), "stress": rng.normal(size=6)}
        labels = {key: 0.01 * value for key, value in labels.items()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return write(folder / "crystal.xyz", frames)
