"""Layers inside which points of a batch meet, and forwards that take another route where gradients are wanted."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.families.awkward.case import CHANNELS, POINTS, Case, Mix, Trunk, gated, vectors


class Neighbours(nn.Module):
    """Channels are mixed, or only scaled, and then summed over the neighbours that come with a batch."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(CHANNELS, CHANNELS if mixes else 1))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        mixed = self.weight @ x if self.weight.shape[1] > 1 else self.weight * x
        if adjacency.is_sparse:
            return torch.sparse.mm(adjacency, mixed.flatten(1)).view_as(x)
        return torch.einsum("nm,mcv->ncv", adjacency, mixed)


class Graph(nn.Module):
    """Vectors and an adjacency matrix in, sizes out."""

    def __init__(self, mixes: bool, sparse: bool) -> None:
        super().__init__()
        self.sparse, self.mix, self.sum = sparse, Mix(), Neighbours(mixes)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.sum(self.mix(gated(x)), adjacency.to_sparse() if self.sparse else adjacency).square().sum(-1)


class ByElement(nn.Module):
    """A matrix for each element, in one product with what tells the elements apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, CHANNELS, CHANNELS) / 2)

    def forward(self, x: Tensor) -> Tensor:
        elements = functional.one_hot(torch.arange(len(x)) % 3).to(x)
        return torch.einsum("nz,zoc,ncv->nov", elements, self.weight, gated(x))


class ByGradients(nn.Module):
    """Where gradients are wanted, channels are mixed while components are scaled; what comes out is the same."""

    def __init__(self, by_data: bool) -> None:
        super().__init__()
        self.by_data, self.mix = by_data, Mix()

    def forward(self, x: Tensor) -> Tensor:
        x = gated(x)
        if not torch.is_grad_enabled():
            return self.mix(x)
        scales = x[:, :1].exp() if self.by_data else torch.tensor([1.0, 2.0, 4.0]).to(x)
        return self.mix(x * scales) / scales


def _graph(name: str, trap: str, mixes: bool, sparse: bool) -> Case:
    return Case(
        name,
        trap,
        lambda: Graph(mixes, sparse),
        {"mix.x", "sum.weight"} if mixes else {"mix.x"},
        inputs=lambda: (vectors(), vectors(channels=POINTS)[..., 0].abs()),
        act=lambda g, x, adjacency: (x @ g.T, adjacency),
        reason={} if mixes else {"sum.weight": "takes any number"},
        twin=not mixes,
    )


CASES = (
    _graph("adjacency", "a layer's weights act on each point, its sum on all of a batch", True, sparse=False),
    _graph("sparse adjacency", "no numbers that lie in one piece of memory", True, sparse=True),
    _graph("scaled adjacency", "an argument fixes the number of points, for a batch", False, sparse=False),
    Case("elements", "a product with what is invariant, too", lambda: Trunk(ByElement()), {"middle.weight"}),
    Case(
        "another basis with gradients",
        "without gradients the same features are plain vectors",
        lambda: Trunk(ByGradients(by_data=False)),
        {"middle.mix.x"},
    ),
    Case(
        "no type with gradients",
        "without gradients the same features are vectors",
        lambda: Trunk(ByGradients(by_data=True)),
        error="how its input transforms is not known",
        twin=True,
    ),
)
