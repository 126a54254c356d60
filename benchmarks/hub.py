"""What ``surgeon.from_hub`` costs beyond the Hub client's own download, and how much memory it takes.

A loopback Hub in a process of its own serves a relaxed model of about 100 MB, as fast as it can and at the speed of
networks: it sleeps between pieces of an answer. Every download starts with an empty
cache in a fresh process, in which a small model was opened before, so that imports are paid. ``plain`` is
``snapshot_download`` of the same three files and nothing else; ``factory`` is building the network with its random
weights, which every other way to a usable model costs, too. CPU seconds are those of the client's process::

    python benchmarks/hub.py
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from surgeon.files.content import json_text
from surgeon.files.relaxed import read_relaxed, write_relaxed
from surgeon.hub.content import content_of
from surgeon.opening.description import relaxed_config
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.support.e3nn_compat import import_e3nn
from surgeon.support.versions import machine, versions

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "hub.json"
BIG, SMALL = "alice/big", "alice/small"
SIZES = {BIG: (2240, 5), SMALL: (8, 1)}
FILES = ("surgeon_config.json", "model.safetensors", "relaxation.safetensors")
RATES = {"loopback": math.inf, "1 Gbit/s": 1e9 / 8, "100 Mbit/s": 1e8 / 8}
"""Bytes per second that the server sends at most."""
WAYS = ("plain", "factory", "relaxed", "drop")


class Network(nn.Module):
    """Dense layers on invariants, which hold nearly all weights, and one equivariant layer on vectors."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        o3 = import_e3nn()
        self.width = width
        self.dense = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
        self.mix = o3.Linear("16x1o", "16x1o")

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        gate = torch.tanh(self.dense(scalars)).mean(1, keepdim=True)
        result: Tensor = self.mix(vectors) * gate
        return result


def make_big() -> nn.Module:
    return Network(*SIZES[BIG])


def make_small() -> nn.Module:
    return Network(*SIZES[SMALL])


MAKERS = {BIG: make_big, SMALL: make_small}


def write_folder(repo: str, folder: Path) -> None:
    """Relax a network with random weights and write it."""
    torch.manual_seed(0)
    model = MAKERS[repo]()
    torch.save(model.state_dict(), folder / "net.pt")
    workspace = open_path(folder / "net.pt", OpenOptions(build=MAKERS[repo]))
    sample = torch.randn(4, SIZES[repo][0]), torch.randn(4, 48)
    plan = surgeon.find(workspace.model, "O3", *sample)
    relaxation = surgeon.relax(
        workspace.model, surgeon.select(plan, include=["mix"], exclude=[]), dense=True, init_scale=0.1
    )
    config = relaxed_config(workspace, relaxation, penalty={"lambda": 0.01, "form": "gram", "scale": "relative"})
    write_relaxed(folder / "relaxed", workspace.model, config, {"format": "pt"})


def serve(folder: Path, rate: float) -> None:
    """Serve both models, at ``rate`` bytes per second, until standard input is closed."""
    sys.path.insert(0, str(ROOT))
    from tests.hub.client import USERS
    from tests.hub.server import Hub

    hub = Hub(dict(USERS), rate)
    for repo in MAKERS:
        place = folder / repo.split("/")[1]
        place.mkdir()
        write_folder(repo, place)
        files = {
            name: value if isinstance(value, bytes) else value.read_bytes()
            for name, value in content_of(place / "relaxed").files.items()
        }
        hub.store.put(repo, files)
    print(hub.endpoint, flush=True)
    sys.stdin.read()
    hub.close()


def peak_mebibytes() -> float:
    """Return the largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure(what: str) -> dict[str, float]:
    """Do one thing in this process; seconds, and mebibytes on top of what the process had before."""
    from huggingface_hub import snapshot_download

    surgeon.from_hub(SMALL, model=make_small)
    snapshot_download(SMALL, allow_patterns=list(FILES))
    before, start, worked = peak_mebibytes(), time.perf_counter(), time.process_time()
    if what == "plain":
        snapshot_download(BIG, allow_patterns=list(FILES))
    elif what == "factory":
        make_big()
    else:
        opened = surgeon.from_hub(BIG, model=make_big, mode=None if what == "relaxed" else "drop")
        assert (opened.relaxation is None) == (what == "drop")
    seconds, cpu = time.perf_counter() - start, time.process_time() - worked
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_added_mib": peak_mebibytes() - before}


def measure_apart(what: str, endpoint: str) -> dict[str, float]:
    """Run :func:`measure` in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **os.environ,
            **{"HF_ENDPOINT": endpoint, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            **{"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_TOKEN": ""},
        }
        command = [sys.executable, __file__, "--one", what]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


@contextlib.contextmanager
def server(rate: float) -> Iterator[tuple[str, Path]]:
    """Run :func:`serve` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--serve", folder, "--rate", str(rate)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdin is not None
            yield process.stdout.readline().strip(), Path(folder)
            process.stdin.close()


def summary(runs: dict[str, list[dict[str, float]]], size: int) -> dict[str, Any]:
    """Return medians, what opening costs over the plain download, and the memory that it adds."""
    seconds = {what: statistics.median(run["seconds"] for run in those) for what, those in runs.items()}
    cpu = {what: statistics.median(run["cpu_seconds"] for run in those) for what, those in runs.items()}
    opened = ("relaxed", "drop")
    return {
        "median_seconds": {what: round(value, 3) for what, value in seconds.items()},
        "spread_seconds": {
            what: [round(pick(run["seconds"] for run in those), 3) for pick in (min, max)]
            for what, those in runs.items()
        },
        "median_cpu_seconds": {what: round(value, 3) for what, value in cpu.items()},
        "percent_over_plain": {what: round(100 * (seconds[what] / seconds["plain"] - 1), 1) for what in opened},
        "peak_added_over_weights": {
            what: round(max(run["peak_added_mib"] for run in runs[what]) * 2**20 / size, 3) for what in opened
        },
    }


def measure_at(rate: float, repeats: int) -> tuple[dict[str, list[dict[str, float]]], int]:
    """Return the runs of each way against a server of one speed, and the bytes of the model's weights."""
    runs: dict[str, list[dict[str, float]]] = {what: [] for what in WAYS}
    with server(rate) as (endpoint, folder):
        files = read_relaxed(folder / "big" / "relaxed")
        size = sum(tensor.nbytes for tensors in (files.base, files.branches) for tensor in tensors.values())
        for _ in range(repeats):
            for what, those in runs.items():  # in turn, so that a busy machine is busy for all
                those.append(measure_apart(what, endpoint))
    return runs, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", metavar="WHAT", help="measure one thing in this process and print it")
    parser.add_argument("--serve", type=Path, metavar="FOLDER", help="serve the models")
    parser.add_argument("--rate", type=float, help="bytes per second of --serve")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the median counts")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    if options.serve:
        serve(options.serve, options.rate)
        return
    measured = {name: measure_at(rate, options.repeats) for name, rate in RATES.items()}
    size = measured["loopback"][1]
    record = {
        "command": f"python benchmarks/hub.py --repeats {options.repeats}",
        "machine": {**machine(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "model": {"width": SIZES[BIG][0], "layers": SIZES[BIG][1], "weights_mib": round(size / 2**20, 2)},
        "summary": {name: summary(runs, size) for name, (runs, _) in measured.items()},
        "runs": {name: runs for name, (runs, _) in measured.items()},
    }
    print(json.dumps(record["summary"], indent=2))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json_text(record))


if __name__ == "__main__":
    main()
