"""What has to hold on a GPU, in one script of a few minutes: devices, half precision, DDP, resuming, cost, memory.

Each part says whether it holds and what it measured; what a network or a GPU cannot do says why. ``--device cpu`` runs
the same small, which shows that the script works and nothing about a GPU::

    python benchmarks/gpu_check.py --record
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import surgeon
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import SurgeonError
from surgeon.opening.evaluation import evaluate
from surgeon.support.imports import one_line
from surgeon.support.versions import machine, versions
from surgeon_adapters.zoo.segnn.network import SEGNN, SegnnSettings
from surgeon_adapters.zoo.segnn.particles import graph_of

RESULTS = Path(__file__).parent / "results" / "gpu_check.json"
AGREES = 1e-4
"""Largest relative difference between float32 losses on two devices, and between weights of two trainings."""
LONGEST = 150
"""Seconds that a training in a process of its own may take: the whole script ends within eight minutes."""


@dataclass(frozen=True)
class Size:
    """How large networks and batches are, and how many steps are timed."""

    hidden: int
    layers: int
    graphs: int
    steps: int


SIZES = {"cpu": Size(4, 2, 8, 5), "cuda": Size(64, 4, 100, 40)}
PARTICLES = 5


class Task:
    """Charged particles at random places, and where they would be without forces."""

    primary_metric = "mse"

    def __init__(self, device: str) -> None:
        self.size = SIZES[device]

    def model(self) -> nn.Module:
        """Build a SEGNN."""
        attributes, hidden = "1x0e+1x1o", f"{self.size.hidden}x0e+{self.size.hidden}x1o"
        return SEGNN(SegnnSettings("2x1o+1x0e", hidden, "1x1o", attributes, attributes, self.size.layers, "2x0e"))

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield four batches."""
        generator = torch.Generator().manual_seed(seed + len(split))
        for _ in range(4):
            places, speeds = torch.randn(2, self.size.graphs, PARTICLES, 3, generator=generator)
            charges = torch.randn(self.size.graphs, PARTICLES, generator=generator).sign()
            yield {"places": places, "speeds": speeds, "charges": charges, "target": (places + speeds).flatten(0, 1)}

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
        """Return a vector for every particle."""
        return model(**graph_of(batch["places"], batch["speeds"], batch["charges"], (1, 1), "integral"))

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared error."""
        return (outputs - batch["target"]).square().mean()

    def metrics(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Return the sum of squared errors, and their number."""
        return {"mse": (float((outputs - batch["target"]).square().sum()), outputs.numel())}

    def act(self, g: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rotate places, speeds and targets."""
        turned = {name: batch[name] @ g.to(batch[name]).T for name in ("places", "speeds", "target")}
        return {**batch, **turned}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Rotate the outputs."""
        return outputs @ g.to(outputs).T


def make_task(device: str) -> Task:
    """Return the task: this file is a task file, too."""
    return Task(device)


def relaxed(device: str, size: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Relaxation, Task, Any]:
    """Return a network with branches on a device, its task, and a batch there."""
    torch.manual_seed(0)
    task = Task(size)
    model = task.model().to(device, dtype)
    batch = {name: value.to(device, dtype) for name, value in next(task.batches("train", 0)).items()}
    relaxation = surgeon.relax(model, surgeon.find(model, "O3", batch, forward=task.forward), mode="fold")
    relaxation.set_progress(0.5)
    return model, relaxation, task, batch


def step(model: nn.Module, task: Task, batch: dict[str, Tensor], relaxation: Relaxation | None) -> Tensor:
    """Return the loss of one training step, gradients included."""
    model.zero_grad()
    loss = task.loss(task.forward(model, batch), batch)
    total = loss if relaxation is None else loss + relaxation.penalty()
    total.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def devices(device: str) -> dict[str, Any]:
    """Find, relax, train, evaluate and strip there, and compare with the CPU."""
    losses = {}
    for place in dict.fromkeys(("cpu", device)):
        model, relaxation, task, batch = relaxed(place, device)
        losses[place] = float(step(model, task, batch, relaxation))
        elsewhere = {str(tensor.device.type) for tensor in (*model.parameters(), *model.buffers())} - {place}
        with relaxation.clean():
            evaluate(model, task, "validation")
        surgeon.strip(relaxation, "fold")
        step(model, task, batch, None)
    difference = abs(losses[device] - losses["cpu"]) / abs(losses["cpu"])
    return {"holds": difference < AGREES and not elsewhere, "relative difference of the loss": difference}


def halves(device: str) -> dict[str, Any]:
    """Make a step with weights in bfloat16, which has to be finite if the network's own is, and one in float16."""
    found: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16):
        try:
            model, relaxation, task, batch = relaxed(device, device, dtype)
            whole = _finite(model, step(model, task, batch, relaxation))
            surgeon.strip(relaxation, "drop")
            alone = _finite(model, step(model, task, batch, None))
        except (RuntimeError, SurgeonError) as error:
            found[str(dtype)] = f"not possible: {one_line(error)}"
            continue
        found[str(dtype)] = "finite" if whole else "not finite" if not alone else "finite without branches only"
    return {"holds": not found["torch.bfloat16"].endswith("only"), **found}


