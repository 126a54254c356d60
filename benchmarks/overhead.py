"""What a relaxed training step costs: time and peak memory against the plain step of the same network.

Every variant trains its own copy of the network with its own AdamW on the same batches in one process; in each round
every variant takes one step, in random order, and its time is divided by that of the plain step of the same round::

    python benchmarks/overhead.py
    python benchmarks/overhead.py --memory

With one thread on a CPU it is the processor's time that is taken, so that other work on the machine counts for less.

Peak memory is that of the tensors that live at once, beyond those before the first step: on a GPU as torch counts them,
on a CPU the sum of torch's own records of allocations, which is the same every time. Beside it stands the resident size
of a process of its own for each variant, which varies, but also contains what torch does not record.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))  # run as a script or imported by its test

from overhead_networks import NETWORKS, Case

import surgeon
from surgeon.editing.merge import merge
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.select import select
from surgeon.finding.forms import form_of, row_representations, rows_of
from surgeon.plan import Plan
from surgeon.support.versions import machine, versions

RESULTS = Path(__file__).parent / "results" / "overhead.json"
WEIGHT, THETA, RANK = 0.01, 0.5, 8
EPSILON = 1e-12

Step = Callable[[], None]


def naive_penalty(relaxation: Relaxation, rows: dict[str, Tensor]) -> Tensor:
    """The paper's formula as it is usually written: autograd through dense generators and all rows, site by site."""
    total = []
    for site in relaxation.plan.sites:
        x, weight = rows.pop(site.key), relaxation.branches[site.key].matrix
        outputs = x @ weight.T
        terms = [torch.sqrt(outputs.square().sum(-1) + EPSILON).mean()]
        for out, into in _dense(site, x):
            defect = outputs @ out.T - (x @ into.T) @ weight.T
            terms.append(torch.sqrt(defect.square().sum(-1) + EPSILON).mean())
        total.append(torch.stack(terms).sum())
    return torch.stack(total).sum()


_OPERATORS: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}


