"""Tensors in all the runs of a probe, made by hand: what a model would give under every element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference.probe import Elements, TensorProbe


def elements_of(group: str) -> Elements:
    return Elements.draw(parse_group(group), torch.Generator().manual_seed(0))


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def probe_of(elements: Elements, base: Tensor, moved: Callable[[Tensor, Tensor], Tensor]) -> TensorProbe:
    """Move ``base`` by ``moved(g, base)`` under every element but the first, which is the identity."""
    return TensorProbe(elements, (base, *(moved(g, base) for g in elements.all()[1:])))


def probe_as(kind: TensorType | Representation, *shape: int) -> TensorProbe:
    """Random values that transform as ``kind`` says."""
    typed = kind if isinstance(kind, TensorType) else TensorType(kind)
    return probe_of(elements_of(typed.rho.group.name), random(*shape), typed.act)
