"""What a catalogue entry consists of, and the ingredients that most of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group

POINTS, CHANNELS = 7, 4


@dataclass(frozen=True)
class Case:
    """An awkward model and what has to come out.

    Attributes:
        name: of the test.
        trap: what makes it awkward.
        build: returns the module.
        sites: keys of the sites that have to be found, all of them.
        group: the symmetry group.
        inputs: arguments of the forward.
        act: ``act(g, *inputs)``.
        act_output: ``act_output(g, outputs)``.
        audit: parameter name to the class that the audit has to give it.
        reason: parameter name to a pattern of the reason.
        error: pattern of the error, if nothing can be found.
        sound: whether the plan is exercised on the model too.
        twin: whether this is another case with something broken, in which no weights may make more a site.
    """

    name: str
    trap: str
    build: Callable[[], nn.Module]
    sites: set[str] = field(default_factory=set)
    group: str = "SO3"
    inputs: Callable[[], tuple[Any, ...]] = lambda: (vectors(),)
    act: Callable[..., Any] = lambda g, x: x @ g.T
    act_output: Callable[[Tensor, Any], Any] = lambda g, y: y
    audit: Mapping[str, str] = field(default_factory=dict)
    reason: Mapping[str, str] = field(default_factory=dict)
    error: str = ""
    sound: bool = True
    twin: bool = False

    @property
    def symmetry(self) -> Symmetry:
        """The group and its actions."""
        return Symmetry(parse_group(self.group), self.act, self.act_output)


def vectors(points: int = POINTS, channels: int = CHANNELS, seed: int = 0) -> Tensor:
    """Random vectors, shape (points, channels, 3), float64."""
    return torch.randn(points, channels, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Mix(nn.Module):
    """Mix the channels of vectors (n, c, 3)."""

    def __init__(self, channels_in: int = CHANNELS, channels_out: int = CHANNELS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,ncv->nov", self.weight, x)


def gated(x: Tensor) -> Tensor:
    """An equivariant non-linearity."""
    return x * torch.tanh(x.square().sum(-1, keepdim=True))


class Trunk(nn.Module):
    """Vectors in, an invariant per point out; ``middle`` is what is awkward."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.middle = middle
        self.head = nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(gated(x)).square().sum(-1))
