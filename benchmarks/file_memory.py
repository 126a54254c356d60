"""Peak memory and seconds of inspect, relax, strip and verify on large checkpoints, against the size of what is opened.

Every command runs in a process of its own, on one thread, and its peak is that of the whole process. Each block of the
network mixes wide features by one layer of e3nn's, which takes a branch, and passes the scalars through two wide layers
that take none, as embeddings and readouts do. Allowed are 2.5 times the file, or the folder where there are branches,
and half a gigabyte for torch and the libraries. And a chain of 10,000 small layers is planned, relaxed and stripped::

    python benchmarks/file_memory.py --megabytes 150 500 2000
    python benchmarks/file_memory.py --layers 10000
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from insertion import peak_mebibytes
from safetensors.torch import save_file
from torch import Tensor, nn

from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.versions import machine, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "file_memory.json"
COPIES, HIDDEN, ROWS = 1024, 2048, 8
BLOCK = 4 * (2 * COPIES**2 + 2 * COPIES * HIDDEN)
"""Bytes of a block."""
QUICK = ("--elements", "1", "--batches", "1")
"""Fewer runs, of which each takes as much memory."""
TIMES, BESIDE = 2.5, 500
"""Allowed: so many times what is opened, and so many megabytes."""


class Block(nn.Module):
    """Wide features mixed, and their scalars passed through two layers, which gate the vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = import_e3nn().Linear(f"{COPIES}x0e+{COPIES}x1o", f"{COPIES}x0e+{COPIES}x1o")
        self.into, self.out = nn.Linear(COPIES, HIDDEN), nn.Linear(HIDDEN, COPIES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        scalars = torch.tanh(self.out(torch.tanh(self.into(y[:, :COPIES]))))
        vectors = torch.sigmoid(scalars).unsqueeze(2) * y[:, COPIES:].unflatten(1, (COPIES, 3))
        return x + torch.cat([scalars, vectors.flatten(1)], dim=1)


class Network(nn.Module):
    """Blocks between a few vectors and one."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        o3 = import_e3nn()
        self.first = o3.Linear("4x0e+4x1o", f"{COPIES}x0e+{COPIES}x1o")
        self.blocks = nn.Sequential(*(Block() for _ in range(blocks)))
        self.last = o3.Linear(f"{COPIES}x0e+{COPIES}x1o", "1x1o")

    def forward(self, vectors: Tensor) -> Tensor:
        squares = vectors.unflatten(1, (4, 3)).square().sum(2)
        result: Tensor = self.last(self.blocks(self.first(torch.cat([squares, vectors], dim=1))))
        return result


class Task:
    """Random vectors, and their mean."""

    primary_metric = "mse"

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks

    def model(self) -> nn.Module:
        """Build the network."""
        return Network(self.blocks)

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        """Yield two batches."""
        for number in range(2):
            generator = torch.Generator().manual_seed(10 * number + len(split))
            vectors = torch.randn(ROWS, 12, generator=generator)
            yield {"vectors": vectors, "target": vectors.unflatten(1, (4, 3)).mean(1)}

    def forward(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Any:
        """Return a vector for every row."""
        return model(batch["vectors"])

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared error."""
        return (outputs - batch["target"]).square().mean()

    def metrics(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> dict[str, tuple[float, float]]:
        """Return the sum of squared errors, and their number."""
        return {"mse": (float((outputs - batch["target"]).square().sum()), outputs.numel())}

    def act(self, g: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn all vectors."""
        return {name: (value.unflatten(1, (-1, 3)) @ g.to(value).T).flatten(1) for name, value in batch.items()}

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Turn the outputs."""
        return outputs @ g.to(outputs).T


def make_task(blocks: int) -> Task:
    """Return the task: this file is a task file, too."""
    return Task(blocks)


def run(folder: Path, *words: str) -> dict[str, float]:
    """Run a command of `surgeon` in a process of its own; return its peak in megabytes, and seconds."""
    start = time.perf_counter()
    command = [str(Path(sys.executable).with_name("surgeon")), *words]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output
        )
        _, status, used = os.wait4(process.pid, 0)
        output.seek(0)
        if status:
            sys.exit(f"{' '.join(command)} failed: {output.read()}")
    peak = used.ru_maxrss / (10**6 if sys.platform == "darwin" else 10**6 / 2**10)
    return {
        "peak_mb": round(peak),
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
    }


def measure(megabytes: int) -> dict[str, Any]:
    """Measure all commands on a file of about that size."""
    blocks = max(1, round(megabytes * 1e6 / BLOCK))
    task = ("--task", str(Path(__file__).resolve()), "--task-args", json.dumps({"blocks": blocks}))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write = [sys.executable, __file__, "--write", str(folder / "net.safetensors"), "--blocks", str(blocks)]
        subprocess.run(write, check=True)  # apart: a process that is started counts the peak of the one that starts it
        opened = {"file": _size(folder / "net.safetensors")}
        commands = {
            "inspect": ("file", ("inspect", "net.safetensors", *task)),
            "relax": ("file", ("relax", "net.safetensors", "-o", "relaxed", *task)),
            "strip": ("relaxed", ("strip", "relaxed", "-o", "clean", *QUICK)),
            "verify": ("file", ("verify", "clean", "--against", "net.safetensors", *task)),
        }
        found: dict[str, Any] = {}
        for name, (what, words) in commands.items():
            size = opened.setdefault(what, _size(folder / what))
            found[name] = {**run(folder, *words), "allowed_mb": round(TIMES * size + BESIDE)}
            found[name]["within"] = found[name]["peak_mb"] <= found[name]["allowed_mb"]
            print(f"{name}: {found[name]}", file=sys.stderr, flush=True)
    return {"blocks": blocks, "opened_mb": opened, "commands": found}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return round(sum(each.stat().st_size for each in files if each.is_file()) / 1e6)


def chain(layers: int) -> dict[str, Any]:
    """Plan, relax and strip a chain of small layers in this process; seconds of CPU time and mebibytes."""
    from inspection import CHANNELS, POINTS, Chain, find

    import surgeon

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = Chain(layers), torch.randn(POINTS, 3, CHANNELS)
    model(x).sum().backward()
    opened, start, found = peak_mebibytes(), time.process_time(), {}
    plan = find(model, x)
    found["plan_cpu_s"], start = round(time.process_time() - start, 1), time.process_time()
    relaxed = surgeon.relax(model, plan)
    found["relax_cpu_s"], start = round(time.process_time() - start, 1), time.process_time()
    surgeon.strip(relaxed, "drop")
    found["strip_cpu_s"] = round(time.process_time() - start, 1)
    memory = {"opened_mib": round(opened), "peak_mib": round(peak_mebibytes())}
    return {"layers": layers, "sites": len(plan.sites), **found, **memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="*", default=[], help="sizes of files")
    parser.add_argument("--layers", type=int, help="length of the chain")
    parser.add_argument("--write", type=Path, help="only write a network of --blocks here")
    parser.add_argument("--blocks", type=int, default=1, help="its length")
    options = parser.parse_args()
    if options.write:
        torch.manual_seed(0)
        save_file(Network(options.blocks).state_dict(), options.write)
        return
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"files": {}}
    facts = {
        "date": f"{datetime.date.today():%-d %B %Y}",
        "machine": {**machine(), "threads": 1},
        "versions": versions(),
    }
    for size in options.megabytes:
        record["files"][str(size)] = {**measure(size), **facts}
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    if options.layers:
        record["chain"] = {**chain(options.layers), **facts}
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
