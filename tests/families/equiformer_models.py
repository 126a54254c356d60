"""Small Equiformers, files in the format of MD17, and what the public code calls its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surgeon_adapters.zoo.equiformer import build
from tests.families.cases import double

ETHANOL = (6, 6, 8, 1, 1, 1, 1, 1, 1)
L1: dict[str, Any] = {
    "embedding": "4x0e+2x1e",
    "harmonics": "1x0e+1x1e",
    "feature": "5x0e",
    "head": "2x0e+1x1e",
    "mlp": "6x0e+3x1e",
    "layers": 1,
    "heads": 2,
    "num_basis": 4,
    "radial": [5, 6],
}
L2 = {
    **L1,
    "embedding": "4x0e+3x1e+2x2e",
    "harmonics": "1x0e+1x1e+1x2e",
    "head": "2x0e+1x1e+2x2e",
    "mlp": "6x0e+3x1e+2x2e",
    "layers": 2,
}
L3 = {
    **L1,
    "embedding": "4x0e+2x1e+3x2e+1x3e",
    "harmonics": "1x0e+1x1e+1x2e+1x3e",
    "head": "2x0e+1x1e+1x2e+1x3e",
    "mlp": "6x0e+3x1e+2x2e+1x3e",
    "layers": 1,
}
E3 = {
    **L1,
    "embedding": "4x0e+2x0o+2x1e+3x1o",
    "harmonics": "1x0e+1x1o",
    "head": "2x0e+1x0o+1x1e+1x1o",
    "mlp": "6x0e+2x0o+3x1e+2x1o",
    "layers": 1,
}


def network(settings: dict[str, Any], seed: int = 0) -> nn.Module:
    """A float64 network in evaluation mode."""
    torch.manual_seed(seed)
    with double():
        return build(settings=settings).eval()


def molecules(seed: int = 0, counts: Sequence[int] = (5, 4)) -> dict[str, Tensor]:
    """Random molecules as the network takes them; float64."""
    generator = torch.Generator().manual_seed(seed)
    atoms = sum(counts)
    return {
        "node_atom": torch.tensor(ETHANOL).repeat(atoms)[:atoms],
        "pos": 1.3 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64),
        "batch": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
    }


def trajectory(frames: int = 12, atoms: Sequence[int] = ETHANOL) -> dict[str, np.ndarray[Any, Any]]:
    """Frames of a molecule whose atoms swing about places of their own, each held by a spring."""
    generator = np.random.default_rng(0)
    places = 1.4 * generator.normal(size=(len(atoms), 3))
    moved = 0.1 * generator.normal(size=(frames, len(atoms), 3))
    return {
        "z": np.array(atoms, dtype=np.uint8),
        "R": places + moved,
        "E": 50 * np.square(moved).sum(axis=(1, 2))[:, None] - 97000.0,
        "F": -100 * moved,
    }


def write_md17(path: Path, frames: int = 12) -> Path:
    """Write a file as MD17 has them, with the texts that stand beside the numbers."""
    np.savez(path, **trajectory(frames), name=np.array("ethanol"), theory=np.array("springs"))
    return path
