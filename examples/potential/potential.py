"""A small e3nn potential of H, C and O: energies of molecules, and forces as their gradient; torch and e3nn only."""

from __future__ import annotations

import math

import torch
from e3nn import nn as enn
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

SYMBOLS = ("H", "C", "O")
CUTOFF = 5.0
"""In Angstrom."""
NEIGHBOURS = 9.0
"""By which sums over neighbours are divided."""


class Layer(nn.Module):
    """Messages along edges, an equivariant linear map, a gate.

    Args:
        into: irreps of the atoms' features.
        hidden: irreps after the layer, scalars first.
        harmonics: irreps of the edges' directions.
        radial: number of radial functions.
    """

    def __init__(self, into: o3.Irreps, hidden: o3.Irreps, harmonics: o3.Irreps, radial: int) -> None:
        super().__init__()
        paths, outs = [], []
        for i, (mul, irrep) in enumerate(into):
            for j, (_, other) in enumerate(harmonics):
                for product in irrep * other:
                    if product in hidden:
                        paths.append((i, j, len(outs), "uvu", True))
                        outs.append((mul, product))
        between = o3.Irreps(outs)
        self.product = o3.TensorProduct(into, harmonics, between, paths, shared_weights=False, internal_weights=False)
        self.radial = enn.FullyConnectedNet([radial, 16, self.product.weight_numel], functional.silu)
        scalars, gated = o3.Irreps(hidden[:1]), o3.Irreps(hidden[1:])
        gates = o3.Irreps(f"{gated.num_irreps}x0e")
        self.gate = enn.Gate(scalars, [functional.silu], gates, [torch.sigmoid], gated)
        self.linear = o3.Linear(between, self.gate.irreps_in)
        self.own = o3.Linear(into, self.gate.irreps_in)

    def forward(self, x: Tensor, ends: Tensor, harmonics: Tensor, radial: Tensor) -> Tensor:
        """Return features of shape (n, irreps of the layer) from those of shape (n, irreps before) and edges (2, e)."""
        messages = self.product(x[ends[0]], harmonics, self.radial(radial))
        summed = messages.new_zeros(x.shape[0], messages.shape[1]).index_add(0, ends[1], messages) / NEIGHBOURS**0.5
        result: Tensor = self.gate(self.linear(summed) + self.own(x))
        return result


class Potential(nn.Module):
    """Energies as sums over atoms; within a molecule every atom sees every other, smoothly up to the cutoff.

    Args:
        channels: scalars and vectors of an atom, as many of each.
        layers: rounds of messages.
        radial: number of radial functions.
    """

    shift: Tensor

    def __init__(self, channels: int = 24, layers: int = 2, radial: int = 8) -> None:
        super().__init__()
        hidden = o3.Irreps(f"{channels}x0e+{channels}x1o")
        sizes = [o3.Irreps(f"{channels}x0e")] + [hidden] * layers
        self.harmonics = o3.Irreps.spherical_harmonics(2)
        self.embedding = nn.Embedding(len(SYMBOLS), channels)
        self.layers = nn.ModuleList(Layer(into, hidden, self.harmonics, radial) for into in sizes[:-1])
        self.readout = nn.Sequential(o3.Linear(hidden, f"{channels}x0e"), nn.SiLU(), nn.Linear(channels, 1))
        self.register_buffer("waves", torch.arange(1, radial + 1) * math.pi / CUTOFF)
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, kinds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies and forces of molecules that have equally many atoms.

        Args:
            kinds: index into ``SYMBOLS``, shape (f, a).
            positions: in Angstrom, shape (f, a, 3).

        Returns:
            Energies in eV, shape (f,), and forces in eV/Angstrom, shape (f, a, 3).
        """
        positions = positions.detach().requires_grad_()
        energies = self.energies(kinds, positions)
        (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=self.training)
        return energies, -gradient

    def energies(self, kinds: Tensor, positions: Tensor) -> Tensor:
        """Return energies in eV, shape (f,); see :meth:`forward`."""
        frames, atoms, _ = positions.shape
        device = positions.device
        each = torch.arange(atoms, device=device)
        others = (each[:, None] + each[None, 1:]) % atoms  # shape (a, a - 1), row i: all but i
        pairs = torch.stack([others.flatten(), each.repeat_interleave(atoms - 1)])
        first = atoms * torch.arange(frames, device=device)
        ends = (pairs[:, None] + first[:, None]).flatten(1)
        flat = positions.flatten(0, 1)
        vectors = flat[ends[0]] - flat[ends[1]]
        lengths = vectors.square().sum(1).sqrt()[:, None]
        inside = 0.5 * (1 + torch.cos(math.pi * lengths.clamp(max=CUTOFF) / CUTOFF))
        radial = torch.sin(lengths * self.waves) / lengths * inside
        harmonics = o3.spherical_harmonics(self.harmonics, vectors, True, "component")
        x = self.embedding(kinds).flatten(0, 1)
        for layer in self.layers:
            x = layer(x, ends, harmonics, radial)
        per_atom = self.readout(x).view(frames, atoms) + self.shift
        return per_atom.sum(1)
