"""How long the first command takes: ``surgeon relax`` of the shipped SEGNN, in fresh processes.

Seconds of the stages are those that the command prints; what is left of the processor's seconds are Python and the
imports. Wall time means something on cores that do nothing else: the record holds the machine's load before each run.
Forwards and backwards of the network are counted in one more process, which is not timed. The table of
``docs/any_model.md`` is written from the record::

    python benchmarks/first_command.py
    python benchmarks/first_command.py --repeats 5
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "first_command.json"
PAGE = ROOT / "docs" / "any_model.md"
BEGIN, END = "<!-- first command: by benchmarks/first_command.py -->", "<!-- end of first command -->"
NBODY = ROOT / "examples" / "nbody"
COMMAND = ("relax", str(NBODY / "segnn_nbody.safetensors"), "--task", str(NBODY / "task.py"))
STAGE = re.compile(r"^(.+) \((\d+\.\d) s\)$", re.MULTILINE)


def run() -> dict[str, Any]:
    """Run the command in a process of its own."""
    load, start = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        command = [str(Path(sys.executable).with_name("surgeon")), *COMMAND, "-o", f"{folder}/relaxed"]
        process = subprocess.Popen(command, stdout=output)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        output.seek(0)
        text = output.read()
    if status:
        sys.exit(f"the command failed: {' '.join(command)}")
    stages = {name: float(seconds) for name, seconds in STAGE.findall(text)}
    return {
        "load_before": round(load, 2),
        "wall_s": round(wall, 2),
        "cpu_s": round(used.ru_utime + used.ru_stime, 2),
        "peak_mib": round(used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)),
        "stages_s": stages,
    }


def count() -> dict[str, int]:
    """Plan in this process, and count what is run meanwhile."""
    from torch import autograd, nn

    import surgeon
    from surgeon.finding import find
    from surgeon.opening.relaxing import relax_checkpoint

    network = type(surgeon.open_path(COMMAND[1], surgeon.OpenOptions(task=COMMAND[3])).model)
    found = {"forwards": 0, "backwards": 0}

    def forward(module: nn.Module, *_: Any) -> None:
        found["forwards"] += isinstance(module, network)

    def counting(engine: Any) -> Any:
        def backward(*args: Any, **kwargs: Any) -> Any:
            found["backwards"] += 1
            return engine(*args, **kwargs)

        return backward

    handle = nn.modules.module.register_module_forward_pre_hook(forward)
    autograd.grad = counting(autograd.grad)
    autograd.backward = counting(autograd.backward)
    whole = find.find

    def planning(*args: Any, **kwargs: Any) -> Any:
        before = dict(found)
        plan = whole(*args, **kwargs)
        found.update({f"planning_{name}": found[name] - before[name] for name in before})
        return plan

    sys.modules["surgeon.opening.planning"].__dict__["find"] = planning
    relax_checkpoint(COMMAND[1], None, options=surgeon.OpenOptions(task=COMMAND[3]))
    handle.remove()
    return found


def table(record: Mapping[str, Any]) -> str:
    """Return the fastest run as lines of Markdown."""
    fastest = min(record["runs"], key=lambda each: each["wall_s"])
    counts, machine = record["counts"], record["machine"]
    inside = sum(fastest["stages_s"].values())
    rows = [*fastest["stages_s"].items(), ("Python, imports, and the screen", fastest["wall_s"] - inside)]
    return "\n".join(
        [
            f"`surgeon relax examples/nbody/segnn_nbody.safetensors --task examples/nbody/task.py`, {record['date']}, "
            f"{machine['cores']} cores, the fastest of {len(record['runs'])} runs: **{fastest['wall_s']:.1f} s, "
            f"{fastest['cpu_s']:.1f} s of the processor**, {fastest['peak_mib']} MiB at most "
            f"(load of the machine before: {fastest['load_before']:.1f}). Forward and backward passes of the network: "
            f"{counts['forwards']} and {counts['backwards']}, of which planning takes {counts['planning_forwards']} "
            f"and {counts['planning_backwards']}.",
            "",
            "| stage | seconds |",
            "| --- | --- |",
            *(f"| {name} | {seconds:.1f} |" for name, seconds in rows),
        ]
    )


def page(text: str, record: Mapping[str, Any]) -> str:
    """Return a page with the table of a record between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(record)}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Measure, and write record and table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of the command")
    parser.add_argument("--count", action="store_true", help="count forwards and backwards in this process instead")
    options = parser.parse_args()
    if options.count:
        print(json.dumps(count()))
        return
    counted = subprocess.run([sys.executable, __file__, "--count"], check=True, stdout=subprocess.PIPE, text=True)
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    runs = [run() for _ in range(options.repeats)]
    from surgeon.support.versions import machine, versions

    record = {
        "command": " ".join(["python", "benchmarks/first_command.py", *sys.argv[1:]]),
        "date": f"{datetime.date.today():%-d %B %Y}",
        "commit": git.stdout.strip(),
        "machine": machine(),
        "versions": versions(),
        "counts": json.loads(counted.stdout.splitlines()[-1]),
        "runs": runs,
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text("utf-8"), record), encoding="utf-8")
    print(table(record))


if __name__ == "__main__":
    main()
