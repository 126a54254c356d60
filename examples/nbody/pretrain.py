"""Train the shipped checkpoint ``segnn_nbody.safetensors`` at interaction strength 1; measure it on fresh samples."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import e3nn
import numpy as np
import torch
from segnn import SEGNN
from simulate import Pairs, dataset
from task import CONFIG
from torch import Tensor
from torch.nn import functional

STRENGTH = 1.0
# Far from the seeds of the fine-tuning task, which are (data_seed, index of the split).
TRAIN_SEED = (20240, 0)
TEST_SEED = (20240, 1)
PROGRESS_EVERY = 500


@dataclass(frozen=True)
class Settings:
    """Settings of the pretraining; the defaults are those of the shipped checkpoint.

    Attributes:
        steps: optimiser steps.
        samples: training trajectories.
        test_samples: test trajectories.
        batch_size: trajectories per step.
        learning_rate: peak, reached after the warm-up; it then falls to 0 along a cosine.
        warmup: steps of linear rise.
        clip: largest gradient norm; close encounters give rare, huge gradients.
        seed: seed of the weights and of the batches.
    """

    steps: int = 8_000
    samples: int = 20_000
    test_samples: int = 5_000
    batch_size: int = 100
    learning_rate: float = 5e-3
    warmup: int = 200
    clip: float = 0.1
    seed: int = 0


def tensors(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return positions, velocities, charges and targets as float32 tensors."""
    arrays = (pairs.positions, pairs.velocities, pairs.charges, pairs.targets)
    first, second, third, fourth = (torch.tensor(array, dtype=torch.float32) for array in arrays)
    return first, second, third, fourth


def learning_rate(step: int, settings: Settings) -> float:
    """Return the learning rate of a step: a linear rise, then a cosine down to 0."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(settings.steps - settings.warmup, 1)
    return settings.learning_rate * (1 + math.cos(math.pi * progress)) / 2


def endless_batches(settings: Settings) -> Iterator[Tensor]:
    """Yield the rows of one batch after another, in a new order each epoch."""
    while True:
        yield from torch.split(torch.randperm(settings.samples), settings.batch_size)


def train(settings: Settings) -> SEGNN:
    """Train a network from fresh weights and print the mean loss now and then."""
    torch.manual_seed(settings.seed)
    model = SEGNN(CONFIG)
    data = tensors(dataset(settings.samples, TRAIN_SEED, STRENGTH))
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    batches = endless_batches(settings)
    total, started = 0.0, time.perf_counter()
    for step in range(settings.steps):
        rows = next(batches)
        *inputs, targets = (values[rows] for values in data)
        optimizer.param_groups[0]["lr"] = learning_rate(step, settings)
        optimizer.zero_grad()
        loss = functional.mse_loss(model(*inputs), targets)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        total += loss.item()
        if (step + 1) % PROGRESS_EVERY == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1}: mean loss {total / PROGRESS_EVERY:.5f}, {seconds:.0f} s", flush=True)
            total = 0.0
    return model


def sample_errors(predicted: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error of each trajectory, shape (b,), float64."""
    return (predicted - targets).double().square().mean(dim=(1, 2))


def summary(errors: Tensor) -> dict[str, float]:
    """Return mean, standard error of the mean, and median over trajectories."""
    return {
        "mean": float(errors.mean()),
        "standard_error": float(errors.std()) / math.sqrt(len(errors)),
        "median": float(errors.median()),
    }


def evaluate(model: SEGNN, count: int) -> dict[str, dict[str, float]]:
    """Return the MSE on fresh samples of the network, of constant velocity and of no motion."""
    positions, velocities, charges, targets = tensors(dataset(count, TEST_SEED, STRENGTH))
    with torch.no_grad():
        rows = torch.split(torch.arange(count), 500)
        predicted = torch.cat([model(positions[part], velocities[part], charges[part]) for part in rows])
    # Frames 30 and 40 are 1.0 time units apart.
    guesses = {"segnn": predicted, "constant velocity": positions + velocities, "no motion": positions}
    return {name: summary(sample_errors(guess, targets)) for name, guess in guesses.items()}


def record(settings: Settings, scores: dict[str, dict[str, float]], seconds: float) -> dict[str, Any]:
    """Return what is written beside the checkpoint: how it was made, on what, and how good it is."""
    changed = {name: value for name, value in asdict(settings).items() if value != getattr(Settings(), name)}
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in changed.items())
    return {
        "model": asdict(CONFIG),
        "settings": asdict(settings),
        "strength": STRENGTH,
        "train_seed": TRAIN_SEED,
        "test_seed": TEST_SEED,
        "test_mse": scores,
        "command": f"python pretrain.py{flags}",
        "seconds": round(seconds),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} used",
        "versions": {"torch": torch.__version__, "e3nn": e3nn.__version__, "numpy": np.__version__},
    }


def parse() -> tuple[Settings, Path]:
    """Read the settings and the folder to write to from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder to write to")
    options = vars(parser.parse_args())
    output: Path = options.pop("output")
    return replace(Settings(), **options), output


def main() -> None:
    """Command line: train, measure, write the checkpoint and its record."""
    from safetensors.torch import save_file

    settings, output = parse()
    torch.set_num_threads(1)
    started = time.perf_counter()
    model = train(settings).eval()
    scores = evaluate(model, settings.test_samples)
    print(json.dumps(scores, indent=2))
    output.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), output / "segnn_nbody.safetensors")
    text = json.dumps(record(settings, scores, time.perf_counter() - started), indent=2)
    (output / "segnn_nbody.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
