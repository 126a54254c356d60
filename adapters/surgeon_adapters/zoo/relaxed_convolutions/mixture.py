"""What relaxed convolutions over any group have in common: filters that are mixtures of banks, layers in a row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class MixtureConv2d(nn.Module):
    """Convolution whose filters depend on a group element by a few mixture weights: ``sum_l w_l(g) psi_l``.

    With all ``w_l`` constant over the group the layer is as equivariant as its group allows.

    Args:
        banks: shape of ``weights``: (banks, ..., k, k).
        elements: number of group elements.
        summed: number of channels that one output channel sums over.

    Attributes:
        weights: the filter banks psi_l.
        combination_weights: w_l(g), shape (elements, banks).
    """

    def __init__(self, banks: Sequence[int], elements: int, summed: int) -> None:
        super().__init__()
        bound = (banks[0] / (summed * banks[-1] ** 2)) ** 0.5
        self.weights = nn.Parameter(torch.empty(*banks).uniform_(-bound, bound))
        self.combination_weights = nn.Parameter(torch.full((elements, banks[0]), 1 / banks[0]))

    def mixed(self) -> Tensor:
        """Return the mixture of each group element: shape (elements, ..., k, k)."""
        return torch.einsum("gl,l...->g...", self.combination_weights, self.weights)

    def symmetrised(self) -> dict[str, Tensor]:
        """Return the parameters that make the layer exactly equivariant: mixture weights averaged over the group."""
        mean = self.combination_weights.detach().mean(0, keepdim=True)
        return {"combination_weights": mean.expand_as(self.combination_weights).clone()}


def through(layers: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Apply layers one after the other, with ReLU between them."""
    for number, layer in enumerate(layers):
        x = layer(x if number == 0 else functional.relu(x))
    return x


def banks_of(tensors: Mapping[str, Tensor], layers: str) -> list[Tensor]:
    """Return the filter banks of all layers in a state dict, in order; none if it is that of another model."""
    keys = [f"{layers}.{number}.weights" for number in range(len(tensors))]
    banks = [tensors[key] for key in keys if key in tensors]
    fits = f"{layers}.0.combination_weights" in tensors and all(bank.ndim == 6 for bank in banks)
    return banks if fits and len(banks) > 1 else []


def same_shapes(net: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has exactly the keys and shapes of a network."""
    own, given = ({key: value.shape for key, value in each.items()} for each in (net.state_dict(), tensors))
    return own == given
