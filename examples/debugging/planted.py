"""A network on point clouds with planted bugs: where `surgeon` finds each of them.

python planted.py                  # the network without a bug, and with each
python planted.py --picture x.svg  # and draws where the first one breaks
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups import parse_group
from surgeon.errors import CheckFailedError
from surgeon.finding.breaks import find_breaks
from surgeon.report.breaks import breaks_picture
from surgeon.testing import assert_equivariant_inside

BUGS = {
    "bias": "the channels of vectors are mixed with a bias",
    "relu": "vectors go through a ReLU, component by component",
    "plane": "distances leave out the third coordinate",
}


class Layer(nn.Module):
    """Vectors (n, c, 3) of n points: mixed, and weighted by distances to the other points."""

    def __init__(self, channels: int, bug: str = "") -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels, bias=bug == "bias")
        self.weigh = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, channels))
        self.bug = bug

    def forward(self, positions: Tensor, vectors: Tensor) -> Tensor:
        """Return the next vectors."""
        offsets = positions[:, None] - positions[None]
        distances = offsets[..., : 2 if self.bug == "plane" else 3].square().sum(-1, keepdim=True)
        messages = (self.weigh(distances)[..., None] * offsets[:, :, None]).mean(1)
        mixed = self.mix((vectors + messages).transpose(1, 2)).transpose(1, 2)
        if self.bug == "relu":
            mixed = torch.relu(mixed)
        return mixed * torch.sigmoid(mixed.square().sum(-1, keepdim=True))


class Network(nn.Module):
    """Three layers; the second may have a bug. Points (n, 3) to vectors (n, 4, 3)."""

    def __init__(self, bug: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Layer(4), Layer(4, bug), Layer(4)])

    def forward(self, positions: Tensor) -> Tensor:
        """Return four vectors per point."""
        vectors = positions[:, None].expand(-1, 4, -1)
        for layer in self.layers:
            vectors = layer(positions, vectors)
        return vectors


def act(g: Tensor, positions: Tensor) -> Tensor:
    """Turn and reflect the points; g has shape (3, 3)."""
    return positions @ g.T


def act_output(g: Tensor, vectors: Tensor) -> Tensor:
    """Turn and reflect the vectors."""
    return vectors @ g.T


def main() -> None:
    """Look for each bug."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="draw where the first bug breaks the symmetry, as SVG")
    picture = parser.parse_args().picture
    points = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for bug, words in {"": "no bug", **BUGS}.items():
        print(f"{words}:")
        try:
            assert_equivariant_inside(Network(bug), "O3", points, act=act, act_output=act_output)
        except CheckFailedError as error:
            print(error)
        else:
            print("equivariant")
    if picture is not None:
        symmetry = Symmetry(parse_group("O3"), act, act_output)
        found = find_breaks(Network(next(iter(BUGS))).double().eval(), symmetry, points.double())
        picture.write_text(breaks_picture(found), encoding="utf-8")


if __name__ == "__main__":
    main()
