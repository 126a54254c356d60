"""Write what pages say of records between marks, or check it with ``--check``.

A mark is ``<!-- NAME: by benchmarks/pages.py -->``, where NAME is one of `PARTS`::

    python benchmarks/pages.py
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PART = re.compile(r"(<!-- ([\w ]+): by benchmarks/pages\.py -->\n\n).*?(\n\n<!-- end of \2 -->)", re.DOTALL)
STEPS = {"planned": "plan", "relaxed": "relax", "stripped": "strip"}
PLACES = {
    "segnn-32x2-paper": "SEGNN 32 channels, 2 layers, the paper's placement",
    "segnn-64x4-paper": "SEGNN 64 channels, 4 layers, the paper's placement",
    "segnn-32x2": "SEGNN 32/2, all sites",
    "segnn-64x4": "SEGNN 64/4, all sites",
    "attention": "attention blocks on e3nn, all sites",
    "vn-pointnet-8": "VN-PointNet, 8 × 300 points, all sites",
    "vn-dgcnn-8": "VN-DGCNN, 8 × 300 points, all sites",
}
VARIANTS = {
    "branch": "branch alone",
    "branch merged": "merged",
    "naive rows": "paper's formula, naively",
    "exact": "exact penalty",
    "default": "default",
    "low rank": "low rank",
}
OPTIMISERS = {
    "plain@adamw": "AdamW",
    "plain@adamw+beta2=0.95": "AdamW, β₂ = 0.95",
    "plain@soap": "SOAP on the matrices of multiplicities",
}


def overhead(record: Any) -> str:
    """Return what a step costs, and how many times cheaper each penalty is than the paper's formula."""
    cheaper = {"exact": "exact penalty alone", "default": "default penalty alone"}
    rows = [
        [PLACES[name], f"{row['plain_ms']:.0f} ms"]
        + [f"{row['ratios'][variant]['median']:.2f}" for variant in VARIANTS]
        + [f"naive / {row['penalty_cheaper_by'][variant]:.0f}" for variant in cheaper]
        for name, row in record["cpu"]["time"].items()
    ]
    return _table(["network", "plain step", *VARIANTS.values(), *cheaper.values()], rows)


def memory(record: Any) -> str:
    """Return the peak memory of a step of a large network."""
    ways = {
        "allocated": "torch's records of allocations (repeatable)",
        "resident": "resident size, one process each (varies by about 0.1)",
    }
    variants = ["branch", "exact", "default", "low rank"]
    found = record["cpu"]["memory"]["vn-pointnet-32"]
    rows = [
        [title, f"{found[way]['plain_mib']:.0f} MiB", *(f"{found[way]['ratios'][each]:.2f}" for each in variants)]
        for way, title in ways.items()
    ]
    return _table(["measured by", "plain step", *(VARIANTS[each] for each in variants)], rows)


def rates(record: Any) -> str:
    """Return the learning rates that arms were tried at, and the best of each."""
    sweep = record["sweep"]
    tried = {arm: [*sweep["grid"], *sweep.get("further", {}).get(arm, ())] for arm in sweep["best"]}
    rows = [[f"`{arm}`", f"{min(tried[arm]):g} to {max(tried[arm]):g}", f"{sweep['best'][arm]:g}"] for arm in tried]
    return _table(["arm", "rates", "best"], rows)


def pretrained(record: Any) -> str:
    """Return the errors of the network of charged particles on trajectories like those it was trained on."""
    names = {"no motion": "no motion", "constant velocity": "constant velocity", "segnn": "the checkpoint"}
    rows = []
    for name, title in names.items():
        found = record["test_mse"][name]
        rows.append([title, f"{found['mean']:.3g} ± {found['standard_error']:.1g}", f"{found['median']:.3g}"])
    return _table(["prediction", "mean ± its standard error", "median over trajectories"], rows)


def penalty(record: Any) -> str:
    """Return how the default penalty's results differ from the exact one's."""
    rows = [
        [f"{each['lambda']:g}", *(_share(each[name], each[name]["exact"]) for name in ("mse", "norm"))]
        for each in record["summary"]
    ]
    return _table(["λ", "test MSE, default against exact", "norm of W half-way"], rows)


