"""A network with two heads whose batches use one or the other, in processes of one group: a program for tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from surgeon.algebra.penalty_settings import PenaltyForm
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import PenaltySettings, Relaxation
from surgeon.finding.find import find

Batch = tuple[Tensor, str]


class Heads(nn.Module):
    """Vectors in, one vector out, by a trunk and the head that the batch names; "both" is the sum of the two."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = o3.Linear("2x1o", "4x1o")
        self.left, self.right = o3.Linear("4x1o", "1x1o"), o3.Linear("4x1o", "1x1o")

    def forward(self, batch: Batch) -> Tensor:
        vectors, head = batch
        features = self.trunk(vectors)
        chosen = [layer for name, layer in (("left", self.left), ("right", self.right)) if head in (name, "both")]
        result: Tensor = sum(layer(features) for layer in chosen)  # type: ignore[assignment]
        return result


class HeadsTask:
    """Batches of different sizes by turns for one head and the other, so that each of two processes keeps to one."""

    def batches(self, split: str, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(len(split) + 100 * seed)
        for number in range(8):
            yield torch.randn(3 + number, 6, generator=generator), ("left", "right")[number % 2]

    def model(self) -> nn.Module:
        return Heads()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - batch[0][:, :3].abs()).square().mean()

    def act(self, g: Tensor, batch: Batch) -> Batch:
        return (batch[0].unflatten(1, (2, 3)) @ g.to(batch[0]).T).flatten(1), batch[1]

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return outputs @ g.to(outputs).T


task = HeadsTask()


def make_net() -> nn.Module:
    return Heads()


def relaxed(form: PenaltyForm, every: int = 1) -> Relaxation:
    """A relaxed network with W other than 0, equal in every process."""
    torch.manual_seed(0)
    net = Heads().double()
    plan = find(net, "O3", (torch.randn(5, 6, dtype=torch.float64), "both"))
    relaxation = relax(net, plan, dense=True)
    for branch in relaxation.branches.values():
        branch.initialise(1.0, torch.Generator().manual_seed(3))
    relaxation.set_theta(0.5)
    relaxation.set_penalty(PenaltySettings(form, rows=None, every=every))
    net.train()
    return relaxation


def steps(rounds: int) -> list[list[Batch]]:
    """The batches of both processes at every step: one never sees the right head, the last step nobody does."""
    generator = torch.Generator().manual_seed(5)
    heads = [("left", "right"), ("left", "right"), ("left", "left")][:rounds]
    return [
        [
            (torch.randn(4 + 3 * rank, 6, generator=generator, dtype=torch.float64), head)
            for rank, head in enumerate(pair)
        ]
        for pair in heads
    ]


def penalties(relaxation: Relaxation, batches: Sequence[Sequence[Batch]]) -> list[dict[str, Any]]:
    """Value, terms and gradients of the penalty at every step."""
    found = []
    for of_step in batches:
        for batch in of_step:
            relaxation.model(batch)
        penalty = relaxation.penalty(may_be_empty=True)
        parameters = relaxation.branch_parameters()
        gradients = torch.autograd.grad(penalty, parameters, allow_unused=True)
        terms = {key: torch.stack(pair) for key, pair in relaxation.penalty_terms().items()}
        found.append({"value": penalty.detach(), "terms": terms, "gradients": gradients})
    return found


def main(arguments: list[str]) -> None:
    """Write what one of two processes gets to ``RANK.pt``."""
    form, every = arguments
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    own = [of_step[rank : rank + 1] for of_step in steps(3)]
    torch.save(penalties(relaxed(form, int(every)), own), Path(f"{rank}.pt"))  # type: ignore[arg-type]
    torch.distributed.destroy_process_group()
