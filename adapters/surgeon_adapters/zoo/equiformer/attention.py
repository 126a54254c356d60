"""Equivariant graph attention: messages from both ends of an edge, weighed by a softmax over the edges of a node."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from surgeon_adapters.zoo.equiformer.config import EquiformerConfig
from surgeon_adapters.zoo.equiformer.edges import Edges, softmax_over_edges, sum_to_nodes
from surgeon_adapters.zoo.equiformer.layers import (
    Activation,
    Gate,
    Linear,
    RadialNetwork,
    depthwise,
    is_even_scalar,
    sorted_even_first,
)


def smooth_leaky_relu(x: Tensor) -> Tensor:
    """Return ``0.6 x + 0.4 x (2 sigmoid(x) - 1)``, a leaky ReLU of slope 0.2 without a kink."""
    return 0.6 * x + 0.4 * x * (2 * torch.sigmoid(x) - 1)


class SeparableProduct(nn.Module):
    """Depthwise tensor product with an edge's harmonics, then a linear layer, and perhaps a gate.

    Args:
        irreps_in: of the messages.
        irreps_edge: of the harmonics.
        irreps_out: of the output.
        radial: widths of the network that makes the product's weights, without its output; None: it has its own.
        gated: put a gate behind it.
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_edge: o3.Irreps,
        irreps_out: o3.Irreps,
        radial: tuple[int, ...] | None,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.dtp = depthwise(irreps_in, irreps_edge, irreps_out, own_weights=radial is None)
        self.dtp_rad = None if radial is None else RadialNetwork([*radial, self.dtp.tp.weight_numel])
        gate = Gate(irreps_out) if gated else None
        self.lin = Linear(self.dtp.irreps_out.simplify(), irreps_out if gate is None else gate.irreps_in)
        self.gate = gate

    def product(self, message: Tensor, edges: Edges) -> Tensor:
        """Return the tensor product alone, (m, d)."""
        weight = None if self.dtp_rad is None else self.dtp_rad(edges.lengths)
        product: Tensor = self.dtp(message, edges.harmonics, weight)
        return product

    def finish(self, product: Tensor) -> Tensor:
        """Apply linear layer and gate."""
        out: Tensor = self.lin(product)
        return out if self.gate is None else self.gate(out)

    def forward(self, message: Tensor, edges: Edges) -> Tensor:
        """Map messages (m, d_in) to (m, d_out)."""
        return self.finish(self.product(message, edges))


class GraphAttention(nn.Module):
    """Attention of a node over its neighbours.

    Args:
        irreps_in: of the nodes.
        irreps_out: of the result.
        config: of the network.
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, config: EquiformerConfig) -> None:
        super().__init__()
        harmonics, radial = o3.Irreps(config.harmonics), (config.num_basis, *config.radial)
        self.head, self.heads = o3.Irreps(config.head), config.heads
        together = sorted_even_first(o3.Irreps([(mul * self.heads, ir) for mul, ir in self.head]))[0].simplify()
        scores = sum(mul for mul, irrep in self.head if is_even_scalar(irrep))
        self.score_sizes, irreps_scores = [scores], o3.Irreps([(scores * self.heads, (0, 1))])
        bound = (6 / (self.heads + scores)) ** 0.5
        self.alpha_dot = nn.Parameter(torch.empty(1, self.heads, scores).uniform_(-bound, bound))
        self.merge_src = Linear(irreps_in, irreps_in)
        self.merge_dst = Linear(irreps_in, irreps_in, bias=False)
        self.nonlinear = config.nonlinear_message
        if self.nonlinear:
            self.sep_act = SeparableProduct(irreps_in, harmonics, irreps_in, radial, gated=True)
            self.sep_alpha = Linear(self.sep_act.dtp.irreps_out, irreps_scores)
            self.sep_value = SeparableProduct(irreps_in, harmonics, together, None)
        else:
            self.sep = SeparableProduct(irreps_in, harmonics, (irreps_scores + together).simplify(), radial)
        self.alpha_act = Activation(smooth_leaky_relu)
        self.alpha_dropout = nn.Dropout(config.attention_dropout)
        self.proj = Linear(together, irreps_out)

    def forward(self, nodes: Tensor, edges: Edges) -> Tensor:
        """Map nodes (n, d_in) to (n, d_out)."""
        message = self.merge_src(nodes)[edges.source] + self.merge_dst(nodes)[edges.target]
        scores, values = self._scored(message, edges)
        alpha = (self.alpha_act(scores) * self.alpha_dot).sum(dim=-1)
        alpha = self.alpha_dropout(softmax_over_edges(alpha, edges.target, len(nodes)))
        summed = sum_to_nodes(values * alpha.unsqueeze(-1), edges.target, len(nodes))
        result: Tensor = self.proj(_joined(summed, self.head))
        return result

    def _scored(self, message: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Return what the scores come from, (m, heads, scores), and the values, (m, heads, d_head)."""
        sizes = [mul * irrep.dim for mul, irrep in self.head]
        if not self.nonlinear:
            (scores,) = self.score_sizes
            both = _per_head(self.sep(message, edges), [scores + sizes[0], *sizes[1:]], self.heads)
            return both[..., :scores], both[..., scores:]
        product = self.sep_act.product(message, edges)
        values = self.sep_value(self.sep_act.finish(product), edges)
        return _per_head(self.sep_alpha(product), self.score_sizes, self.heads), _per_head(values, sizes, self.heads)


def _per_head(x: Tensor, sizes: list[int], heads: int) -> Tensor:
    """Reshape (m, sum of sizes times heads) to (m, heads, sum of sizes), block by block."""
    blocks = torch.split(x, [heads * size for size in sizes], dim=-1)
    return torch.cat([block.reshape(len(x), heads, -1) for block in blocks], dim=-1)


def _joined(x: Tensor, head: o3.Irreps) -> Tensor:
    """Reshape (n, heads, d_head) to (n, heads * d_head), block by block."""
    blocks = torch.split(x, [mul * irrep.dim for mul, irrep in head], dim=-1)
    return torch.cat([block.reshape(len(x), -1) for block in blocks], dim=-1)
