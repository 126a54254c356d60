"""A model of a family with everything that is needed to run it and to act on it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.plan import Plan
from surgeon.support.modes import default_dtype
from surgeon.testing.soundness import Model, check_plan


@dataclass(frozen=True)
class FamilyCase:
    """One model: ``forward(model, batch)``, ``act(g, batch)`` and ``act_output(g, outputs)``; float64."""

    name: str
    module: nn.Module
    batch: Any
    forward: Callable[[nn.Module, Any], Any]
    act: Callable[[Tensor, Any], Any]
    act_output: Callable[[Tensor, Any], Any]
    group: str

    def find(self, **options: Any) -> Plan:
        """Plan by annotation and measurement; ``adapters={}`` for measurement alone."""
        return surgeon.find(
            self.module,
            self.group,
            self.batch,
            forward=self.forward,
            act=self.act,
            act_output=self.act_output,
            **options,
        )

    def annotated(self) -> Plan:
        """Plan by annotation alone."""
        return surgeon.find(self.module, self.group, self.batch, forward=self.forward)

    def model(self) -> Model:
        """What the soundness check takes."""
        symmetry = Symmetry(parse_group(self.group), self.act, self.act_output, self.forward)
        return Model(self.module, (self.batch,), symmetry)

    def check(self, plan: Plan) -> None:
        """Check a plan on the model."""
        check_plan(self.model(), plan)


def double() -> AbstractContextManager[None]:
    """Build models in float64."""
    return default_dtype(torch.float64)


def keys(plan: Plan) -> set[str]:
    """Names and arguments of a plan's sites."""
    return {site.key for site in plan.sites}


def all_pairs(counts: list[int]) -> Tensor:
    """Edges (2, e) between all different nodes of each graph of a batch."""
    edges, first = [], 0
    for count in counts:
        edges += [(first + i, first + j) for i in range(count) for j in range(count) if i != j]
        first += count
    return torch.tensor(edges).T.contiguous()