def _dense(site: Any, like: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The generators of the Lie algebra as dense matrices, made once."""
    key = (site.rho_out, site.rho_in, like.device, like.dtype)
    if key not in _OPERATORS:
        pair = [rho.generators().dense().to(like) for rho in row_representations(site)]
        _OPERATORS[key] = list(zip(*pair, strict=True))
    return _OPERATORS[key]


@contextmanager
def captured(relaxation: Relaxation) -> Iterator[dict[str, Tensor]]:
    """Keep the detached inputs of all branches, as rows."""
    rows: dict[str, Tensor] = {}
    hooks = []
    for site in relaxation.plan.sites:

        def keep(_: nn.Module, args: Any, site: Any = site) -> None:
            rows[site.key] = rows_of(form_of(site), args[0].detach())

        hooks.append(relaxation.branches[site.key].register_forward_pre_hook(keep))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Variant:
    """One way to take a step.

    Attributes:
        relaxes: with branches.
        options: for ``surgeon.relax``.
        penalty: "none", "naive" or "surgeon".
        rank: of the branches.
        merges: layers that allow it compute themselves and their branch by one product, as the engine does.
    """

    relaxes: bool = True
    options: tuple[tuple[str, Any], ...] = ()
    penalty: str = "surgeon"
    rank: int | None = None
    merges: bool = True


VARIANTS = {
    "plain": Variant(relaxes=False, penalty="none"),
    "branch": Variant(penalty="none", merges=False),
    "branch merged": Variant(penalty="none"),
    "naive rows": Variant(penalty="naive", merges=False),
    "exact": Variant(options=(("penalty_rows", None), ("penalty_every", 1))),
    "default": Variant(),
    "low rank": Variant(rank=RANK),
}


def stepper(case: Case, plan: Plan, variant: Variant) -> Step:
    """Return a function that takes one training step on a copy of the network."""
    model = copy.deepcopy(case.model).train()
    batch = case.batch
    relaxation = None
    if variant.relaxes:
        ranked = plan if variant.rank is None else with_rank(plan, variant.rank)
        relaxation = surgeon.relax(model, ranked, dense=True, init_scale=0.1, **dict(variant.options))
        relaxation.enable_penalty(variant.penalty == "surgeon")
        relaxation.set_theta(THETA)
        if variant.merges:
            merge(relaxation)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        if relaxation is not None and variant.penalty == "naive":
            with captured(relaxation) as rows:
                loss = case.loss(model, batch)
                loss = loss + WEIGHT * naive_penalty(relaxation, rows)
        else:
            loss = case.loss(model, batch)
            if relaxation is not None and variant.penalty == "surgeon":
                loss = loss + WEIGHT * relaxation.penalty()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def with_rank(plan: Plan, rank: int) -> Plan:
    """Return the plan with branches of low rank, where that saves parameters."""
    sites = []
    for site in plan.sites:
        smaller = replace(site, rank=min(rank, *site.shape))
        sites.append(smaller if smaller.extra_parameters < site.extra_parameters else site)
    return replace(plan, sites=tuple(sites))


def plan_of(case: Case) -> Plan:
    """Find the sites by annotation; the paper's placement takes some of them."""
    plan = surgeon.find(case.model, case.group, case.batch, forward=lambda model, batch: case.loss(model, batch))
    return select(plan, case.include) if case.include else plan


def clock(device: str) -> float:
    """Return seconds: of this process alone where nothing runs beside it."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def times(case: Case, names: list[str], rounds: int, device: str) -> dict[str, Any]:
    """Return the median and the quartiles of the ratios to the plain step, and the plain step's milliseconds."""
    plan, order = plan_of(case), random.Random(0)
    steps = {name: stepper(case, plan, VARIANTS[name]) for name in names}
    for step in steps.values():
        for _ in range(3):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            start = clock(device)
            steps[name]()
            seconds[name].append(clock(device) - start)
    # the default renews a quarter of the sites at each step: four rounds together see each of them once
    window = 4
    groups = range(0, rounds - rounds % window, window)
    sums = {name: [sum(values[i : i + window]) for i in groups] for name, values in seconds.items()}
    result: dict[str, Any] = {
        "sites": len(plan.sites),
        "parameters": sum(parameter.numel() for parameter in case.model.parameters()),
        "extra_parameters": sum(site.extra_parameters for site in plan.sites),
        "plain_ms": round(1000 * statistics.median(seconds["plain"]), 2),
        "ratios": {},
    }
    for name in names:
        ratios = [own / plain for own, plain in zip(sums[name], sums["plain"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios[0],) * 3
        result["ratios"][name] = {"median": round(middle, 3), "quartiles": [round(low, 3), round(high, 3)]}
    medians = {name: statistics.median(values) for name, values in sums.items()}
    if {"branch", "branch merged", "naive rows", "exact", "default"} <= set(names):
        result["penalty_cheaper_by"] = cheaper_by(medians)
    return result


def cheaper_by(medians: dict[str, float]) -> dict[str, float | None]:
    """Return how many times cheaper than the naive penalty ours are, each beyond the same step without a penalty.

    The naive one is added to branches apart, ours to merged ones: what merging saves is not the penalty's.
    """
    naive = medians["naive rows"] - medians["branch"]
    cost = {name: medians[name] - medians["branch merged"] for name in ("exact", "default")}
    # less than the noise of the clock is no cost that a factor could be given for
    least = 0.002 * medians["plain"]
    return {name: round(naive / value, 1) if value > least else None for name, value in cost.items()}


def resident_mebibytes() -> float:
    """Return the largest resident size so far."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says is inherited from the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def allocated_mebibytes(step: Step, steps: int) -> float:
    """Return the largest sum of what torch allocated and did not free yet, while these steps are taken on a CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(steps):
            step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in events)) / 2**20


def peak_memory(case: Case, plan: Plan, name: str, device: str, measure: str) -> float:
    """Return the mebibytes that a few steps need beyond the network itself, gradients and optimiser included."""
    step = stepper(case, plan, VARIANTS[name])
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            step()
        return float(torch.cuda.max_memory_allocated() - before) / 2**20
    if measure == "allocated":
        return allocated_mebibytes(step, 2)
    resident = resident_mebibytes()
    for _ in range(3):
        step()
    return resident_mebibytes() - resident


def memory_apart(network: str, plan: Plan, name: str, measure: str, arguments: list[str]) -> float:
    """Measure in a fresh process that neither looks for sites nor ran before, so that the peak is its own."""
    command = [sys.executable, __file__, "--one", network, name, measure, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True, input=plan.to_json()).stdout
    return float(output.splitlines()[-1])


def memory(network: str, names: list[str], device: str, arguments: list[str]) -> dict[str, Any]:
    """Return the ratios of peak memory to the plain step's, by each measure that there is on this device."""
    plan = plan_of(NETWORKS[network](device))
    row: dict[str, Any] = {}
    for measure in ("allocated",) if device == "cuda" else ("allocated", "resident"):
        found = {name: memory_apart(network, plan, name, measure, arguments) for name in names}
        ratios = {name: round(value / found["plain"], 3) for name, value in found.items()}
        row[measure] = {"plain_mib": round(found["plain"], 1), "ratios": ratios}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help=f"networks, separated by commas, among {', '.join(NETWORKS)}")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="separated by commas")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead of time")
    parser.add_argument("--output", type=Path, default=RESULTS)
    metavar = ("NETWORK", "VARIANT", "MEASURE")
    parser.add_argument("--one", nargs=3, metavar=metavar, help="print the memory of one; the plan on stdin")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.one:
        network, variant, measure = options.one
        plan = Plan.from_data(json.load(sys.stdin))
        print(peak_memory(NETWORKS[network](options.device), plan, variant, options.device, measure))
        return
    chosen = options.only.split(",") if options.only else list(NETWORKS)
    names = options.variants.split(",")
    record = json.loads(options.output.read_text()) if options.output.exists() else {}
    part = record.setdefault(options.device, {"time": {}, "memory": {}})
    part["machine"] = {**machine(), "threads": options.threads}
    if options.device == "cuda":
        part["machine"]["gpu"] = torch.cuda.get_device_name()
    part["versions"] = versions()
    kind = "memory" if options.memory else "time"
    for network in chosen:
        if options.memory:
            arguments = ["--device", options.device, "--threads", str(options.threads)]
            row = memory(network, names, options.device, arguments)
        else:
            row = times(NETWORKS[network](options.device), names, options.rounds, options.device)
        # rows are measured in several runs, and each keeps its own command
        row["command"] = " ".join(["python", "benchmarks/overhead.py", *sys.argv[1:]])
        part[kind][network] = row
        print(network, json.dumps(row))
        options.output.parent.mkdir(exist_ok=True)
        options.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
