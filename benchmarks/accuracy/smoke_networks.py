"""Networks that table E sets beside the approximately equivariant ones: without symmetry, with all of it, and between.

A residual pathway (Finzi, Benton and Wilson, 2021) adds to every equivariant layer a convolution without symmetry,
whose weights are drawn to 0 by a Gaussian prior.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from surgeon_adapters.zoo.relaxed_convolutions.mixture import MixtureConv2d, through
from surgeon_adapters.zoo.relaxed_convolutions.rotation import RelaxedRotationNet
from surgeon_adapters.zoo.relaxed_convolutions.scale import RelaxedScaleNet

Approximate = RelaxedRotationNet | RelaxedScaleNet
RELAXED: Mapping[str, type[Approximate]] = {"rotation": RelaxedRotationNet, "scale": RelaxedScaleNet}
KERNELS = {"rotation": 3, "scale": 5}
"""Sides of the kernels without symmetry; those of relaxed scale convolutions are dilated."""


def approximate(variant: str, inputs: int, hidden: int, layers: int) -> Approximate:
    """Build the network in which the mixture of two banks of filters depends on the rotation or scale."""
    return RELAXED[variant](inputs, hidden=hidden, layers=layers)


def equivariant(variant: str, inputs: int, hidden: int, layers: int) -> Approximate:
    """Build the same with one bank, in equal parts for all elements of the group."""
    network = RELAXED[variant](inputs, hidden=hidden, layers=layers, filter_banks=1)
    for layer in network.modules():
        if isinstance(layer, MixtureConv2d):
            layer.combination_weights.requires_grad_(False)
    return network


class Convolutions(nn.Module):
    """Convolutions without symmetry, ReLU between them; about as many weights as approximately equivariant ones."""

    def __init__(self, variant: str, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        wanted = count(approximate(variant, inputs, hidden, layers))
        stacks = (_stack([2 * inputs, *[width] * (layers - 1), 2], KERNELS[variant]) for width in range(1, 100))
        self.conv = min(stacks, key=lambda stack: abs(count(stack) - wanted))

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, 2, h, w) of (b, 2 inputs, h, w)."""
        return through(self.conv, x)


class ResidualPathways(nn.Module):
    """The sum of an equivariant layer and a convolution, layer by layer.

    Args:
        strength: of the prior, ``strength / 2 |w|^2`` for all w of the convolutions, in units of the loss.
    """

    def __init__(self, variant: str, inputs: int, hidden: int, layers: int, *, strength: float) -> None:
        super().__init__()
        network = equivariant(variant, inputs, hidden, layers)
        self.symmetric = network.rconv if isinstance(network, RelaxedRotationNet) else network.sconv
        kernels = [layer.kernel() for layer in self.symmetric]
        self.free = _stack([kernels[0].shape[1], *(len(kernel) for kernel in kernels)], KERNELS[variant])
        for weight in self.free.parameters():
            weight.register_hook(partial(_with_prior, weight, strength))

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, 2, h, w) of (b, 2 inputs, h, w)."""
        for number, (symmetric, free) in enumerate(zip(self.symmetric, self.free, strict=True)):
            x = functional.relu(x) if number else x
            x = symmetric(x) + free(x)
        return x


def _with_prior(weight: Tensor, strength: float, gradient: Tensor) -> Tensor:
    return gradient + strength * weight.detach()


def _stack(widths: list[int], kernel: int) -> nn.ModuleList:
    pairs = zip(widths, widths[1:], strict=False)
    return nn.ModuleList(nn.Conv2d(*pair, kernel, padding=kernel // 2) for pair in pairs)


def count(network: nn.Module) -> int:
    """Return how many weights are trained."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


BESIDE: Mapping[str, Callable[[str, int, int, int], nn.Module]] = {
    "convolutions without symmetry": Convolutions,
    "exactly equivariant": equivariant,
    "residual pathways, prior 1e-5": partial(ResidualPathways, strength=1e-5),
    "residual pathways, prior 1e-3": partial(ResidualPathways, strength=1e-3),
}