def optimizer_cost(record: Any) -> str:
    """Return the costs of the optimisers that see matrices."""
    titles, ways = {"potential": "small e3nn potential", "sevennet": "7net-0"}, ("adamw", "soap", "muon")
    head = ["network", "a step of SOAP, AdamW's = 1", "of Muon", "state, in weights: AdamW / SOAP / Muon"]
    rows = [
        [
            f"{titles[name]}, {found['parameters']:,} weights",
            *(f"{found['step_beside_adamw'][way]:.2f}" for way in ways[1:]),
            " / ".join(f"{found['memory'][way]['state_times_parameters']:.1f}" for way in ways),
            " / ".join(f"{found['memory'][way]['peak_mib']:.0f}" for way in ways),
            f"{100 * found['finding_share_of_relax']:.2f} %",
        ]
        for name, found in record.items()
    ]
    return _table([*head, "peak memory of a process, MiB", "finding the matrices, share of `relax`"], rows)


def nbody(record: Any) -> str:
    """Return the comparison on charged particles."""
    base, *others = record["rows"]
    rows = [
        [
            {"plain": "plain fine-tuning", "drop": "drop (the paper)"}.get(row["arm"], row["arm"]),
            f"{row['learning_rate']:g}",
            f"{row['mean']:.4e} ± {row['spread']:.1e}",
            _share(row, base["mean"]) if row is not base else "",
        ]
        for row in record["rows"]
    ]
    told = [row["arm"] for row in others if abs(row["difference"]) > row["half_width"]]
    verdict = f"Told from plain fine-tuning: {', '.join(told) or 'none'} of {len(others)} arms."
    return _table(["arm", "lr", "test mse, mean ± std", "minus plain, 95 % interval"], rows) + f"\n\n{verdict}"


def potential(record: Any) -> str:
    """Return the comparison of optimisers on the small potential."""
    base = record["rows"][0]
    rows = []
    for row in record["rows"]:
        energies = [run["test"]["energy_mae"] for run in record["runs"] if run["arm"] == row["arm"]]
        spread = f"{statistics.mean(energies):.2f} ± {statistics.stdev(energies):.2f}"
        share = _share(row, base["mean"]) if row is not base else ""
        rate, forces = f"{row['learning_rate']:g}", f"{row['mean']:.1f} ± {row['spread']:.1f}"
        rows.append([OPTIMISERS[row["arm"]], rate, forces, share, spread])
    return _table(["optimiser", "best rate", "forces, meV/Å", "against the first", "energies, meV per atom"], rows)


def gradient_of_w(record: Any) -> str:
    """Return how much of the gradient of W is equivariant, by the number of trajectories."""
    whole, broken = record["shares"]["symmetric"], record["shares"]["broken"]
    rows = [[f"{int(count):,}", *(_range(shares[count]) for shares in (whole, broken))] for count in whole]
    head = ["trajectories", "data with the symmetry", f"targets with a drift of {record['drift']:g} along x"]
    return _table([*head], [*rows, ["any, of a random W", *2 * [f"{100 * record['random_share']:.1f} %"]]])


def inspection(record: Any) -> str:
    """Return how long it takes to inspect networks."""
    mace, chain = record["mace"], record["chain"]["runs"]
    rows = [[mace["model"], f"{mace['sites']}", f"{mace['find_s']:.1f}"]]
    rows += [[f"a chain of {run['layers']:,} layers", f"{run['sites']:,}", f"{run['find_s']:.2f}"] for run in chain]
    return _table(["network", "sites", "seconds of `surgeon.find`"], rows)


def hub(record: Any) -> str:
    """Return what opening a model from the Hub costs beside the plain download, at the speed of networks."""
    speeds = {"100 Mbit/s": "100 Mbit/s", "1 Gbit/s": "1 Gbit/s", "loopback": "none: as fast as the two cores can"}
    rows = []
    for name, title in speeds.items():
        found = record["summary"][name]
        seconds, least_most = found["median_seconds"], found["spread_seconds"]
        times = [f"{seconds[way]:.2f} s ({_span(least_most[way])})" for way in ("plain", "relaxed", "drop")]
        rows.append([title, *times, f"{max(found['peak_added_over_weights'].values()):.2f}"])
    ways = ["the client's plain download, which checks no hashes", "`from_hub`", '`from_hub(mode="drop")`']
    return _table(["network", *ways, "memory added, in weights"], rows)


