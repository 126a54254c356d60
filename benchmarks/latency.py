"""Latency of exported networks in ONNX Runtime beside eager PyTorch, and the size of the files.

Each network has random weights, is exported with all the checks of ``surgeon export --onnx``, and is then run on one
batch, eager and in ONNX Runtime in turn, one thread each, on the CPU. Besides the time that passes, the processor time
is taken, which a busy machine changes less. Networks are added one by one to the record and the table of docs/export.md
(those of other libraries need their own environment)::

    python benchmarks/latency.py
    .venv-mace/bin/python benchmarks/latency.py mace
    .venv-escnn/bin/python benchmarks/latency.py escnn
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from surgeon.algebra.groups.parse import parse_group
from surgeon.export.checks import session_of
from surgeon.export.onnx_file import export_onnx
from surgeon.export.outputs import Selection
from surgeon.export.sample import sample_for
from surgeon.export.stripped import Stripped
from surgeon.opening.task_calls import task_batches, task_forward
from surgeon.opening.tasks import load_task
from surgeon.support.trees import tensors_in, to_dtype
from surgeon.support.versions import machine, versions

RESULTS = ROOT / "benchmarks" / "results" / "latency.json"
PAGE = ROOT / "docs" / "export.md"
BEGIN, END = "<!-- latency: by benchmarks/latency.py -->", "<!-- end of latency -->"
WARM_UP = 5
BIG = 1_000_000
"""Bytes of tensors from which on the size of a file is judged."""


@dataclass(frozen=True)
class Network:
    """A network to be exported and timed.

    Attributes:
        model: with random weights, float32.
        task: batches, call, and action of the group.
        group: its name.
        selection: outputs of the file.
    """

    model: nn.Module
    task: Any
    group: str
    selection: Selection


def segnn() -> Network:
    """The N-body example's SEGNN."""
    return _example("nbody", "E3", {"test_samples": 100, "validation_samples": 100})


def pointnet() -> Network:
    """Vector-neuron PointNet as in the example."""
    return _example("pointcloud", "SO3", {"network": "pointnet", "count": 60, "held_out": 100})


def pointnet_wide() -> Network:
    """Vector-neuron PointNet with the published widths."""
    arguments = {"network": "pointnet", "count": 60, "held_out": 16, "base": 64, "neighbours": 20}
    return _example("pointcloud", "SO3", arguments)


def dgcnn() -> Network:
    """Vector-neuron DGCNN as in the example."""
    return _example("pointcloud", "SO3", {"network": "dgcnn", "count": 60, "held_out": 16})


def potential() -> Network:
    """Energy and forces: 16 channels, one round of messages."""
    from tests.export.potential import Potential, PotentialTask

    return Network(Potential(channels=16), PotentialTask(), "O3", Selection())


def potential_energy() -> Network:
    """The same model; the file has the energy only, eager computes both."""
    network = potential()
    return Network(network.model, network.task, network.group, Selection(energy_only=True))


class _FamilyTask:
    """Batches for a model of another library, with the call and the action of its test case."""

    def __init__(self, case: Any, batches: dict[str, list[Any]]) -> None:
        self._case, self._batches = case, batches
        self.act, self.act_output = case.act, case.act_output

    def batches(self, split: str, seed: int) -> Any:
        return iter(self._batches[split])

    def forward(self, model: nn.Module, batch: Any) -> Any:
        return self._case.forward(model, batch)


def mace() -> Network:
    """MACE, 2 interactions, 16x0e+16x1o, energy and forces."""
    from surgeon_adapters.mace.models import import_mace
    from tests.families.mace_models import molecules, potential

    import_mace()  # with spherical harmonics that are not scripted
    case = potential(True, "16x0e+16x1o")
    sizes = {"train": [[4, 3], [2, 3, 4]], "validation": [[6]], "test": [[9, 12, 9, 12]]}
    batches = {split: [molecules(i, counts) for i, counts in enumerate(each)] for split, each in sizes.items()}
    return Network(case.module.float(), _FamilyTask(case, batches), case.group, Selection())


def escnn() -> Network:
    """Two steerable convolutions for C4 and a sum over the group and the image."""
    from tests.families.escnn_models import c4_images

    case = c4_images()
    batch = torch.cat([case.batch] * 16)[:32]
    batches = dict.fromkeys(("train", "validation", "test"), [batch])
    return Network(case.module.float(), _FamilyTask(case, batches), case.group, Selection())


NETWORKS: dict[str, Callable[[], Network]] = {
    "segnn": segnn,
    "pointnet": pointnet,
    "pointnet_wide": pointnet_wide,
    "dgcnn": dgcnn,
    "potential": potential,
    "potential_energy": potential_energy,
    "mace": mace,
    "escnn": escnn,
}
ELSEWHERE = ("mace", "escnn")


def _example(folder: str, group: str, arguments: dict[str, Any]) -> Network:
    task: Any = load_task(ROOT / "examples" / folder / "task.py", arguments).task
    return Network(task.model(), task, group, Selection())


