"""What the public code calls the parameters of its networks with exponential functions, by order, with shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

Shapes = dict[str, tuple[int, ...]]

SCALARS, HEADS, TYPES, WIDTH = 512, 4, 64, 64
"""Channels of the last block, attention heads, atomic numbers, and width of the radial networks."""


def dim(irreps: Sequence[int]) -> int:
    return sum(mul * (2 * degree + 1) for degree, mul in enumerate(irreps))


def linear(name: str, into: Sequence[int], out: Sequence[int], bias: bool = True) -> Shapes:
    weight = sum(a * b for a, b in zip(into, out, strict=False))
    found: Shapes = {f"{name}.tp.weight": (weight,), f"{name}.tp.output_mask": (dim(out),)}
    return {**found, f"{name}.bias.0": (out[0],)} if bias else found


def norm(name: str, irreps: Sequence[int]) -> Shapes:
    return {f"{name}.affine_weight": (sum(irreps),), f"{name}.affine_bias": (irreps[0],)}


def gated(irreps: Sequence[int]) -> list[int]:
    """Scalars and gates, and what is gated."""
    return [sum(irreps), *irreps[1:]]


def gate(name: str, irreps: Sequence[int]) -> Shapes:
    return {f"{name}.gate.mul.weight": (0,), f"{name}.gate.mul.output_mask": (dim([0, *irreps[1:]]),)}


@dataclass(frozen=True)
class Published:
    """Multiplicities of the degrees 0, 1, ... in the nodes, an attention head, and the feed-forward networks."""

    embedding: Sequence[int]
    head: Sequence[int]
    mlp: Sequence[int]
    layers: int = 6
    basis: int = 32

    @cached_property
    def triples(self) -> list[tuple[int, int, int]]:
        degrees = range(len(self.embedding))
        return [(i, j, k) for i in degrees for j in degrees for k in degrees if abs(i - j) <= k <= i + j]

    @cached_property
    def products(self) -> list[int]:
        """Channels of each degree after a product with the harmonics."""
        return [
            sum(self.embedding[i] for i, _, k in self.triples if k == degree) for degree in range(len(self.embedding))
        ]

    def depthwise(self, name: str, own: bool) -> Shapes:
        symbols = {
            f"{name}.tp._compiled_main_left_right._w3j_{i}_{j}_{k}": (2 * i + 1, 2 * j + 1, 2 * k + 1)
            for i, j, k in self.triples
            if i and j and k
        }
        weights = sum(self.products) if own else 0
        return {f"{name}.tp.weight": (weights,), f"{name}.tp.output_mask": (dim(self.products),), **symbols}

    def radial(self, name: str) -> Shapes:
        found: Shapes = {f"{name}.offset": (sum(self.products),)}
        for layer, width in ((0, self.basis), (3, WIDTH)):
            found |= {f"{name}.net.{layer}.weight": (WIDTH, width), f"{name}.net.{layer}.bias": (WIDTH,)}
            found |= {f"{name}.net.{layer + 1}.weight": (WIDTH,), f"{name}.net.{layer + 1}.bias": (WIDTH,)}
        return {**found, f"{name}.net.6.weight": (sum(self.products), WIDTH)}

    def attention(self, name: str) -> Shapes:
        together = [HEADS * mul for mul in self.head]
        return {
            f"{name}.alpha_dot": (1, HEADS, self.head[0]),
            **linear(f"{name}.merge_src", self.embedding, self.embedding),
            **linear(f"{name}.merge_dst", self.embedding, self.embedding, bias=False),
            **self.depthwise(f"{name}.sep_act.dtp", own=False),
            **self.radial(f"{name}.sep_act.dtp_rad"),
            **linear(f"{name}.sep_act.lin", self.products, gated(self.embedding)),
            **gate(f"{name}.sep_act", self.embedding),
            **linear(f"{name}.sep_alpha", self.products, together[:1]),
            **self.depthwise(f"{name}.sep_value.dtp", own=True),
            **linear(f"{name}.sep_value.lin", self.products, together),
            **linear(f"{name}.proj", together, self.embedding),
        }

    def block(self, name: str, last: bool) -> Shapes:
        out = [SCALARS] if last else self.embedding
        return {
            **norm(f"{name}.norm_1", self.embedding),
            **self.attention(f"{name}.ga"),
            **norm(f"{name}.norm_2", self.embedding),
            **linear(f"{name}.ffn.fctp_1", self.embedding, gated(self.mlp)),
            **gate(f"{name}.ffn.fctp_1", self.mlp),
            **linear(f"{name}.ffn.fctp_2", self.mlp, out),
            **(linear(f"{name}.ffn_shortcut", self.embedding, out) if last else {}),
        }

    def shapes(self) -> Shapes:
        """Keys and shapes of the whole network."""
        found = {
            **linear("atom_embed.atom_type_lin", [TYPES], self.embedding),
            "rbf.means": (self.basis,),
            "rbf.betas": (self.basis,),
            **linear("edge_deg_embed.exp", [1], self.embedding),
            **self.depthwise("edge_deg_embed.dw", own=False),
            **self.radial("edge_deg_embed.rad"),
            **linear("edge_deg_embed.proj", self.products, self.embedding),
        }
        for number in range(self.layers):
            found |= self.block(f"blocks.{number}", number == self.layers - 1)
        head = {**linear("head.0", [SCALARS], [SCALARS]), **linear("head.2", [SCALARS], [1])}
        return {**found, **norm("norm", [SCALARS]), **head}


PUBLISHED = {
    "graph_attention_transformer_nonlinear_exp_l2_md17": Published((128, 64, 32), (32, 16, 8), (384, 192, 96)),
    "graph_attention_transformer_nonlinear_exp_l3_md17": Published(
        (128, 64, 64, 32), (32, 16, 16, 8), (384, 192, 192, 96)
    ),
}
