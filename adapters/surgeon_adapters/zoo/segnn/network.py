"""SEGNN on any graph with geometric attributes, with the parameter names and shapes of the authors' public code.

Brandstetter et al., "Geometric and Physical Quantities improve E(3) Equivariant Message Passing" (ICLR 2022). What goes
in (features, attributes of edges and nodes) is computed by the caller, as in the published code. Importing this module
imports e3nn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon_adapters.zoo.segnn.layers import InstanceNorm, O3TensorProduct, O3TensorProductSwishGate, o3, pooled

Norm = Literal["batch", "instance"]
Pool = Literal["avg", "sum"]


@dataclass(frozen=True)
class SegnnSettings:
    """What a network is built from; irreps in e3nn's notation.

    Attributes:
        input_irreps: of the nodes' features; "2x1o+1x0e" for particles: centred position, velocity, speed.
        hidden_irreps: the first block is scalar.
        output_irreps: of what is predicted, per node or per graph.
        edge_attr_irreps, node_attr_irreps: of the attributes.
        layers: number of message passing layers.
        additional_message_irreps: of further features of edges; "" for none.
        task: whether every node or the whole graph gets an answer.
        norm: of the features after every layer; None for none.
        pool: over the nodes of a graph.
    """

    input_irreps: str
    hidden_irreps: str
    output_irreps: str
    edge_attr_irreps: str
    node_attr_irreps: str
    layers: int
    additional_message_irreps: str = ""
    task: Literal["node", "graph"] = "node"
    norm: Norm | None = None
    pool: Pool = "avg"

    @property
    def words(self) -> str:
        """What it is, for messages."""
        return f"SEGNN of {self.layers} layers with {self.hidden_irreps} for each {self.task}"


class SEGNNLayer(nn.Module):
    """One step of message passing with a residual update of the nodes."""

    def __init__(self, hidden: Any, settings: SegnnSettings) -> None:
        super().__init__()
        edge, node = o3.Irreps(settings.edge_attr_irreps), o3.Irreps(settings.node_attr_irreps)
        extra = o3.Irreps(settings.additional_message_irreps)
        self.message_layer_1 = O3TensorProductSwishGate((hidden + hidden + extra).simplify(), hidden, edge)
        self.message_layer_2 = O3TensorProductSwishGate(hidden, hidden, edge)
        self.update_layer_1 = O3TensorProductSwishGate((hidden + hidden).simplify(), hidden, node)
        self.update_layer_2 = O3TensorProduct(hidden, hidden, node)
        self.feature_norm, self.message_norm = _norms(hidden, settings.norm)

    def forward(
        self,
        nodes: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        node_attr: Tensor,
        extra: Tensor | None,
        batch: Tensor | None,
    ) -> Tensor:
        """Return updated nodes; see :meth:`SEGNN.forward` for the arguments."""
        source, target = edge_index[0], edge_index[1]
        parts = (nodes[target], nodes[source]) if extra is None else (nodes[target], nodes[source], extra)
        message = self.message_layer_2(self.message_layer_1(torch.cat(parts, dim=-1), edge_attr), edge_attr)
        if self.message_norm is not None:
            message = self.message_norm(message)
        total = torch.zeros_like(nodes).index_add(0, target, message)
        update: Tensor = self.update_layer_1(torch.cat((nodes, total), dim=-1), node_attr)
        result: Tensor = nodes + self.update_layer_2(update, node_attr)
        if isinstance(self.feature_norm, InstanceNorm):
            result = self.feature_norm(result, edge_index.new_zeros(len(nodes)) if batch is None else batch)
        elif self.feature_norm is not None:
            result = self.feature_norm(result)
        return result


def _norms(hidden: Any, norm: Norm | None) -> tuple[nn.Module | None, nn.Module | None]:
    if norm == "instance":
        return InstanceNorm(hidden), None
    if norm == "batch":
        from e3nn.nn import BatchNorm

        return BatchNorm(hidden), BatchNorm(hidden)
    return None, None


class SEGNN(nn.Module):
    """Steerable message passing network.

    Args:
        settings: irreps and sizes.
    """

    def __init__(self, settings: SegnnSettings) -> None:
        super().__init__()
        self.settings = settings
        inputs, hidden, output, node = (
            o3.Irreps(irreps)
            for irreps in (
                settings.input_irreps,
                settings.hidden_irreps,
                settings.output_irreps,
                settings.node_attr_irreps,
            )
        )
        whole = settings.task == "graph"
        between = (output * hidden.num_irreps).simplify().sort().irreps if whole else output
        self.embedding_layer = O3TensorProduct(inputs, hidden, node)
        self.layers = nn.ModuleList(SEGNNLayer(hidden, settings) for _ in range(settings.layers))
        self.pre_pool1 = O3TensorProductSwishGate(hidden, hidden, node)
        self.pre_pool2 = O3TensorProduct(hidden, between, node)
        if whole:
            self.post_pool1 = O3TensorProductSwishGate(between, between)
            self.post_pool2 = O3TensorProduct(between, output)

    def forward(
        self,
        x: Tensor,
        edge_index: Tensor,
        edge_attr: Tensor,
        node_attr: Tensor,
        extra: Tensor | None = None,
        batch: Tensor | None = None,
    ) -> Tensor:
        """Return an answer for each node, or for each graph.

        Args:
            x: shape (m, d_input), features of the nodes.
            edge_index: shape (2, e), long: sources, then targets.
            edge_attr: shape (e, d_edge_attr).
            node_attr: shape (m, d_node_attr); its first entry, the scalar, is set to 1.
            extra: shape (e, d_extra), further features of the edges.
            batch: shape (m,), long: the graph of each node; None for a single one.

        Returns:
            Shape (m, d_output), or (graphs, d_output).
        """
        node_attr = torch.cat((torch.ones_like(node_attr[:, :1]), node_attr[:, 1:]), dim=-1)
        nodes = self.embedding_layer(x, node_attr)
        for layer in self.layers:
            nodes = layer(nodes, edge_index, edge_attr, node_attr, extra, batch)
        answers: Tensor = self.pre_pool2(self.pre_pool1(nodes, node_attr), node_attr)
        if self.settings.task == "node":
            return answers
        graphs = edge_index.new_zeros(len(x)) if batch is None else batch
        whole: Tensor = self.post_pool2(self.post_pool1(pooled(answers, graphs, self.settings.pool)))
        return whole
