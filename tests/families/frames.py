"""All frames of a file, in order, as a potential takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from surgeon_adapters.atoms.potential import Frames, Potential, graphs_of
from surgeon_adapters.atoms.xyz_frames import read_labelled


def frames_of(path: Path, potential: Potential) -> Frames:
    """Read a file by the usual names of labels, and make graphs of its frames."""
    return graphs_of(read_labelled(path, {}, potential.energies.kind), path, potential)


def require_pairs(certificate: Mapping[str, Any], *elements: str) -> None:
    """The pairs that a certificate keeps of a few frames are all there are, and have the errors of its metrics."""
    for model, pairs in certificate["details"]["pairs"].items():
        names = {f"force on {element} (eV/A)" for element in elements}
        assert set(pairs) == {"energy (eV/atom)", *names}
        for metric, chosen in (("energy_mae", {"energy (eV/atom)"}), ("force_mae", names)):
            both = [pair for name in chosen for pair in zip(*pairs[name].values(), strict=True)]
            error = 1000 * sum(abs(computed - label) for computed, label in both) / len(both)
            assert error == pytest.approx(certificate["metrics"][model][metric], rel=1e-2, abs=0.1)
