"""Train the shipped checkpoints ``relaxed_rotation.safetensors`` and ``relaxed_scale.safetensors``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from task import VARIANTS, SmokeTask, make_task
from torch import nn

from surgeon.evaluation import evaluate
from surgeon_adapters.relaxed_conv import RelaxedRotationNet, RelaxedScaleNet

FOLDER = Path(__file__).parent
WEAK = "1_"
"""Experiments whose names begin so are for pretraining: the weaker of two buoyancies."""


def network(variant: str, task: SmokeTask) -> nn.Module:
    """Return a network with fresh weights, exactly equivariant."""
    if variant == "scale":
        return RelaxedScaleNet(task.inputs, hidden=4, layers=3, scales=3, filter_banks=2)
    return RelaxedRotationNet(task.inputs, hidden=6, layers=3, filter_banks=2)


def train(variant: str, epochs: int, learning_rate: float, seed: int = 0) -> nn.Module:
    """Train with Adam, whose learning rate falls to 0 along a cosine; print the test error before and after."""
    torch.manual_seed(seed)
    task = make_task(variant, experiments=WEAK)
    net = network(variant, task)
    optimiser = torch.optim.Adam(net.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    print(f"{variant}, fresh weights: {evaluate(net, task, 'test')}")
    for epoch in range(epochs):
        for batch in task.batches("train", seed=epoch):
            optimiser.zero_grad()
            task.loss(task.forward(net, batch), batch).backward()
            optimiser.step()
        schedule.step()
    print(f"{variant}, trained: {evaluate(net, task, 'test')}")
    return net


def main() -> None:
    """Write both checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    given = parser.parse_args()
    for variant in VARIANTS:
        net = train(variant, given.epochs, given.learning_rate)
        save_file(net.state_dict(), given.output / f"relaxed_{variant}.safetensors")


if __name__ == "__main__":
    main()
