"""The networks of the overhead benchmark, each with a batch and a loss; weights and data are random."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "nbody"))

from segnn import SEGNN, SEGNNConfig

from surgeon.support.e3nn_compat import import_e3nn
from surgeon_adapters.zoo.vector_neurons.dgcnn import VNDGCNN
from surgeon_adapters.zoo.vector_neurons.pointnet import VNPointNet

CLASSES = 40


@dataclass(frozen=True)
class Case:
    """A network to be measured.

    Attributes:
        model: the network.
        batch: tensors by name.
        loss: scalar loss of model and batch.
        group: for finding sites.
        include: patterns of the sites to relax; empty for all.
    """

    model: nn.Module
    batch: dict[str, Tensor]
    loss: Callable[[nn.Module, Any], Tensor]
    group: str
    include: tuple[str, ...] = ()


def segnn(device: str, channels: int, layers: int, include: tuple[str, ...] = ()) -> Case:
    """SEGNN for charged particles; ``channels`` are half scalars, half vectors; 100 graphs of 5 particles."""
    model = SEGNN(SEGNNConfig(channels // 2, channels // 2, lmax_attributes=1, layers=layers)).to(device)
    batch = {
        "positions": torch.randn(100, 5, 3, device=device),
        "velocities": torch.randn(100, 5, 3, device=device),
        "charges": torch.randint(0, 2, (100, 5), device=device).float() * 2 - 1,
        "targets": torch.randn(100, 5, 3, device=device),
    }

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(batch["positions"], batch["velocities"], batch["charges"])
        return (found - batch["targets"]).square().mean()

    return Case(model, batch, loss, "O3", include)


def point_cloud(device: str, kind: Callable[..., nn.Module], clouds: int, points: int = 300) -> Case:
    """A vector-neuron classifier of the published widths."""
    model = kind(CLASSES).to(device)
    batch = {
        "points": torch.randn(clouds, 3, points, device=device),
        "labels": torch.randint(0, CLASSES, (clouds,), device=device),
    }

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(model(batch["points"]), batch["labels"])

    return Case(model, batch, loss, "SO3")


class Attention(nn.Module):
    """A graph attention block as in equivariant transformers: attention on invariants, values by a tensor product."""

    def __init__(self, irreps: str, heads: int) -> None:
        super().__init__()
        o3 = import_e3nn()
        from e3nn.nn import Gate

        self.irreps, self.heads = o3.Irreps(irreps), heads
        scalars = self.irreps.count("0e")
        gated = o3.Irreps([(mul, ir) for mul, ir in self.irreps if ir.l > 0])
        self.source, self.target = o3.Linear(self.irreps, self.irreps), o3.Linear(self.irreps, self.irreps)
        self.value = o3.FullyConnectedTensorProduct(self.irreps, "1x0e+1x1e+1x2e", self.irreps)
        self.logits = nn.Sequential(nn.Linear(scalars + 8, 64), nn.SiLU(), nn.Linear(64, heads))
        self.scalars, self.out = scalars, o3.Linear(self.irreps, self.irreps)
        self.gate = Gate(f"{scalars}x0e", [nn.functional.silu], f"{gated.num_irreps}x0e", [torch.sigmoid], gated)
        self.up, self.down = o3.Linear(self.irreps, self.gate.irreps_in), o3.Linear(self.gate.irreps_out, self.irreps)

    def forward(self, x: Tensor, edges: Tensor, harmonics: Tensor, radial: Tensor) -> Tensor:
        sender, receiver = edges
        message = self.source(x)[sender] + self.target(x)[receiver]
        logits = self.logits(torch.cat([message[:, : self.scalars], radial], 1))
        weights = torch.exp(logits - logits.max())
        total = torch.zeros(len(x), self.heads, device=x.device).index_add(0, receiver, weights)
        attention = (weights / total[receiver]).mean(1, keepdim=True)
        values = attention * self.value(message, harmonics)
        x = x + self.out(torch.zeros_like(x).index_add(0, receiver, values))
        update: Tensor = self.down(self.gate(self.up(x)))
        return x + update


class Transformer(nn.Module):
    """Two attention blocks with hidden irreps 64x0e+32x1e+16x2e on a graph with given edges."""

    def __init__(self, irreps: str = "64x0e+32x1e+16x2e", blocks: int = 2, heads: int = 4) -> None:
        super().__init__()
        o3 = import_e3nn()
        self.embed = o3.Linear("16x0e", irreps)
        self.blocks = nn.ModuleList(Attention(irreps, heads) for _ in range(blocks))
        self.read = o3.Linear(irreps, "1x0e+1x1e")

    def forward(self, features: Tensor, positions: Tensor, edges: Tensor) -> Tensor:
        o3 = import_e3nn()
        vectors = positions[edges[1]] - positions[edges[0]]
        harmonics = o3.spherical_harmonics("1x0e+1x1e+1x2e", vectors, normalize=True, normalization="component")
        centres = torch.linspace(0, 4, 8, device=vectors.device)
        radial = torch.exp(-((vectors.norm(dim=1, keepdim=True) - centres) ** 2))
        x = self.embed(features)
        for block in self.blocks:
            x = block(x, edges, harmonics, radial)
        found: Tensor = self.read(x)
        return found


def attention(device: str, nodes: int = 128, neighbours: int = 16) -> Case:
    """The transformer on a random graph with 16 neighbours per node."""
    model = Transformer().to(device)
    positions = torch.randn(nodes, 3)
    near = torch.cdist(positions, positions).fill_diagonal_(torch.inf).topk(neighbours, largest=False).indices
    edges = torch.stack([near.flatten(), torch.arange(nodes).repeat_interleave(neighbours)])
    batch = {
        "features": torch.randn(nodes, 16, device=device),
        "positions": positions.to(device),
        "edges": edges.to(device),
        "targets": torch.randn(nodes, 4, device=device),
    }

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(batch["features"], batch["positions"], batch["edges"])
        return (found - batch["targets"]).square().mean()

    return Case(model, batch, loss, "SO3")


PAPER = ("layers.*.update_layer_1*",)

NETWORKS: dict[str, Callable[[str], Case]] = {
    "segnn-32x2": lambda device: segnn(device, 32, 2),
    "segnn-64x4": lambda device: segnn(device, 64, 4),
    "segnn-32x2-paper": lambda device: segnn(device, 32, 2, PAPER),
    "segnn-64x4-paper": lambda device: segnn(device, 64, 4, PAPER),
    "vn-pointnet-8": lambda device: point_cloud(device, VNPointNet, 8),
    "vn-pointnet-32": lambda device: point_cloud(device, VNPointNet, 32),
    "vn-dgcnn-8": lambda device: point_cloud(device, VNDGCNN, 8),
    "vn-dgcnn-32": lambda device: point_cloud(device, VNDGCNN, 32),
    "attention": attention,
}
