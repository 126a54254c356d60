"""Equiformer for molecules: energies, and forces as their derivative.

Liao and Smidt, "Equiformer: Equivariant Graph Attention Transformer for 3D Atomistic Graphs" (ICLR 2023), in the
variant for MD17. Parameter names, shapes and order are those of the authors' public code.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor, nn

from surgeon_adapters.zoo.equiformer.attention import GraphAttention
from surgeon_adapters.zoo.equiformer.config import EquiformerConfig
from surgeon_adapters.zoo.equiformer.edges import Edges, neighbours, sum_to_molecules, sum_to_nodes
from surgeon_adapters.zoo.equiformer.layers import (
    Activation,
    FullyConnected,
    GatedFullyConnected,
    LayerNorm,
    Linear,
    RadialNetwork,
    depthwise,
)
from surgeon_adapters.zoo.equiformer.radial import radial_basis

MEAN_ATOMS = 18.03065905448718
MEAN_DEGREE = 15.57930850982666
"""Atoms per molecule and neighbours per atom in QM9, by whose roots sums are divided, for other data sets too."""


class NodeEmbedding(nn.Module):
    """Features of an atom from its atomic number."""

    def __init__(self, irreps: o3.Irreps, atom_types: int) -> None:
        super().__init__()
        self.max_atom_type = atom_types
        self.atom_type_lin = Linear(o3.Irreps([(atom_types, (0, 1))]), irreps)
        with torch.no_grad():
            self.atom_type_lin.tp.weight.mul_(math.sqrt(atom_types))

    def forward(self, node_atom: Tensor) -> Tensor:
        """Map atomic numbers (n,) to features (n, d)."""
        weight = self.atom_type_lin.tp.weight
        features: Tensor = self.atom_type_lin(nn.functional.one_hot(node_atom, self.max_atom_type).to(weight.dtype))
        return features


class EdgeDegreeEmbedding(nn.Module):
    """Features of an atom from where its neighbours are."""

    def __init__(self, irreps: o3.Irreps, config: EquiformerConfig) -> None:
        super().__init__()
        self.exp = Linear(o3.Irreps("1x0e"), irreps)
        self.dw = depthwise(irreps, o3.Irreps(config.harmonics), irreps, own_weights=False)
        self.rad = RadialNetwork([config.num_basis, *config.radial, self.dw.tp.weight_numel])
        self.proj = Linear(self.dw.irreps_out.simplify(), irreps)

    def forward(self, nodes: Tensor, edges: Edges) -> Tensor:
        """Return features (n, d); of the nodes only the number matters."""
        constant = self.exp(torch.ones_like(nodes[:, :1]))
        message = self.proj(self.dw(constant[edges.source], edges.harmonics, self.rad(edges.lengths)))
        return sum_to_nodes(message, edges.target, len(nodes)) / math.sqrt(MEAN_DEGREE)


class FeedForward(nn.Module):
    """Two fully connected products with a constant, a gate between them."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, config: EquiformerConfig) -> None:
        super().__init__()
        attribute, middle = o3.Irreps("1x0e"), o3.Irreps(config.mlp)
        self.fctp_1 = GatedFullyConnected(irreps_in, attribute, middle)
        self.fctp_2 = FullyConnected(middle, attribute, irreps_out)

    def forward(self, nodes: Tensor, attribute: Tensor) -> Tensor:
        """Map (n, d_in) to (n, d_out)."""
        out: Tensor = self.fctp_2(self.fctp_1(nodes, attribute), attribute)
        return out


class TransformerBlock(nn.Module):
    """Attention and feed-forward network, each behind a layer normalisation and beside a shortcut."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, config: EquiformerConfig) -> None:
        super().__init__()
        self.norm_1 = LayerNorm(irreps_in)
        self.ga = GraphAttention(irreps_in, irreps_in, config)
        self.norm_2 = LayerNorm(irreps_in)
        self.ffn = FeedForward(irreps_in, irreps_out, config)
        changes = irreps_in != irreps_out
        self.ffn_shortcut = FullyConnected(irreps_in, o3.Irreps("1x0e"), irreps_out) if changes else None

    def forward(self, nodes: Tensor, edges: Edges) -> Tensor:
        """Map (n, d_in) to (n, d_out)."""
        nodes = nodes + self.ga(self.norm_1(nodes), edges)
        attribute = torch.ones_like(nodes[:, :1])
        change: Tensor = self.ffn(self.norm_2(nodes), attribute)
        return change + (nodes if self.ffn_shortcut is None else self.ffn_shortcut(nodes, attribute))


class Equiformer(nn.Module):
    """Energies and forces of molecules, in units of the standard deviation of the energies it was trained on.

    Args:
        config: its settings.
    """

    def __init__(self, config: EquiformerConfig) -> None:
        super().__init__()
        self.config = config
        embedding, feature = o3.Irreps(config.embedding), o3.Irreps(config.feature)
        self.harmonics = o3.Irreps(config.harmonics)
        self.atom_embed = NodeEmbedding(embedding, config.atom_types)
        self.rbf = radial_basis(config.basis, config.num_basis, config.cutoff)
        self.edge_deg_embed = EdgeDegreeEmbedding(embedding, config)
        outputs = [embedding] * (config.layers - 1) + [feature]
        self.blocks = nn.ModuleList([TransformerBlock(embedding, output, config) for output in outputs])
        self.norm = LayerNorm(feature)
        self.head = self._head(feature)

    def _head(self, feature: o3.Irreps) -> nn.Module:
        energy = o3.Irreps("1x0e")
        if self.config.attention_head:
            return GraphAttention(feature, energy, self.config)
        return nn.Sequential(Linear(feature, feature), Activation(nn.functional.silu), Linear(feature, energy))

    def forward(self, node_atom: Tensor, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (b, 1) and forces (n, 3).

        Args:
            node_atom: shape (n,), long: atomic numbers.
            pos: shape (n, 3): positions in Angstrom.
            batch: shape (n,), long: the molecule of each atom, 0 to b - 1.
        """
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            if not pos.requires_grad:
                pos = pos.detach().requires_grad_()
            energy = self._energy(node_atom, pos, batch)
            (slope,) = torch.autograd.grad(energy.sum(), pos, create_graph=again)
        return (energy if again else energy.detach()), -slope

    def _energy(self, node_atom: Tensor, pos: Tensor, batch: Tensor) -> Tensor:
        edges = self._edges(pos, batch)
        nodes: Tensor = self.atom_embed(node_atom)
        nodes = nodes + self.edge_deg_embed(nodes, edges)
        for block in self.blocks:
            nodes = block(nodes, edges)
        nodes = self.norm(nodes)
        atoms: Tensor = self.head(nodes, edges) if self.config.attention_head else self.head(nodes)
        return sum_to_molecules(atoms, batch) / math.sqrt(MEAN_ATOMS)

    def _edges(self, pos: Tensor, batch: Tensor) -> Edges:
        source, target = neighbours(pos, batch, self.config.cutoff)
        vector = pos[source] - pos[target]
        harmonics = o3.spherical_harmonics(self.harmonics, vector, normalize=True, normalization="component")
        return Edges(source, target, harmonics, self.rbf(vector.norm(dim=1)))
