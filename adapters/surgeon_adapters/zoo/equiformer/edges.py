"""The edges of a batch of molecules, and sums over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Edges:
    """Directed edges.

    Attributes:
        source: shape (m,), long: the neighbour.
        target: shape (m,), long: the node that is told of it.
        harmonics: shape (m, d): spherical harmonics of the direction.
        lengths: shape (m, basis): functions of the length.
    """

    source: Tensor
    target: Tensor
    harmonics: Tensor
    lengths: Tensor


def neighbours(positions: Tensor, batch: Tensor, cutoff: float) -> tuple[Tensor, Tensor]:
    """Return source and target of all pairs of different atoms of one molecule that are closer than the cutoff.

    Args:
        positions: shape (n, 3).
        batch: shape (n,), long: the molecule of each atom.
        cutoff: in the unit of the positions.
    """
    apart = positions.detach()
    distance = (apart[:, None] - apart[None]).square().sum(dim=-1)
    near = (distance < cutoff**2) & (batch[:, None] == batch[None])
    target, source = (near & ~torch.eye(len(batch), dtype=torch.bool, device=near.device)).nonzero(as_tuple=True)
    if isinstance(source.shape[0], torch.SymInt):  # in an export, which has to know that no axis of edges is broadcast
        torch._check(source.shape[0] >= 2)
    return source, target


def sum_to_nodes(x: Tensor, target: Tensor, count: int) -> Tensor:
    """Sum the rows of x, shape (m, ...), that have the same target; shape (count, ...)."""
    return x.new_zeros(count, *x.shape[1:]).index_add(0, target, x)


def sum_to_molecules(x: Tensor, batch: Tensor) -> Tensor:
    """Sum the rows of x, shape (n, ...), of each molecule; shape (b, ...)."""
    last = cast(int, batch.max().item())  # int() would have no symbol for it in an export
    return sum_to_nodes(x, batch, last + 1)


def softmax_over_edges(x: Tensor, target: Tensor, count: int) -> Tensor:
    """Return the softmax of x, shape (m, heads), over the edges of each target."""
    index = target[:, None].expand_as(x)
    largest = x.new_zeros(count, x.shape[1]).scatter_reduce(0, index, x.detach(), "amax", include_self=False)
    exponential = (x - largest[target]).exp()
    return exponential / (sum_to_nodes(exponential, target, count)[target] + 1e-16)
