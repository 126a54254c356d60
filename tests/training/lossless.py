"""A trainer in two processes, one of which has a step without a loss: a program for tests."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from surgeon.finding.find import find
from surgeon.integrations.session import TrainerSession
from surgeon.integrations.settings import RelaxationSettings
from tests.training.heads import Heads


def main(arguments: list[str]) -> None:
    """Write how large the gradients of the penalty are that one of the processes gets to ``RANK.pt``."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    network = Heads()
    batch = (torch.randn(5, 6), "both")
    settings = RelaxationSettings(plan=find(network, "O3", batch), module="0", dense=True)
    session = TrainerSession(nn.Sequential(network).train(), settings, lambda: None, lambda model, batch: model(batch))
    for branch in session.relaxation.branches.values():
        branch.initialise(1.0, torch.Generator().manual_seed(0))
    found = []
    for step in range(2):
        session.set_step(step, 2)
        outputs = network(batch)
        if step or not rank:
            session.add_loss(outputs.square().mean())
        session.finish_step()
        gradients = [branch.weight.grad for branch in session.relaxation.branches.values()]
        found.append(sum(float(each.abs().sum()) for each in gradients if each is not None))
    torch.save(found, Path(f"{rank}.pt"))
    torch.distributed.destroy_process_group()
