"""Graphs of charged particles as the network takes them, and the files that they come in."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from surgeon.errors import TaskError
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.imports import close_names, one_line

Normalization = Literal["integral", "component"]
CONSTANTS = {"integral": 1 / math.sqrt(4 * math.pi), "component": 1.0}
"""Value of the spherical harmonic of degree 0."""


@dataclass(frozen=True)
class Motions:
    """Particles at one time, and their positions at a later one.

    Attributes:
        positions, velocities, targets: shape (m, n, 3).
        charges: shape (m, n).
    """

    positions: Tensor
    velocities: Tensor
    charges: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.charges)


def read_motions(path: Path, start: int, end: int, samples: int | None, dtype: torch.dtype) -> Motions:
    """Read ``loc_*.npy`` and the files of velocities and charges beside it.

    Args:
        path: positions (m, frames, 3, n); ``vel_*.npy`` has the same shape, ``charges_*.npy`` (m, n, 1) or (m, n).
        start: frame that is given.
        end: frame that is asked for.
        samples: largest number of trajectories; None for all.
        dtype: of the result.

    Raises:
        TaskError: if a file is missing, damaged, or of another shape.
    """
    if not path.name.startswith("loc_"):
        raise TaskError(f"expected a file of positions, loc_*.npy, got {path.name!r}: name that file")
    located, moving, charged = (_array(path.with_name(name + path.name[3:])) for name in ("loc", "vel", "charges"))
    fits = located.ndim == 4 and located.shape[2] == 3 and moving.shape == located.shape
    if not fits or charged.shape[:2] != (located.shape[0], located.shape[3]):
        raise TaskError(
            f"expected positions and velocities (m, frames, 3, n) and charges (m, n, 1) beside {str(path)!r}, got "
            f"{located.shape}, {moving.shape} and {charged.shape}: write them so"
        )
    if not 0 <= start < end < located.shape[1]:
        raise TaskError(
            f"expected frames 0 <= start < end < {located.shape[1]} for {str(path)!r}, got {start} and {end}: "
            'give --task-args \'{"start": N, "end": N}\''
        )

    def frame(array: Any, index: int) -> Tensor:
        return torch.as_tensor(array[:samples, index].copy()).to(dtype).transpose(1, 2).contiguous()

    charges = torch.as_tensor(charged[:samples].copy()).to(dtype).flatten(1)
    return Motions(frame(located, start), frame(moving, start), charges, frame(located, end))


def _array(path: Path) -> Any:
    numpy = importlib.import_module("numpy")
    try:
        return numpy.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError as error:
        names = sorted(other.name for other in path.parent.glob("*.npy"))
        raise TaskError(f"there is no file {str(path)!r}: its folder holds {close_names(path.name, names)}") from error
    except (OSError, ValueError) as error:
        raise TaskError(
            f"could not read {str(path)!r} as a NumPy array ({one_line(error)}): fetch or write it again"
        ) from error


def graph_of(
    positions: Tensor, velocities: Tensor, charges: Tensor, degrees: tuple[int, int], normalization: Normalization
) -> dict[str, Tensor]:
    """Return the network's arguments for fully connected graphs.

    Positions are centred per graph; the published code subtracts from each node the mean of its own three coordinates,
    which is not equivariant.

    Args:
        positions, velocities: shape (b, n, 3).
        charges: shape (b, n).
        degrees: highest degree of the attributes of edges and of nodes.
        normalization: of the spherical harmonics, in e3nn's words; the published code has "integral".

    Returns:
        ``x``, ``edge_index``, ``edge_attr``, ``node_attr``, ``extra`` and ``batch``; see
        :meth:`surgeon_adapters.zoo.segnn.network.SEGNN.forward`.
    """
    graphs, particles = charges.shape
    edge_index = dense_edges(graphs, particles, positions.device)
    source, target = edge_index[0], edge_index[1]
    centred = (positions - positions.mean(1, keepdim=True)).flatten(0, 1)
    velocity, charge = velocities.flatten(0, 1), charges.flatten()
    difference = centred[source] - centred[target]
    edge_attr = _attributes(difference, degrees[0], normalization)
    around = edge_attr if degrees[0] == degrees[1] else _attributes(difference, degrees[1], normalization)
    own = _attributes(velocity, degrees[1], normalization)
    total = torch.zeros_like(own).index_add(0, target, around)
    return {
        "x": torch.cat((centred, velocity, velocity.norm(dim=-1, keepdim=True)), dim=-1),
        "edge_index": edge_index,
        "edge_attr": edge_attr,
        "node_attr": total / (particles - 1) + own,
        "extra": torch.stack((difference.norm(dim=-1), charge[source] * charge[target]), dim=-1),
        "batch": torch.arange(graphs, device=positions.device).repeat_interleave(particles),
    }


def _attributes(vectors: Tensor, highest: int, normalization: Normalization) -> Tensor:
    """Spherical harmonics of the directions, shape (m, (highest + 1)^2); that of degree 0 is exactly constant."""
    o3: Any = import_e3nn()
    scalar = torch.full_like(vectors[:, :1], CONSTANTS[normalization])
    angular = o3.spherical_harmonics(list(range(1, highest + 1)), vectors, True, normalization)
    return torch.cat((scalar, angular), dim=-1)


def dense_edges(graphs: int, particles: int, device: torch.device) -> Tensor:
    """Return all ordered pairs of different nodes within each graph: sources and targets, shape (2, b n (n-1)), long.

    Example:
        >>> dense_edges(1, 3, torch.device("cpu")).tolist()
        [[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]
    """
    target = torch.arange(particles, device=device).unsqueeze(-1).expand(-1, particles - 1).flatten()
    rank = torch.arange(particles - 1, device=device).expand(particles, -1).flatten()
    source = rank + (rank >= target)
    offsets = torch.arange(0, particles * graphs, particles, device=device).unsqueeze(-1)
    return torch.stack(((source + offsets).flatten(), (target + offsets).flatten()))
