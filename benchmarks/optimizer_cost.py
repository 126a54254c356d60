"""What SOAP and Muon cost beside AdamW: time of a training step, state, peak memory, and finding the matrices.

Steps of all optimisers are timed in turn on one model and one batch (forward, backward, optimiser), so that other work
on the machine disturbs all alike; peak memory is that of a process that makes a few steps and nothing else; finding the
matrices is compared with planning, in seconds of the processor. One thread::

    python benchmarks/optimizer_cost.py potential
    .venv-sevennet/bin/python benchmarks/optimizer_cost.py sevennet --checkpoint checkpoint_sevennet_0.pth
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from insertion import peak_mebibytes
from torch import nn

from surgeon.opening.evaluation import fitted
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.relaxing import relax_checkpoint
from surgeon.opening.task_calls import task_batches, task_forward, task_loss
from surgeon.optim.adam import MatrixOptimizer
from surgeon.optim.blocks import find_blocks
from surgeon.support.versions import machine, versions
from surgeon.training.optimizers import make_optimizer
from surgeon.training.settings import FinetuneSettings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "optimizer_cost.json"
OPTIMIZERS = ("adamw", "soap", "muon")
TASKS = {
    "potential": str(ROOT / "examples" / "potential" / "task.py"),
    "sevennet": f"sevennet:{ROOT / 'examples' / 'molecules' / 'ethanol_gfn2.xyz'}",
}
POTENTIAL = ROOT / "examples" / "potential" / "potential.safetensors"
REFRESH = 10
"""SOAP refreshes its bases every so many steps: a whole number of such turns is timed."""


def opened(family: str, checkpoint: str) -> tuple[nn.Module, Any, Any]:
    """Return the network, its task and a training batch of five frames."""
    options = OpenOptions(task=TASKS[family], task_arguments={"batch_size": 5}, trust_pickle=True)
    workspace = open_path(checkpoint, options)
    task = workspace.require_task().task
    model = workspace.model.train().requires_grad_(True)
    return model, task, fitted(next(iter(task_batches(task, "train", 0))), model)


def optimizer_of(name: str, model: nn.Module) -> torch.optim.Optimizer:
    """Return an optimiser whose steps change next to nothing."""
    found = make_optimizer([{"params": list(model.parameters())}], FinetuneSettings(optimizer=name, learning_rate=1e-9))
    if isinstance(found, MatrixOptimizer):
        found.use_blocks(find_blocks(model))
    return found


def backward(model: nn.Module, task: Any, batch: Any) -> None:
    """Compute the gradients of one batch."""
    model.zero_grad()
    task_loss(task, task_forward(task, model, batch), batch).backward()


def one(family: str, checkpoint: str, name: str, steps: int) -> dict[str, Any]:
    """Return state and peak memory of a process that makes a few steps with one optimiser."""
    model, task, batch = opened(family, checkpoint)
    optimizer = optimizer_of(name, model)
    for _ in range(steps):
        backward(model, task, batch)
        optimizer.step()
    kept = [each for state in optimizer.state.values() for each in state.values()]
    tensors = [each for entry in kept for each in (entry if isinstance(entry, list | tuple) else (entry,))]
    held = sum(each.numel() for each in tensors if isinstance(each, torch.Tensor))
    own = sum(parameter.numel() for parameter in model.parameters())
    return {"peak_mib": peak_mebibytes(), "state_times_parameters": held / own}


def timed(family: str, checkpoint: str, turns: int) -> dict[str, Any]:
    """Return what a step takes with each optimiser, and what finding the matrices takes beside planning."""
    model, task, batch = opened(family, checkpoint)
    began = time.process_time()
    find_blocks(model)
    finding = time.process_time() - began
    optimizers = {name: optimizer_of(name, model) for name in OPTIMIZERS}
    shared: list[float] = []
    own: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for _ in range(turns * REFRESH):
        began = time.process_time()
        backward(model, task, batch)
        shared.append(time.process_time() - began)
        for name, optimizer in optimizers.items():
            began = time.process_time()
            optimizer.step()
            own[name].append(time.process_time() - began)
    # The first turn prepares what later ones only renew. A turn counts as a whole: its last step is the dear one.
    gradient = statistics.median(shared[REFRESH:])
    costs = {name: statistics.fmean(seconds[REFRESH:]) for name, seconds in own.items()}
    began = time.process_time()
    options = OpenOptions(task=TASKS[family], task_arguments={"batch_size": 5}, trust_pickle=True)
    relax_checkpoint(checkpoint, None, options=options)
    planning = time.process_time() - began
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "gradient_s": gradient,
        "step_s": {name: gradient + cost for name, cost in costs.items()},
        "step_beside_adamw": {name: (gradient + cost) / (gradient + costs["adamw"]) for name, cost in costs.items()},
        "finding_matrices_s": finding,
        "relax_s": planning,
        "finding_share_of_relax": finding / planning,
    }


def main() -> None:
    """Measure one family, and put it into the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=TASKS)
    parser.add_argument("--checkpoint", default=str(POTENTIAL))
    parser.add_argument("--turns", type=int, default=4, help="of ten steps each, besides the first")
    parser.add_argument("--one", choices=OPTIMIZERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(one(given.family, given.checkpoint, given.one, REFRESH + 2)))
        return
    found = timed(given.family, given.checkpoint, given.turns + 1)
    for name in OPTIMIZERS:
        command = [sys.executable, __file__, given.family, "--checkpoint", given.checkpoint, "--one", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found.setdefault("memory", {})[name] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=2))
    record = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    record[given.family] = {
        "command": f"python benchmarks/optimizer_cost.py {given.family}",
        "machine": machine(),
        "versions": versions(),
        **found,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
