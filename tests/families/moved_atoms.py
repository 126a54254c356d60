"""What moves the atoms of a batch has to change the energy by the work of the forces, neighbours' vectors included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SMALL = 3e-3
"""Displacements in A: far above rounding, and the second order is far below the first."""


def require_work_of_the_forces(task: Any, model: nn.Module) -> None:
    """Move atoms by noise as replay does; then take outputs for labels, by which only other outputs are wrong."""
    batch, model = next(iter(task.batches("train", 0))), model.eval()
    generator, moves = torch.Generator().manual_seed(0), []

    def noise(like: Tensor) -> Tensor:
        moves.append(SMALL * torch.randn(like.shape, generator=generator, dtype=torch.float64))
        return moves[-1].to(like)

    before = task.forward(model, batch)
    moved = task.perturbed(batch, noise)
    after = task.forward(model, moved)
    frames = batch["batch"].long()
    work = torch.zeros(len(batch["num_atoms"]) if "num_atoms" in batch else int(frames.max()) + 1, dtype=torch.float64)
    work.index_add_(0, frames, -(before["forces"].detach().double() * moves[0]).sum(1))
    change = (after["energy"] - before["energy"]).detach().double().reshape(-1)
    assert float(work.abs().max()) > 1e-5
    assert float((change - work).abs().max()) < 0.1 * float(work.abs().max())
    assert float(task.loss(before, task.relabelled(batch, before)).detach()) == 0.0
    assert float(task.loss(after, task.relabelled(batch, before)).detach()) > 0.0
