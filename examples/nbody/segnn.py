"""Steerable E(3)-equivariant graph network (SEGNN) for charged particles, on top of torch and e3nn.

Architecture: Brandstetter et al., "Geometric and Physical Quantities improve E(3) Equivariant Message Passing"
(ICLR 2022). Parameter names and shapes are those of the authors' public code, so that checkpoints have the same keys:

* ``embedding_layer``, ``layers.{i}.message_layer_1``, ``.message_layer_2``, ``.update_layer_1``, ``.update_layer_2``,
  ``pre_pool1``, ``pre_pool2``; each has ``tp`` (``tp.weight``) and ``biases``, one entry per scalar output channel;
* ``message_layer_*``, ``update_layer_1`` and ``pre_pool1`` also own ``gate``: their products put out one extra scalar
  for each non-scalar channel, merged with the scalars, so ``biases`` covers both;
* ``message_layer_1`` reads (target, source, distance, charge product), ``update_layer_1`` reads (node, message sum);
* ``sqrt_k_correction`` and ``bias_idx`` are buffers that are not stored.

What differs, and why: positions are centred per graph (the authors average x, y and z of each node, which is not
equivariant); the angular attributes have component normalisation, so that their scalar is exactly 1 on edges too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import Tensor, nn

# Features of a node: centred position, velocity, speed. Extra features of an edge: distance, charge product.
INPUT_IRREPS = "2x1o+1x0e"
MESSAGE_IRREPS = "2x0e"
OUTPUT_IRREPS = "1x1o"


@dataclass(frozen=True)
class SEGNNConfig:
    """Sizes of the network.

    Attributes:
        scalars: multiplicity of 0e in the hidden features.
        vectors: multiplicity of 1o in the hidden features.
        lmax_attributes: highest degree of the spherical harmonics that steer the layers, at least 1.
        layers: number of message passing layers.
    """

    scalars: int = 32
    vectors: int = 16
    lmax_attributes: int = 1
    layers: int = 3


class O3TensorProduct(nn.Module):
    """Fully connected tensor product with attributes, scaled like ``nn.Linear``, plus a bias on scalar outputs."""

    sqrt_k_correction: Tensor
    bias_idx: Tensor

    def __init__(self, irreps_in1: o3.Irreps, irreps_out: o3.Irreps, irreps_in2: o3.Irreps) -> None:
        super().__init__()
        self.irreps_in1, self.irreps_in2, self.irreps_out = irreps_in1, irreps_in2, irreps_out
        self.tp = o3.FullyConnectedTensorProduct(
            irreps_in1, irreps_in2, irreps_out, shared_weights=True, irrep_normalization="component"
        )
        fan_in = self._fan_in()
        correction, bias_bounds, bias_idx = torch.ones(irreps_out.dim), [], []
        for index, (where, (mul, irrep)) in enumerate(zip(irreps_out.slices(), irreps_out, strict=True)):
            bound = 1 / math.sqrt(max(fan_in[index], 1))
            correction[where] = bound
            if irrep.is_scalar():
                bias_bounds += [bound] * mul
                bias_idx += list(range(where.start, where.stop))
        biases = (2 * torch.rand(len(bias_idx)) - 1) * torch.tensor(bias_bounds)
        self.biases = nn.Parameter(biases) if bias_idx else None
        self.register_buffer("sqrt_k_correction", correction, persistent=False)
        self.register_buffer("bias_idx", torch.tensor(bias_idx, dtype=torch.long), persistent=False)
        self._initialise_weights(fan_in)

    def _fan_in(self) -> list[int]:
        """Return the number of products that are summed into each block of the output."""
        fan_in = [0] * len(self.irreps_out)
        for path in self.tp.instructions:
            fan_in[path.i_out] += self.irreps_in1[path.i_in1].mul * self.irreps_in2[path.i_in2].mul
        return fan_in

    def _initialise_weights(self, fan_in: list[int]) -> None:
        with torch.no_grad():
            for weight, path in zip(self.tp.weight_views(), self.tp.instructions, strict=True):
                bound = 1 / math.sqrt(fan_in[path.i_out])
                weight.uniform_(-bound, bound)

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Return the product of features (m, d_in) and attributes (m, d_attributes), shape (m, d_out)."""
        # The weights start in +-1/sqrt(fan in) although e3nn divides by sqrt(fan in) itself: undo one of the two.
        out: Tensor = self.tp(features, attributes) / self.sqrt_k_correction
        if self.biases is None:
            return out
        return out + torch.zeros_like(self.sqrt_k_correction).index_copy(0, self.bias_idx, self.biases)


class O3TensorProductSwishGate(O3TensorProduct):
    """Tensor product followed by a gate: SiLU on scalars, a sigmoid of one extra scalar times each other irrep."""

    def __init__(self, irreps_in1: o3.Irreps, irreps_out: o3.Irreps, irreps_in2: o3.Irreps) -> None:
        scalars, gated = irreps_out[:1], irreps_out[1:]
        gates = o3.Irreps([(gated.num_irreps, (0, 1))])
        super().__init__(irreps_in1, (scalars + gates + gated).simplify(), irreps_in2)
        self.gate = Gate(scalars, [nn.SiLU()], gates, [torch.sigmoid], gated)

    def forward(self, features: Tensor, attributes: Tensor) -> Tensor:
        """Return the gated product of features (m, d_in) and attributes (m, d_attributes), shape (m, d_out)."""
        gated: Tensor = self.gate(super().forward(features, attributes))
        return gated


