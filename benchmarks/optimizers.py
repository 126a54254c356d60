"""Does SOAP on the matrices of multiplicities reach lower force errors than tuned AdamW?

A small e3nn potential is trained from scratch on frames of one molecule. Every arm gets the same grid of learning
rates, which is extended until the best value on the validation frames does not lie at an edge; the best one is run with
further seeds, the same for all arms, and judged on test frames once. The time of an optimiser's step and the size of
its state are measured beside it. Frames are those of ``MOLECULE_{train,valid,test}.xyz[.gz]`` in a folder, with
REF_energy in eV and REF_forces in eV/Angstrom::

    python benchmarks/optimizers.py rmd17 --molecule ethanol
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from e3nn import nn as enn
from e3nn import o3
from scipy.stats import t
from torch import Tensor, nn

from surgeon import optim
from surgeon.support.versions import provenance

RESULTS = Path(__file__).parent / "results" / "optimizers.json"
RATES = (3e-3, 1e-2, 3e-2)
STEP = math.sqrt(10.0)
CUTOFF = 5.0

ARMS: dict[str, Callable[[nn.Module, float], torch.optim.Optimizer]] = {
    "adamw": lambda net, rate: torch.optim.AdamW(net.parameters(), rate, weight_decay=0.0),
    "adamw, beta2 .95": lambda net, rate: torch.optim.AdamW(net.parameters(), rate, (0.9, 0.95), weight_decay=0.0),
    "soap": lambda net, rate: optim.soap(net, lr=rate),
    "muon": lambda net, rate: optim.muon(net, lr=rate),
}


@dataclass(frozen=True)
class Frames:
    """Frames of one molecule: kinds (a,), positions (f, a, 3), energies (f,) without their mean, forces (f, a, 3)."""

    kinds: Tensor
    positions: Tensor
    energies: Tensor
    forces: Tensor


def read(path: Path, most: int, mean: float | None = None) -> tuple[Frames, float]:
    """Read the first frames of an extended-XYZ file; energies are taken without ``mean``, or without their own."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as lines:
        text = lines.read().splitlines()
    atoms = int(text[0])
    kinds, positions, forces, energies = [], [], [], []
    for start in range(0, min(len(text), most * (atoms + 2)), atoms + 2):
        energies.append(float(text[start + 1].split("REF_energy=")[1].split()[0]))
        rows = [line.split() for line in text[start + 2 : start + 2 + atoms]]
        kinds = [row[0] for row in rows]
        positions.append([[float(value) for value in row[1:4]] for row in rows])
        forces.append([[float(value) for value in row[4:7]] for row in rows])
    names = sorted(set(kinds))
    energy = torch.tensor(energies, dtype=torch.float64)
    offset = float(energy.mean()) if mean is None else mean
    numbers = torch.tensor([names.index(kind) for kind in kinds])
    shifted = (energy - offset).float()
    return Frames(numbers, torch.tensor(positions), shifted, torch.tensor(forces)), offset


def find_file(folder: Path, molecule: str, split: str) -> Path:
    """Return the file of a split, packed or not."""
    found = sorted(folder.glob(f"{molecule}_{split}.xyz*"))
    if not found:
        raise SystemExit(f"expected {molecule}_{split}.xyz or .xyz.gz in {folder}, found none: name the folder")
    return found[0]


class Layer(nn.Module):
    """Messages along edges, an equivariant linear map, a gate."""

    def __init__(self, into: o3.Irreps, hidden: o3.Irreps, harmonics: o3.Irreps, radial: int) -> None:
        super().__init__()
        paths, outs = [], []
        for i, (mul, irrep) in enumerate(into):
            for j, (_, other) in enumerate(harmonics):
                for product in irrep * other:
                    if product in hidden:
                        paths.append((i, j, len(outs), "uvu", True))
                        outs.append((mul, product))
        between = o3.Irreps(outs)
        self.product = o3.TensorProduct(into, harmonics, between, paths, shared_weights=False, internal_weights=False)
        self.radial = enn.FullyConnectedNet([radial, 16, self.product.weight_numel], nn.functional.silu)
        scalars, gated = o3.Irreps(hidden[:1]), o3.Irreps(hidden[1:])
        gates = o3.Irreps(f"{gated.num_irreps}x0e")
        self.gate = enn.Gate(scalars, [nn.functional.silu], gates, [torch.sigmoid], gated)
        self.linear = o3.Linear(between, self.gate.irreps_in)
        self.own = o3.Linear(into, self.gate.irreps_in)

    def forward(self, x: Tensor, ends: Tensor, harmonics: Tensor, radial: Tensor) -> Tensor:
        messages = self.product(x[ends[0]], harmonics, self.radial(radial))
        summed = messages.new_zeros(len(x), messages.shape[1]).index_add(0, ends[1], messages) / 3
        result: Tensor = self.gate(self.linear(summed) + self.own(x))
        return result


