"""Peak memory, CPU seconds and runs of the network when branches are inserted, against a training step of it.

Every figure is that of a process of its own, on one thread: one opens a checkpoint and makes a training step with Adam,
the other opens it and plans, all that ``surgeon relax --dry-run`` does. The networks are some of e3nn's layers with
about 0.1, 1, 5 and 25 million parameters, MACE potentials for up to 89 elements, and the SevenNet-0 that comes with the
package ``sevenn``, each where its library is installed. CPU seconds are those of a machine that may have had other
work::

    python benchmarks/find_memory.py
    .venv-mace/bin/python benchmarks/find_memory.py --family mace
    .venv-sevennet/bin/python benchmarks/find_memory.py --family sevennet
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from insertion import peak_mebibytes
from torch import Tensor, nn

from surgeon.opening.evaluation import fitted
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.relaxing import relax_checkpoint
from surgeon.opening.task_calls import task_batches, task_forward, task_loss
from surgeon.support.versions import machine, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "find_memory.json"
FRAMES = ROOT / "examples" / "molecules" / "ethanol_gfn2.xyz"
LARGEST = "128x0e+128x1o+128x2e, 89 elements"
SIZES = {
    "e3nn": tuple(f"{copies}x0e+{copies}x1o+{copies}x2e" for copies in (38, 137, 306, 685)),
    "mace": ("16x0e+16x1o, 20 elements", "64x0e+64x1o, 60 elements", "128x0e+128x1o, 89 elements", LARGEST),
    "sevennet": ("SevenNet-0",),
}
ATOMS, KINDS, SPHERICAL = 16, 4, "1x0e+1x1o+1x2e"


class Layer(nn.Module):
    """Messages from all other atoms, and a product with the atom's own kind."""

    def __init__(self, irreps: str) -> None:
        super().__init__()
        from e3nn import o3

        paths, out = [], []
        for i, (copies, one) in enumerate(o3.Irreps(irreps)):
            for j, (_, other) in enumerate(o3.Irreps(SPHERICAL)):
                for degree in one * other:
                    if degree in o3.Irreps(irreps):
                        paths.append((i, j, len(out), "uvu", True))
                        out.append((copies, degree))
        self.up = o3.Linear(irreps, irreps)
        self.message = o3.TensorProduct(irreps, SPHERICAL, out, paths, shared_weights=False, internal_weights=False)
        self.radial = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, self.message.weight_numel))
        self.down = o3.Linear(out, irreps)
        self.own = o3.FullyConnectedTensorProduct(irreps, f"{KINDS}x0e", irreps)

    def forward(
        self, x: Tensor, kinds: Tensor, edges: tuple[Tensor, Tensor], spherical: Tensor, radial: Tensor
    ) -> Tensor:
        sender, receiver = edges
        messages = self.message(self.up(x)[sender], spherical, self.radial(radial))
        gathered = messages.new_zeros(len(x), messages.shape[1]).index_add(0, receiver, messages)
        y = self.own(x, kinds) + self.down(gathered) / ATOMS
        return y * torch.sigmoid(y.square().mean(1, keepdim=True))


class Network(nn.Module):
    """Two layers on atoms that all see one another, and a scalar of each."""

    def __init__(self, irreps: str) -> None:
        super().__init__()
        from e3nn import o3

        self.embedding = o3.Linear(f"{KINDS}x0e", irreps)
        self.layers = nn.ModuleList([Layer(irreps), Layer(irreps)])
        self.readout = o3.Linear(irreps, "0e")

    def forward(self, positions: Tensor, kinds: Tensor) -> Tensor:
        from e3nn import o3

        edges = torch.cartesian_prod(torch.arange(len(kinds)), torch.arange(len(kinds)))
        sender, receiver = edges[edges[:, 0] != edges[:, 1]].T
        vectors = positions[sender] - positions[receiver]
        spherical = o3.spherical_harmonics(SPHERICAL, vectors, normalize=True, normalization="component")
        radial = torch.exp(-((vectors.norm(dim=1, keepdim=True) - torch.arange(8).to(vectors)) ** 2))
        x = self.embedding(kinds)
        for layer in self.layers:
            x = layer(x, kinds, (sender, receiver), spherical, radial)
        return self.readout(x)


