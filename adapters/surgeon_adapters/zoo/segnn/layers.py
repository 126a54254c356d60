"""Steerable linear layers: tensor products with geometric attributes, with the published code's names and scales.

Brandstetter et al., "Geometric and Physical Quantities improve E(3) Equivariant Message Passing" (ICLR 2022). Importing
this module imports e3nn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.support.e3nn_compat import import_e3nn

o3: Any = import_e3nn()


class O3TensorProduct(nn.Module):
    """Fully connected tensor product with attributes, scaled like ``nn.Linear``, plus a bias on scalar outputs.

    Args:
        irreps_in1: of the features.
        irreps_out: of the result.
        irreps_in2: of the attributes; None for a linear layer.
    """

    sqrt_k_correction: Tensor
    bias_idx: Tensor

    def __init__(self, irreps_in1: Any, irreps_out: Any, irreps_in2: Any | None = None) -> None:
        super().__init__()
        second = o3.Irreps("1x0e") if irreps_in2 is None else irreps_in2
        self.irreps_in1, self.irreps_in2, self.irreps_out = irreps_in1, second, irreps_out
        self.tp = o3.FullyConnectedTensorProduct(
            irreps_in1, second, irreps_out, shared_weights=True, irrep_normalization="component"
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

    def forward(self, features: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Return the product of features (m, d_in) and attributes (m, d_attributes), shape (m, d_out)."""
        second = torch.ones_like(features[:, :1]) if attributes is None else attributes
        # The weights start in +-1/sqrt(fan in) although e3nn divides by sqrt(fan in) itself: undo one of the two.
        out: Tensor = self.tp(features, second) / self.sqrt_k_correction
        if self.biases is None:
            return out
        return out + torch.zeros_like(self.sqrt_k_correction).index_copy(0, self.bias_idx, self.biases)


class O3TensorProductSwishGate(O3TensorProduct):
    """Tensor product followed by a gate: SiLU on scalars, a sigmoid of one extra scalar times each other irrep.

    Args:
        irreps_in1: of the features.
        irreps_out: of the result; the first block is scalar.
        irreps_in2: of the attributes; None for a linear layer.
    """

    def __init__(self, irreps_in1: Any, irreps_out: Any, irreps_in2: Any | None = None) -> None:
        scalars, gated = irreps_out[:1], irreps_out[1:]
        gates = o3.Irreps([(gated.num_irreps, (0, 1))])
        super().__init__(irreps_in1, (scalars + gates + gated).simplify(), irreps_in2)
        self.gate = _gate(scalars, gates, gated) if gated.num_irreps else nn.SiLU()

    def forward(self, features: Tensor, attributes: Tensor | None = None) -> Tensor:
        """Return the gated product of features (m, d_in) and attributes (m, d_attributes), shape (m, d_out)."""
        gated: Tensor = self.gate(super().forward(features, attributes))
        return gated


def _gate(scalars: Any, gates: Any, gated: Any) -> nn.Module:
    from e3nn.nn import Gate

    gate: nn.Module = Gate(scalars, [nn.SiLU()], gates, [torch.sigmoid], gated)
    return gate


class InstanceNorm(nn.Module):
    """Per graph, scalars get mean 0, and every irrep a mean square of 1 over nodes and components, times a weight.

    Args:
        irreps: of the features.
        eps: added to the mean square.
    """

    def __init__(self, irreps: Any, eps: float = 1e-5) -> None:
        super().__init__()
        self.irreps, self.eps = irreps, eps
        self.weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.bias = nn.Parameter(torch.zeros(sum(mul for mul, irrep in irreps if irrep.l == 0)))

    def forward(self, features: Tensor, batch: Tensor) -> Tensor:
        """Map (m, d) to the same shape; ``batch`` (m,) tells the graph of each node."""
        fields, first, first_bias = [], 0, 0
        for where, (mul, irrep) in zip(self.irreps.slices(), self.irreps, strict=True):
            field = features[:, where].reshape(-1, mul, irrep.dim)
            if irrep.l == 0:
                field = field - pooled(field, batch, "avg")[batch]
            square = pooled(field.square().mean(-1), batch, "avg")
            scale = (square + self.eps).rsqrt() * self.weight[first : first + mul]
            field = field * scale[batch].unsqueeze(-1)
            if irrep.l == 0:
                field = field + self.bias[first_bias : first_bias + mul].unsqueeze(-1)
                first_bias += mul
            fields.append(field.flatten(1))
            first += mul
        return torch.cat(fields, dim=-1)


def pooled(features: Tensor, batch: Tensor, kind: str) -> Tensor:
    """Return sums, or with "avg" means, over the nodes of each graph.

    Args:
        features: shape (m, ...).
        batch: shape (m,), long: the graph of each node, from 0 to graphs - 1.
        kind: "avg" or "sum".

    Returns:
        Shape (graphs, ...).
    """
    graphs = int(batch.max()) + 1
    total = features.new_zeros(graphs, *features.shape[1:]).index_add(0, batch, features)
    if kind == "sum":
        return total
    counts = features.new_zeros(graphs).index_add(0, batch, torch.ones_like(batch, dtype=features.dtype))
    return total / counts.reshape(-1, *[1] * (features.dim() - 1))