class SEGNNLayer(nn.Module):
    """One step of message passing with a residual update of the nodes."""

    def __init__(self, hidden: o3.Irreps, attributes: o3.Irreps, message: o3.Irreps) -> None:
        super().__init__()
        self.message_layer_1 = O3TensorProductSwishGate((hidden + hidden + message).simplify(), hidden, attributes)
        self.message_layer_2 = O3TensorProductSwishGate(hidden, hidden, attributes)
        self.update_layer_1 = O3TensorProductSwishGate((hidden + hidden).simplify(), hidden, attributes)
        self.update_layer_2 = O3TensorProduct(hidden, hidden, attributes)

    def forward(
        self, nodes: Tensor, edge_index: Tensor, edge_attributes: Tensor, node_attributes: Tensor, extra: Tensor
    ) -> Tensor:
        """Return updated nodes.

        Args:
            nodes: shape (m, d_hidden).
            edge_index: shape (2, e), int64: sources, then targets.
            edge_attributes: shape (e, d_attributes).
            node_attributes: shape (m, d_attributes).
            extra: shape (e, 2), distance and charge product.

        Returns:
            Shape (m, d_hidden).
        """
        source, target = edge_index[0], edge_index[1]
        message = torch.cat((nodes[target], nodes[source], extra), dim=-1)
        message = self.message_layer_2(self.message_layer_1(message, edge_attributes), edge_attributes)
        total = torch.zeros_like(nodes).index_add(0, target, message)
        update: Tensor = self.update_layer_1(torch.cat((nodes, total), dim=-1), node_attributes)
        update = self.update_layer_2(update, node_attributes)
        return nodes + update


class SEGNN(nn.Module):
    """Predicts where charged particles will be: position plus one vector per node; each graph is fully connected.

    Example:
        >>> model = SEGNN(SEGNNConfig(scalars=4, vectors=2, layers=1))
        >>> model(torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.ones(2, 5)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(self, config: SEGNNConfig = SEGNNConfig()) -> None:
        super().__init__()
        self.config = config
        hidden = o3.Irreps([(config.scalars, (0, 1)), (config.vectors, (1, -1))])
        attributes = o3.Irreps.spherical_harmonics(config.lmax_attributes)
        self.embedding_layer = O3TensorProduct(o3.Irreps(INPUT_IRREPS), hidden, attributes)
        message = o3.Irreps(MESSAGE_IRREPS)
        self.layers = nn.ModuleList(SEGNNLayer(hidden, attributes, message) for _ in range(config.layers))
        self.pre_pool1 = O3TensorProductSwishGate(hidden, hidden, attributes)
        self.pre_pool2 = O3TensorProduct(hidden, o3.Irreps(OUTPUT_IRREPS), attributes)

    def forward(self, positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        """Return predicted positions.

        Args:
            positions: shape (b, n, 3), dimensionless.
            velocities: shape (b, n, 3).
            charges: shape (b, n).

        Returns:
            Shape (b, n, 3): turns, reflects and moves with the inputs.
        """
        particles = positions.shape[1]
        edge_index = dense_edges(positions.shape[0], particles, positions.device)
        centred = (positions - positions.mean(1, keepdim=True)).flatten(0, 1)
        velocity = velocities.flatten(0, 1)
        nodes = torch.cat((centred, velocity, velocity.norm(dim=-1, keepdim=True)), dim=-1)
        edge_attributes, extra = self._edge_features(centred, charges.flatten(), edge_index)
        node_attributes = self._node_attributes(velocity, edge_attributes, edge_index[1], particles - 1)
        nodes = self.embedding_layer(nodes, node_attributes)
        for layer in self.layers:
            nodes = layer(nodes, edge_index, edge_attributes, node_attributes, extra)
        displacements: Tensor = self.pre_pool2(self.pre_pool1(nodes, node_attributes), node_attributes)
        return positions + displacements.view_as(positions)

    def _edge_features(self, centred: Tensor, charges: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        source, target = edge_index[0], edge_index[1]
        difference = centred[source] - centred[target]
        distance = difference.norm(dim=-1, keepdim=True)
        product = (charges[source] * charges[target]).unsqueeze(-1)
        return self._attributes(difference), torch.cat((distance, product), dim=-1)

    def _node_attributes(self, velocity: Tensor, edge_attributes: Tensor, target: Tensor, neighbours: int) -> Tensor:
        """Mean of the incoming edges' attributes plus those of the velocity; the scalar is set to 1, not 2."""
        own = self._attributes(velocity)
        total = torch.zeros_like(own).index_add(0, target, edge_attributes)
        return torch.cat((torch.ones_like(own[:, :1]), (total / neighbours + own)[:, 1:]), dim=-1)

    def _attributes(self, vectors: Tensor) -> Tensor:
        """Spherical harmonics of the directions with a scalar of exactly 1, shape (m, d_attributes)."""
        degrees = list(range(1, self.config.lmax_attributes + 1))
        angular = o3.spherical_harmonics(degrees, vectors, normalize=True, normalization="component")
        return torch.cat((torch.ones_like(vectors[:, :1]), angular), dim=-1)


def dense_edges(graphs: int, particles: int, device: torch.device) -> Tensor:
    """Return all ordered pairs of different nodes within each graph: sources and targets, shape (2, b n (n-1)), int64.

    Example:
        >>> dense_edges(1, 3, torch.device("cpu")).tolist()
        [[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]
    """
    target = torch.arange(particles, device=device).unsqueeze(-1).expand(-1, particles - 1).flatten()
    rank = torch.arange(particles - 1, device=device).expand(particles, -1).flatten()
    source = rank + (rank >= target)
    offsets = torch.arange(0, particles * graphs, particles, device=device).unsqueeze(-1)
    return torch.stack(((source + offsets).flatten(), (target + offsets).flatten()))