class Potential(nn.Module):
    """Energy of a molecule as a sum over atoms, and forces as its gradient; all pairs of atoms are neighbours."""

    def __init__(self, kinds: int, channels: int = 16, layers: int = 2, radial: int = 8) -> None:
        super().__init__()
        self.radial, hidden = radial, o3.Irreps(f"{channels}x0e+{channels}x1o+{channels}x2e")
        self.harmonics = o3.Irreps.spherical_harmonics(2)
        self.embedding = nn.Embedding(kinds, channels)
        sizes = [o3.Irreps(f"{channels}x0e")] + [hidden] * layers
        self.layers = nn.ModuleList(Layer(into, hidden, self.harmonics, radial) for into in sizes[:-1])
        self.readout = o3.Linear(hidden, "1x0e")

    def forward(self, kinds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return energies (f,) and forces (f, a, 3) of positions (f, a, 3)."""
        positions = positions.detach().requires_grad_()
        frames, atoms, _ = positions.shape
        pairs = torch.tensor([(i, j) for i in range(atoms) for j in range(atoms) if i != j]).T
        ends = (pairs[:, None] + atoms * torch.arange(frames)[None, :, None]).flatten(1)
        flat = positions.flatten(0, 1)
        vectors = flat[ends[0]] - flat[ends[1]]
        lengths = vectors.norm(dim=1)
        waves = torch.arange(1, self.radial + 1) * math.pi / CUTOFF
        inside = 0.5 * (1 + torch.cos(math.pi * lengths.clamp(max=CUTOFF) / CUTOFF))
        radial = torch.sin(lengths[:, None] * waves) / lengths[:, None] * inside[:, None]
        harmonics = o3.spherical_harmonics(self.harmonics, vectors, True, "component")
        x = self.embedding(kinds).repeat(frames, 1)
        for layer in self.layers:
            x = layer(x, ends, harmonics, radial)
        energies = self.readout(x).view(frames, atoms).sum(1)
        (gradient,) = torch.autograd.grad(energies.sum(), positions, create_graph=True)
        return energies, -gradient


def errors(net: nn.Module, frames: Frames) -> tuple[float, float]:
    """Return the mean absolute errors of energies in meV and of forces in meV/Angstrom."""
    found = [net(frames.kinds, part) for part in frames.positions.split(50)]
    energies, forces = (torch.cat([each[n].detach() for each in found]) for n in (0, 1))
    return tuple(1e3 * float((a - b).abs().mean()) for a, b in ((energies, frames.energies), (forces, frames.forces)))  # type: ignore[return-value]


@dataclass(frozen=True)
class Size:
    """Optimiser steps, frames in a batch, channels of the potential."""

    steps: int
    batch: int
    channels: int


def train(arm: str, rate: float, seed: int, data: tuple[Frames, Frames], size: Size) -> dict[str, Any]:
    """Train once; cosine to 0 after a linear rise over 10 steps, the same in every arm."""
    torch.manual_seed(seed)
    frames, steps = data[0], size.steps
    net = Potential(int(frames.kinds.max()) + 1, size.channels)
    optimizer = ARMS[arm](net, rate)
    whole = own = 0.0
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        began = time.process_time()
        for group in optimizer.param_groups:
            rise = min(1.0, (step + 1) / (optim.WARMUP + 1))
            group["lr"] = rate * rise * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randperm(len(frames.energies), generator=order)[: size.batch]
        energies, forces = net(frames.kinds, frames.positions[chosen])
        atoms = len(frames.kinds)
        loss = ((energies - frames.energies[chosen]) / atoms).square().mean()
        loss = loss + (forces - frames.forces[chosen]).square().mean()
        net.zero_grad()
        loss.backward()
        stepping = time.process_time()
        optimizer.step()
        own, whole = own + time.process_time() - stepping, whole + time.process_time() - began
    parameters = sum(parameter.numel() for parameter in net.parameters())
    state = sum(v.numel() for slots in optimizer.state.values() for v in slots.values() if isinstance(v, Tensor))
    energy, force = errors(net, data[1])
    found = {"arm": arm, "rate": rate, "seed": seed, "energy": energy, "force": force}
    return {**found, "step_ms": 1e3 * whole / steps, "optimizer_ms": 1e3 * own / steps, "state": state / parameters}


def finite(run: dict[str, Any]) -> float:
    """The force error; infinite if the training diverged."""
    return float(run["force"]) if math.isfinite(run["force"]) else math.inf


def sweep(arm: str, data: tuple[Frames, Frames], size: Size) -> list[dict[str, Any]]:
    """Run the grid with seed 0 on validation frames, and more rates as long as the best is at an edge."""
    runs = [train(arm, rate, 0, data, size) for rate in RATES]
    while True:
        runs.sort(key=lambda run: run["rate"])
        best = min(range(len(runs)), key=lambda index: finite(runs[index]))
        if 0 < best < len(runs) - 1:
            return runs
        rate = runs[best]["rate"] * (STEP if best else 1 / STEP)
        print(f"{arm}: the best rate {runs[best]['rate']:.1e} is at an edge, {rate:.1e} is tried, too", flush=True)
        runs.append(train(arm, rate, 0, data, size))


def main() -> None:
    """Run and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--molecule", default="ethanol")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--test-frames", type=int, default=1000)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    arms, size = options.arms, Size(options.steps, options.batch, options.channels)
    training, mean = read(find_file(options.folder, options.molecule, "train"), 100)
    validation, _ = read(find_file(options.folder, options.molecule, "valid"), 50, mean)
    test, _ = read(find_file(options.folder, options.molecule, "test"), options.test_frames, mean)
    swept = {arm: sweep(arm, (training, validation), size) for arm in arms}
    runs: dict[str, list[dict[str, Any]]] = {}
    for arm in arms:
        rate = min(swept[arm], key=finite)["rate"]
        seeds = range(1, options.seeds + 1)
        runs[arm] = [train(arm, rate, seed, (training, test), size) for seed in seeds]
        print(arm, rate, [round(run["force"], 1) for run in runs[arm]], flush=True)
    blocks = [each.to_data() for each in optim.find_blocks(Potential(int(training.kinds.max()) + 1, size.channels))]
    record = {**provenance(), "molecule": options.molecule, "swept": swept, "runs": runs, "blocks": blocks}
    options.out.write_text(json.dumps(record, indent=1) + "\n")
    print(table(runs))


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Return the outcome as Markdown; differences are paired by seed, with 95 % intervals, against the first arm."""
    lines = ["| arm | rate | forces, meV/Å | against the first | energies, meV | step, ms | optimiser, ms | state |"]
    lines.append("|" + " --- |" * 8)
    reference = next(iter(runs.values()))
    for arm, mine in runs.items():

        def mean(name: str, mine: list[dict[str, Any]] = mine) -> float:
            return statistics.fmean(run[name] for run in mine)

        ratio = [math.log(a["force"] / b["force"]) for a, b in zip(mine, reference, strict=True)]
        spread = 0.0
        if len(ratio) > 1:
            spread = t.ppf(0.975, len(ratio) - 1) * statistics.stdev(ratio) / math.sqrt(len(ratio))
        change = f"{100 * statistics.fmean(ratio):+.0f} ± {100 * spread:.0f} %" if mine is not reference else ""
        cells = [arm, f"{mine[0]['rate']:.1e}", f"{mean('force'):.1f}", change, f"{mean('energy'):.1f}"]
        cells += [f"{mean('step_ms'):.1f}", f"{mean('optimizer_ms'):.1f}", f"{mean('state'):.1f} x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
