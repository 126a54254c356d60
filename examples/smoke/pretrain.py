"""Train the shipped checkpoints: ``relaxed_rotation``, ``relaxed_scale``, and, if escnn is installed, ``steerable``."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file
from steerable import SteerableNet
from task import SmokeTask, make_task
from torch import nn

from surgeon.opening.evaluation import evaluate
from surgeon_adapters.zoo.relaxed_convolutions.rotation import RelaxedRotationNet
from surgeon_adapters.zoo.relaxed_convolutions.scale import RelaxedScaleNet

FOLDER = Path(__file__).parent
NAMES = ("relaxed_rotation", "relaxed_scale", "steerable")
WEAK = "1_"
"""Experiments whose names begin so are for pretraining: the weaker of two buoyancies."""


def network(name: str, task: SmokeTask) -> nn.Module:
    """Return a network with fresh weights, exactly equivariant."""
    if name == "steerable":
        return SteerableNet(task.inputs)
    if name == "relaxed_scale":
        return RelaxedScaleNet(task.inputs, hidden=4, layers=3, scales=3, filter_banks=2)
    return RelaxedRotationNet(task.inputs, hidden=6, layers=3, filter_banks=2)


def train(name: str, epochs: int, learning_rate: float, seed: int = 0) -> nn.Module:
    """Train with Adam, whose learning rate falls to 0 along a cosine; print the test error before and after."""
    torch.manual_seed(seed)
    task = make_task("scale" if name == "relaxed_scale" else "rotation", experiments=WEAK)
    net = network(name, task)
    optimiser = torch.optim.Adam(net.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    print(f"{name}, fresh weights: {evaluate(net, task, 'test')}")
    net.train()
    for epoch in range(epochs):
        for batch in task.batches("train", seed=epoch):
            optimiser.zero_grad()
            task.loss(task.forward(net, batch), batch).backward()
            optimiser.step()
        schedule.step()
    print(f"{name}, trained: {evaluate(net, task, 'test')}")
    return net.train()


def main() -> None:
    """Write the checkpoints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES[:2], metavar="NAME", help=f"out of {', '.join(NAMES)}")
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    given = parser.parse_args()
    if set(given.names) - set(NAMES):
        parser.error(f"expected names out of {', '.join(NAMES)}, got {' '.join(given.names)}")
    for name in given.names:
        net = train(name, given.epochs, given.learning_rate)
        state = {key: tensor.contiguous() for key, tensor in net.state_dict().items()}
        save_file(state, given.output / f"{name}.safetensors")


if __name__ == "__main__":
    main()
