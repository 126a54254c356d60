"""Layers of an Equiformer: tensor products with a bias on scalars, gates, layer normalisation, radial networks.

Parameter names and shapes are those of the authors' public code. Features have shape (n, d): nodes or edges, and a sum
of irreps. e3nn is imported with this module; before version 0.5 that needs ``import_e3nn`` of
``surgeon.support.e3nn_compat`` first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from e3nn import o3
from e3nn.math import normalize2mom
from torch import Tensor, nn

EPS = 1e-5


def is_even_scalar(irrep: o3.Irrep) -> bool:
    """Tell whether an irrep is 0e, the only one that may have a bias."""
    return bool(irrep.l == 0 and irrep.p == 1)


def sorted_even_first(irreps: o3.Irreps) -> tuple[o3.Irreps, list[int]]:
    """Sort blocks by degree, even ones first, equal ones in their order.

    Returns:
        The sorted irreps, and the new place of each old block.
    """
    order = sorted(range(len(irreps)), key=lambda index: (irreps[index].ir.l, -irreps[index].ir.p, index))
    places = [0] * len(order)
    for new, old in enumerate(order):
        places[old] = new
    return o3.Irreps([irreps[old] for old in order]), places


class BiasedTensorProduct(nn.Module):
    """Tensor product without normalisation over paths, and a bias on the even scalars of its output.

    Args:
        irreps_in1: of the features.
        irreps_in2: of the attributes.
        irreps_out: of the output.
        instructions: paths, as ``o3.TensorProduct`` takes them.
        bias: add one.
        own_weights: the layer holds its weights; otherwise they are supplied for each row.
    """

    def __init__(
        self,
        irreps_in1: o3.Irreps,
        irreps_in2: o3.Irreps,
        irreps_out: o3.Irreps,
        instructions: Sequence[tuple[int, int, int, str, bool]],
        bias: bool = True,
        own_weights: bool = True,
    ) -> None:
        super().__init__()
        self.irreps_out = irreps_out
        self.tp = o3.TensorProduct(
            irreps_in1,
            irreps_in2,
            irreps_out,
            list(instructions),
            internal_weights=own_weights,
            shared_weights=own_weights,
            path_normalization="none",
        )
        whole = irreps_out.simplify()
        places = zip(whole, whole.slices(), strict=True)
        scalars = [where for (_, irrep), where in places if is_even_scalar(irrep)] if bias else []
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(where.stop - where.start)) for where in scalars])
        self.bias_starts = [where.start for where in scalars]

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the product of features (n, d_1) and attributes (n, d_2), shape (n, d_out)."""
        out: Tensor = self.tp(x, y, weight)
        for start, bias in zip(self.bias_starts, self.bias, strict=True):
            out = out + nn.functional.pad(bias, (start, out.shape[-1] - start - len(bias)))
        return out


class FullyConnected(BiasedTensorProduct):
    """Tensor product with every path and weights of its own, which start as those of ``nn.Linear`` do."""

    def __init__(self, irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps, bias: bool = True) -> None:
        paths = [
            (i, j, k, "uvw", True)
            for i, (_, left) in enumerate(irreps_in1)
            for j, (_, right) in enumerate(irreps_in2)
            for k, (_, out) in enumerate(irreps_out)
            if out in left * right
        ]
        super().__init__(irreps_in1, irreps_in2, irreps_out, paths, bias)
        fan_in = [0] * len(irreps_out)
        for i, j, k, _, _ in paths:
            fan_in[k] += irreps_in1[i].mul * irreps_in2[j].mul
        with torch.no_grad():
            for weight, (_, _, k, _, _) in zip(self.tp.weight_views(), paths, strict=True):
                weight.mul_(1 / math.sqrt(fan_in[k]))