def _finite(model: nn.Module, loss: Tensor) -> bool:
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return all(bool(each.isfinite().all()) for each in (loss, *gradients))


def cost(device: str) -> dict[str, Any]:
    """Time steps without branches, with them, and with the penalty; on a GPU, their largest memory, too."""
    model, relaxation, task, batch = relaxed(device, device)
    found = {"branches and penalty": _measured(device, lambda: step(model, task, batch, relaxation))}
    relaxation.enable_penalty(False)
    found["branches"] = _measured(device, lambda: step(model, task, batch, None))
    surgeon.strip(relaxation, "drop")
    found["plain"] = _measured(device, lambda: step(model, task, batch, None))
    return {"holds": True, **found}


def _measured(device: str, run: Callable[[], Any]) -> dict[str, float]:
    """Return milliseconds of a step (median of all but three), and MiB at its peak."""
    times = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3 + SIZES[device].steps):
        begun = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begun))
    peak = {"peak MiB": round(torch.cuda.max_memory_allocated() / 2**20, 1)} if device == "cuda" else {}
    return {"ms": round(statistics.median(times[3:]), 2), **peak}


def train(folder: str, name: str, until: str) -> None:
    """Train to an epoch in this process; the same call with a later one goes on."""
    settings = surgeon.FinetuneSettings(epochs=2)
    surgeon.finetune(Path(folder, "relaxed"), Path(folder, name), settings, until=int(until))


def trained(device: str, folder: Path, name: str, until: int = 2, launcher: Sequence[str] = ()) -> None:
    """Train in a process of its own, if need be as torchrun starts it."""
    command = [sys.executable, *launcher, str(Path(__file__).resolve()), "--train", str(folder), name, str(until)]
    environment = {**os.environ, **({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {})}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=LONGEST)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])


def runs(device: str) -> dict[str, Any]:
    """Train in one piece, paused and resumed, and in DDP with one process; compare the weights."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        torch.save(Task(device).model().state_dict(), folder / "net.pt")
        options = surgeon.OpenOptions(task=str(Path(__file__).resolve()), task_arguments={"device": device})
        surgeon.relax_checkpoint(
            folder / "net.pt", folder / "relaxed", surgeon.RelaxSettings(group="O3"), options=options
        )
        trained(device, folder, "whole")
        trained(device, folder, "resumed", until=1)
        trained(device, folder, "resumed")
        trained(device, folder, "ddp", launcher=("-m", "torch.distributed.run", "--standalone"))
        found = {name: largest_difference(folder / "whole", folder / name) for name in ("resumed", "ddp")}
    words = {f"largest difference of the weights, {name}": value for name, value in found.items()}
    return {"holds": max(found.values()) <= AGREES, **words}


def largest_difference(left: Path, right: Path) -> float:
    """Return the largest difference between two runs' weights."""
    one, other = (load_file(folder / "model.safetensors") for folder in (left, right))
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one if one[name].numel())


def main() -> int:
    """Run all parts, and say what holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=sorted(SIZES), default="cuda", help="cpu: small, to try the script")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name}; only on a GPU")
    parser.add_argument("--train", nargs=3, metavar=("FOLDER", "NAME", "EPOCH"), help="only train, as a part does")
    given = parser.parse_args()
    if given.train:
        train(*given.train)
        return 0
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: torch finds none here; --device cpu tries the script", file=sys.stderr)
        return 2
    found: dict[str, dict[str, Any]] = {}
    begun = time.perf_counter()
    for part in (devices, halves, cost, runs):
        try:
            result: dict[str, Any] = part(given.device)
        except Exception as error:  # noqa: BLE001 (a part that fails says so, and the others go on)
            result = {"holds": False, "failed": one_line(error)}
        found[part.__name__] = result
        print(f"{part.__name__}: {'holds' if result['holds'] else 'DOES NOT HOLD'}")
        for what, figure in list(result.items())[1:]:
            print(f"  {what}: {figure}")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "no GPU, so that nothing is said about one"
    print(f"on {name}; {time.perf_counter() - begun:.0f} seconds")
    if given.record and given.device == "cuda":
        record = {"device": name, "machine": machine(), "versions": versions(), "found": found}
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(result["holds"] for result in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
