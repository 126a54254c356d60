"""All frames of a file, in order, as a potential takes them."""

from __future__ import annotations

from pathlib import Path

from surgeon_adapters.atoms.potential import Frames, Potential, graphs_of
from surgeon_adapters.atoms.xyz_frames import read_labelled


def frames_of(path: Path, potential: Potential) -> Frames:
    """Read a file by the usual names of labels, and make graphs of its frames."""
    return graphs_of(read_labelled(path, {}, potential.energies.kind), path, potential)