class Linear(FullyConnected):
    """Equivariant linear layer: the fully connected product with a constant 1."""

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, bias: bool = True) -> None:
        super().__init__(irreps_in, o3.Irreps("1x0e"), irreps_out, bias)

    def forward(self, x: Tensor, y: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Map (n, d_in) to (n, d_out)."""
        return super().forward(x, torch.ones_like(x[:, :1]) if y is None else y, weight)


def depthwise(
    irreps_in: o3.Irreps, irreps_edge: o3.Irreps, wanted: o3.Irreps, own_weights: bool
) -> BiasedTensorProduct:
    """Return a product of each channel by itself with an edge's attributes, into irreps that are wanted, and 0e."""
    blocks: list[tuple[int, o3.Irrep]] = []
    paths: list[tuple[int, int]] = []
    for i, (mul, left) in enumerate(irreps_in):
        for j, (_, right) in enumerate(irreps_edge):
            for out in left * right:
                if out in wanted or is_even_scalar(out):
                    blocks.append((mul, out))
                    paths.append((i, j))
    irreps_out, places = sorted_even_first(o3.Irreps(blocks))
    instructions = [(i, j, k, "uvu", True) for (i, j), k in zip(paths, places, strict=True)]
    return BiasedTensorProduct(irreps_in, irreps_edge, irreps_out, instructions, bias=False, own_weights=own_weights)


class Activation(nn.Module):
    """A function of scalars, scaled so that a normal variable keeps its second moment."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = normalize2mom(function)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to each entry."""
        y: Tensor = self.function(x)
        return y


def gate_parts(irreps: o3.Irreps) -> tuple[o3.Irreps, o3.Irreps, o3.Irreps]:
    """Return the even scalars of some irreps, one more of them for each other irrep, and these others."""
    scalars = o3.Irreps([block for block in irreps if is_even_scalar(block.ir)]).simplify()
    gated = o3.Irreps([block for block in irreps if not is_even_scalar(block.ir)]).simplify()
    gates = o3.Irreps([(mul, (0, 1)) for mul, _ in gated]).simplify()
    return scalars, gates, gated


class Gate(nn.Module):
    """SiLU on even scalars; every other irrep times the sigmoid of a scalar of its own.

    Args:
        irreps: of the output; those of the input are ``irreps_in``.
    """

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        scalars, gates, gated = gate_parts(irreps)
        self.irreps_in = (scalars + gates + gated).simplify()
        self.sizes = [scalars.dim, gates.dim, gated.dim]
        self.act_scalars = Activation(nn.functional.silu)
        self.act_gates = Activation(torch.sigmoid)
        if gated.dim:
            self.mul = o3.ElementwiseTensorProduct(gated, gates)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, scalars + gates + gated) to (n, scalars + gated)."""
        scalars, gates, gated = torch.split(x, self.sizes, dim=-1)
        if not self.sizes[2]:
            only: Tensor = self.act_scalars(scalars)
            return only
        return torch.cat([self.act_scalars(scalars), self.mul(gated, self.act_gates(gates))], dim=-1)


class GatedFullyConnected(FullyConnected):
    """Fully connected product followed by a gate."""

    def __init__(self, irreps_in1: o3.Irreps, irreps_in2: o3.Irreps, irreps_out: o3.Irreps) -> None:
        gate = Gate(irreps_out)
        super().__init__(irreps_in1, irreps_in2, gate.irreps_in)
        self.gate = gate

    def forward(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the gated product of features (n, d_1) and attributes (n, d_2)."""
        gated: Tensor = self.gate(super().forward(x, y, weight))
        return gated


class LayerNorm(nn.Module):
    """Divide each degree by the root mean square of its components; even scalars are centred first.

    Args:
        irreps: of the features.
    """

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.irreps = irreps
        self.affine_weight = nn.Parameter(torch.ones(irreps.num_irreps))
        self.affine_bias = nn.Parameter(torch.zeros(sum(mul for mul, irrep in irreps if is_even_scalar(irrep))))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, d) to the same shape."""
        parts = []
        weights = torch.split(self.affine_weight, [mul for mul, _ in self.irreps])
        first_bias = 0
        blocks = torch.split(x, [mul * irrep.dim for mul, irrep in self.irreps], dim=-1)
        for block, weight, (mul, irrep) in zip(blocks, weights, self.irreps, strict=True):
            field = block.reshape(-1, mul, irrep.dim)
            scalar = is_even_scalar(irrep)
            if scalar:
                field = field - field.mean(dim=1, keepdim=True)
            scale = (field.square().mean(dim=(1, 2), keepdim=True) + EPS).rsqrt()
            field = field * (scale * weight[:, None])
            if scalar:
                field = field + self.affine_bias[first_bias : first_bias + mul, None]
                first_bias += mul
            parts.append(field.reshape(-1, mul * irrep.dim))
        return torch.cat(parts, dim=-1)


class RadialNetwork(nn.Module):
    """Weights of a tensor product from functions of an edge's length; the last layer's bias is called ``offset``.

    Args:
        widths: of input, hidden layers and output.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        *hidden, last, out = widths
        self.offset = nn.Parameter(torch.empty(out).uniform_(-1 / math.sqrt(last), 1 / math.sqrt(last)))
        layers: list[nn.Module] = []
        for width, into in zip([*hidden, last][:-1], [*hidden, last][1:], strict=True):
            linear = nn.Linear(width, into)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LayerNorm(into), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(last, out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (m, basis) to (m, weights)."""
        y: Tensor = self.net(x)
        return y + self.offset