class Task:
    """Random atoms, and the sums of their distances."""

    def batches(self, split: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield three frames."""
        for number in range(3):
            generator = torch.Generator().manual_seed(number)
            kinds = torch.eye(KINDS)[torch.arange(ATOMS) % KINDS]
            yield 2 * torch.randn(ATOMS, 3, generator=generator), kinds

    def forward(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return a number for every atom."""
        return model(*batch)

    def loss(self, outputs: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the mean square."""
        return (outputs[:, 0] - batch[0].norm(dim=1)).square().mean()

    def act(self, g: Tensor, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Turn positions."""
        return batch[0] @ g.to(batch[0]).T, batch[1]

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        """Leave invariants."""
        return outputs


def opening(family: str, size: str, folder: Path) -> tuple[Path, OpenOptions]:
    """Return the checkpoint of a size, and how it is opened."""
    if family == "e3nn":
        return folder / "network.pt", OpenOptions(task=f"{Path(__file__).stem}:Task", build=lambda: Network(size))
    if family == "mace":
        options = OpenOptions(task=f"mace:{FRAMES}", task_arguments={"batch_size": 1}, trust_pickle=True)
        return folder / "network.model", options
    import sevenn

    found = Path(sevenn.__file__).parent / "pretrained_potentials/SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth"
    return found, OpenOptions(task=f"sevennet:{FRAMES}", task_arguments={"batch_size": 1}, trust_pickle=True)


def write(family: str, size: str, folder: Path) -> None:
    """Write the checkpoint of a size."""
    torch.manual_seed(0)
    if family == "e3nn":
        torch.save(Network(size).state_dict(), folder / "network.pt")
    if family == "mace":
        torch.save(_mace(size), folder / "network.model")


def _mace(size: str) -> nn.Module:
    import numpy

    from surgeon.support.e3nn_compat import import_e3nn
    from surgeon_adapters.mace.models import import_mace

    o3, modules = import_e3nn(), import_mace()
    irreps, count = size.split(", ")[0], int(size.split(", ")[1].split()[0])
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, interaction_cls=block,
        interaction_cls_first=block, num_interactions=2, num_elements=count, hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"), gate=nn.functional.silu, atomic_energies=numpy.zeros(count),
        avg_num_neighbors=8.0, atomic_numbers=[*range(1, count + 1)], correlation=3, radial_type="bessel",
        radial_MLP=[64, 64, 64], atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip


def train(path: Path, options: OpenOptions) -> dict[str, Any]:
    """Open a checkpoint, and make one training step."""
    workspace = open_path(path, options)
    model, task = workspace.model.train(), workspace.require_task().task
    opened = peak_mebibytes()
    optimizer = torch.optim.Adam(model.parameters())
    batch = fitted(next(iter(task_batches(task, "train", 0))), model)
    task_loss(task, task_forward(task, model, batch), batch).backward()
    optimizer.step()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "opened_mib": round(opened),
        "training_step_mib": round(peak_mebibytes()),
    }


def plan(path: Path, options: OpenOptions) -> dict[str, Any]:
    """Open a checkpoint, and insert branches."""
    told: list[str] = []
    start = time.process_time()
    done = relax_checkpoint(path, None, options=dataclasses.replace(options, stage=told.append))
    runs = re.search(r"after (\d+) runs", " ".join(told))
    return {
        "sites": len(done.plan.sites),
        "folding": sum(site.fold is not None for site in done.plan.sites),
        "runs": int(runs[1]) if runs else None,
        "cpu_s": round(time.process_time() - start, 1),
        "relax_mib": round(peak_mebibytes()),
    }


def apart(*arguments: str) -> dict[str, Any]:
    """Run this file in a fresh process, so that its peak is its own."""
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def measure(family: str, size: str) -> dict[str, Any]:
    """Return all figures of one network; the bound is twice what a training step takes, and half a gibibyte."""
    with tempfile.TemporaryDirectory() as folder:
        given = ("--family", family, "--size", size, "--folder", folder)
        apart("--one", "write", *given)
        found = {"family": family, "size": size, **apart("--one", "train", *given), **apart("--one", "plan", *given)}
    bound = 2 * found["training_step_mib"] + 512
    return {**found, "bound_mib": bound, "within": found["relax_mib"] <= bound}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=SIZES, default="e3nn", help="which networks; they are added to the record")
    parser.add_argument("--size", help="one of their sizes")
    parser.add_argument("--one", choices=("write", "train", "plan"), help="do one thing in this process and print it")
    parser.add_argument("--folder", type=Path, help="where the checkpoint of --one is")
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        if options.one == "write":
            found = write(options.family, options.size, options.folder) or {}
        else:
            act = train if options.one == "train" else plan
            found = act(*opening(options.family, options.size, options.folder))
        print(json.dumps(found))
        return
    sizes = [options.size] if options.size else SIZES[options.family]
    record = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    record[options.family] = {
        "command": " ".join(["python", "benchmarks/find_memory.py", *sys.argv[1:]]),
        "date": f"{datetime.date.today():%-d %B %Y}",
        "machine": {**machine(), "threads": 1},
        "versions": versions(),
        "runs": [measure(options.family, size) for size in sizes],
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record[options.family], indent=2))


if __name__ == "__main__":
    main()