def file_memory(record: Any) -> str:
    """Return the largest memory of commands on large files."""
    rows = []
    for size in sorted(record["files"], key=int):
        found = record["files"][size]
        branches = found["opened_mb"]["relaxed"] - found["opened_mb"]["file"]
        for name, each in found["commands"].items():
            opened = f"{found['opened_mb']['file']:,}" + (f" and {branches:,} of branches" if name == "strip" else "")
            peak, allowed = f"{each['peak_mb']:,}", f"{each['allowed_mb']:,}"
            rows.append([f"`{name}`", opened, peak, allowed, f"{each['cpu_s']:.1f}"])
    return _table(["command", "opened, MB", "peak, MB", "bound, MB", "seconds of the processor"], rows)


def long_chain(record: Any) -> str:
    """Return what it takes to plan, relax and strip a long chain of small layers."""
    found = record["chain"]
    seconds = [f"{verb} in {found[f'{key}_cpu_s']:.1f} s" for verb, key in STEPS.items()]
    return (
        f"A chain of {found['layers']:,} layers is {', '.join(seconds)} of the processor, {found['peak_mib']:,} MiB at "
        f"most, of which {found['opened_mib']:,} are there before."
    )


RECORDS = ROOT / "benchmarks" / "results"
PARTS: dict[str, tuple[Path, Callable[[Any], str]]] = {
    "overhead": (RECORDS / "overhead.json", overhead),
    "memory": (RECORDS / "overhead.json", memory),
    "rates of ethanol": (ROOT / "examples" / "potential" / "sweep.json", rates),
    "rates of particles": (ROOT / "examples" / "nbody" / "sweep.json", rates),
    "pretrained particles": (ROOT / "examples" / "nbody" / "segnn_nbody.json", pretrained),
    "penalty": (RECORDS / "penalty.json", penalty),
    "optimizer cost": (RECORDS / "optimizer_cost.json", optimizer_cost),
    "nbody": (RECORDS / "nbody_finetune.json", nbody),
    "potential": (ROOT / "examples" / "potential" / "sweep.json", potential),
    "gradient of W": (RECORDS / "gradient_of_w.json", gradient_of_w),
    "inspection": (RECORDS / "inspection.json", inspection),
    "hub": (RECORDS / "hub.json", hub),
    "file memory": (RECORDS / "file_memory.json", file_memory),
    "long chain": (RECORDS / "file_memory.json", long_chain),
}
"""By the names in the marks: a record, and what a page says of it."""


def _share(found: Any, whole: float) -> str:
    """Return a difference and its 95 % interval in percent; in bold where it is told from 0."""
    words = f"{100 * found['difference'] / whole:+.1f} ± {100 * found['half_width'] / whole:.1f} %"
    return f"**{words}**" if abs(found["difference"]) > found["half_width"] else words


def _range(shares: Sequence[float]) -> str:
    least, most = (100 * pick(shares) for pick in (min, max))
    return f"{100 * statistics.fmean(shares):.0f} % ({least:.0f} to {most:.0f})"


def _span(least_most: Sequence[float]) -> str:
    return " to ".join(f"{seconds:.2f}" for seconds in least_most)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def written_anew(page: str, read: Callable[[Path], Any] = lambda path: json.loads(path.read_text("utf-8"))) -> str:
    """Return a page with what the records give between its marks."""

    def part(found: re.Match[str]) -> str:
        path, make = PARTS[found[2]]
        return f"{found[1]}{make(read(path))}{found[3]}"

    return PART.sub(part, page)


def marked() -> dict[Path, str]:
    """Return the pages that have marks, by their paths."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    return {path: text for path in pages if PART.search(text := path.read_text("utf-8"))}


def main() -> int:
    """Write, or check."""
    differing = {path: new for path, text in marked().items() if (new := written_anew(text)) != text}
    for path, new in differing.items():
        print(f"{path.relative_to(ROOT)} says something else than its records")
        if "--check" not in sys.argv[1:]:
            path.write_text(new, "utf-8")
    return int("--check" in sys.argv[1:] and bool(differing))


if __name__ == "__main__":
    raise SystemExit(main())