def measure(name: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Export one network and time it; milliseconds, bytes, and what the export measured."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    model, path = network.model.train(), folder / f"{name}.onnx"  # some models cannot be copied in eval mode
    original, double, group = copy.deepcopy(model), copy.deepcopy(model).double(), parse_group(network.group)
    start = time.perf_counter()
    with torch.no_grad():  # filters that eval() expands can be copied then
        stripped = Stripped(model.eval(), original.eval(), double.eval(), network.task, group)
    record = export_onnx(
        path,
        stripped,
        selection=network.selection,
        announce=lambda text: print(f"{name}: {text}", file=sys.stderr),
    )
    seconds = time.perf_counter() - start
    batch = to_dtype(next(iter(task_batches(network.task, "test", 0))), torch.float32)
    inputs = dict(zip(sample_for(stripped).names, tensors_in(batch), strict=True))
    return {
        "network": (NETWORKS[name].__doc__ or "").strip().rstrip("."),
        "batch": {key: list(tensor.shape) for key, tensor in inputs.items() if key in record["inputs"]},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "export_s": round(seconds, 1),
        "nodes": record["nodes"],
        "outputs": record["outputs"],
        "deviation_of_allowed": record["deviation"],
        "equivariance_of_allowed": record["equivariance"],
        **_sizes(path, model),
        **_latencies(network, batch, inputs, path, bool(record["derivatives"]), repeats),
    }


def _sizes(path: Path, model: nn.Module) -> dict[str, Any]:
    import onnx

    stored = {tensor.name for tensor in onnx.load(path).graph.initializer}
    tensors = sum(value.nbytes for name, value in model.state_dict().items() if name in stored)
    size = path.stat().st_size
    return {"file_bytes": size, "tensor_bytes": tensors, "file_to_tensors": round(size / tensors, 3)}


def _latencies(
    network: Network, batch: Any, inputs: dict[str, Tensor], path: Path, derivatives: bool, repeats: int
) -> dict[str, Any]:
    """Run both in turn."""
    session = session_of(path, threads=torch.get_num_threads())
    feed = {item.name: inputs[item.name].numpy() for item in session.get_inputs()}

    def eager() -> None:
        with torch.set_grad_enabled(derivatives):
            task_forward(network.task, network.model, batch)

    runs: dict[str, Callable[[], Any]] = {"eager": eager, "onnxruntime": lambda: session.run(None, feed)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(WARM_UP + repeats):
        for name, run in runs.items():
            passed, used = time.perf_counter(), time.process_time()
            run()
            if repeat >= WARM_UP:
                times[name].append((1000 * (time.perf_counter() - passed), 1000 * (time.process_time() - used)))
    ratios = [a[1] / b[1] for a, b in zip(times["eager"], times["onnxruntime"], strict=True)]
    return {
        "repeats": repeats,
        **{f"{name}_ms": _quartiles([wall for wall, _ in values]) for name, values in times.items()},
        **{f"{name}_processor_ms": _quartiles([used for _, used in values]) for name, values in times.items()},
        "eager_to_onnxruntime_processor": _quartiles(ratios),
    }


def _quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"lower": round(low, 3), "median": round(middle, 3), "upper": round(high, 3)}


def table(record: Mapping[str, Any]) -> str:
    """Return the record as lines of Markdown; times are those of the processor."""
    rows = [_row(record[name]) for name in NETWORKS if name in record]
    head = ["network", "batch", "parameters", "eager, ms", "ONNX Runtime, ms", "ratio"]
    head += ["file, MB", "file to its tensors", "measured"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _row(entry: Mapping[str, Any]) -> list[str]:
    times = [entry[f"{name}_processor_ms"] for name in ("eager", "onnxruntime")]
    name, shape = next(iter(entry["batch"].items()))
    return [
        entry["network"],
        f"{name} {' × '.join(map(str, shape))}",
        f"{entry['parameters']:,}",
        *(f"{each['median']:.3g} ({each['lower']:.3g}–{each['upper']:.3g})" for each in times),
        f"{entry['eager_to_onnxruntime_processor']['median']:.1f}",
        f"{entry['file_bytes'] / 1e6:.3g}",
        f"{entry['file_to_tensors']:.2f}",
        entry["date"],
    ]


def page(text: str, record: Mapping[str, Any]) -> str:
    """Return a page with the table of a record between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Measure the named networks and add them to the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "networks",
        nargs="*",
        metavar="NETWORK",
        help=f"out of {', '.join(NETWORKS)}; default: all of these that need no other library",
    )
    parser.add_argument("--repeats", type=int, default=50, help="runs of each kind, in turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks or [name for name in NETWORKS if name not in ELSEWHERE]:
        load = [os.getloadavg()[0]]
        with tempfile.TemporaryDirectory() as folder:
            found = measure(name, options.repeats, Path(folder))
        load.append(os.getloadavg()[0])
        entry = {
            "date": f"{datetime.date.today():%-d %B %Y}",
            "command": f"python benchmarks/latency.py {name} --repeats {options.repeats}",
            "machine": {
                **machine(),
                "load_before_and_after": [round(value, 1) for value in load],
            },
            "versions": versions(),
            **found,
        }
        record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        record[name] = entry
        RESULTS.write_text(json.dumps(record, indent=2) + "\n")
        PAGE.write_text(page(PAGE.read_text("utf-8"), record), encoding="utf-8")
        print(json.dumps({name: entry}, indent=2), flush=True)
        if found["tensor_bytes"] > BIG and found["file_to_tensors"] > 1.3:
            sys.exit(
                f"{name}: the file has {found['file_to_tensors']} times the bytes of its tensors, at most 1.3 allowed"
            )


if __name__ == "__main__":
    main()
