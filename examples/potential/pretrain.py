"""Train the potential on other molecules and on other labels of ethanol, and pack the frames that the task needs.

    python pretrain.py FOLDER

FOLDER holds frames of revised MD17 as ``MOLECULE_{train,valid,test}.xyz`` or ``.xyz.gz`` with REF_energy in eV and
REF_forces in eV/Angstrom; ethanol's other labels (GFN1-xTB, 60 frames) are those of ``examples/molecules``. Takes about
ten minutes on one core; overwrites the checkpoint, its settings and the frames.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from potential import SYMBOLS, Potential
from safetensors.torch import save_file
from torch import Tensor

from surgeon.support.versions import provenance

HERE = Path(__file__).parent
TRAINED_ON = ("aspirin", "malonaldehyde", "salicylic")
OTHER_LABELS = HERE.parent / "molecules" / "ethanol_gfn1.xyz"
HELD_OUT = "ethanol"
TEST_FRAMES = 300
Array = NDArray[Any]


@dataclass(frozen=True)
class Settings:
    """How the checkpoint is trained: Adam, a linear rise, then a cosine to 0; one molecule per batch."""

    steps: int = 5000
    batch: int = 5
    rate: float = 1e-2
    warmup: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Frames:
    """Frames of one molecule: kinds (a,), positions (f, a, 3) in Angstrom, energies (f,) in eV, forces (f, a, 3)."""

    kinds: Array
    positions: Array
    energies: Array
    forces: Array

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return everything for torch, in float32; energies without their mean, which float32 would round."""
        shifted = self.energies - self.energies.mean()
        floats = (torch.tensor(values, dtype=torch.float32) for values in (self.positions, shifted, self.forces))
        positions, energies, forces = floats
        return torch.tensor(self.kinds).repeat(len(energies), 1), positions, energies, forces


def find_file(folder: Path, molecule: str, split: str) -> Path:
    """Return the file of a split, packed or not."""
    found = sorted(folder.glob(f"{molecule}*_{split}.xyz*"))
    if not found:
        raise SystemExit(f"expected {molecule}_{split}.xyz or .xyz.gz in {folder}, found none: name the folder")
    return found[0]


def read(path: Path, most: int | None = None) -> Frames:
    """Read the first frames of an extended-XYZ file of one molecule; isolated atoms are left out."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as file:
        lines = iter(file.read().splitlines())
    frames = [(next(lines), list(islice(lines, int(count)))) for count in lines]
    frames = [(comment, rows) for comment, rows in frames if len(rows) > 1][:most]
    energies = [float(comment.split("REF_energy=")[1].split()[0]) for comment, _ in frames]
    split = [[row.split() for row in rows] for _, rows in frames]
    kinds = [SYMBOLS.index(row[0]) for row in split[0]]
    numbers = np.array([[[float(value) for value in row[1:7]] for row in rows] for rows in split])
    return Frames(np.array(kinds), numbers[..., :3], np.array(energies), numbers[..., 3:])


def rate_at(step: int, settings: Settings) -> float:
    """Return the learning rate of a step."""
    rise = min(1.0, (step + 1) / settings.warmup)
    return settings.rate * rise * (1 + math.cos(math.pi * step / settings.steps)) / 2


def errors(net: Potential, frames: Frames) -> tuple[Tensor, Tensor]:
    """Return output minus label of energies (f,), each without its mean, and of forces (f, a, 3)."""
    kinds, positions, energies, forces = frames.tensors()
    found = [net(kinds[: len(part)], part) for part in positions.split(25)]
    energy, force = (torch.cat([each[n].detach() for each in found]) for n in (0, 1))
    return energy - energy.mean() - energies, force - forces


def measured(net: Potential, frames: Frames) -> dict[str, float]:
    """Return mean absolute errors: energies per atom in meV without their mean, forces in meV/Angstrom."""
    net.eval()
    energy, force = (1e3 * float(error.abs().mean()) for error in errors(net, frames))
    net.train()
    return {"energy_mae": energy / len(frames.kinds), "force_mae": force}


def train(folder: Path, settings: Settings) -> Potential:
    """Train on energies of a batch without their mean, and on forces; every step takes the next molecule."""
    torch.manual_seed(settings.seed)
    net, order = Potential(), torch.Generator().manual_seed(settings.seed)
    files = [*(find_file(folder, name, "train") for name in TRAINED_ON), OTHER_LABELS]
    molecules = [read(file).tensors() for file in files]
    optimizer = torch.optim.Adam(net.parameters(), settings.rate)
    for step in range(settings.steps):
        kinds, positions, energies, forces = molecules[step % len(molecules)]
        rows = torch.randperm(len(energies), generator=order)[: settings.batch]
        optimizer.param_groups[0]["lr"] = rate_at(step, settings)
        energy, force = net(kinds[rows], positions[rows])
        error = (energy - energies[rows]) / kinds.shape[1]
        loss = (error - error.mean()).square().mean() + (force - forces[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 500 == 499:
            valid = {name: measured(net, read(find_file(folder, name, "valid"))) for name in TRAINED_ON}
            print(step + 1, {name: round(each["force_mae"], 1) for name, each in valid.items()}, flush=True)
    return net


def pack(folder: Path, target: Path) -> None:
    """Write the frames of the molecule that was held out; energies less the mean of the training frames."""
    splits = {"train": "train", "validation": "valid", "test": "test"}
    read_in = {split: read(find_file(folder, HELD_OUT, name), TEST_FRAMES) for split, name in splits.items()}
    mean = read_in["train"].energies.mean()
    arrays: dict[str, Array] = {"kinds": read_in["train"].kinds.astype(np.int8)}
    for split, frames in read_in.items():
        named = {"positions": frames.positions, "energies": frames.energies - mean, "forces": frames.forces}
        arrays |= {f"{split}_{name}": values.astype(np.float32) for name, values in named.items()}
    np.savez_compressed(target, **arrays)  # type: ignore[arg-type]


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder, settings = parser.parse_args().folder, Settings()
    torch.set_num_threads(1)
    began = time.process_time()
    net = train(folder, settings)
    test = {name: measured(net, read(find_file(folder, name, "test"), TEST_FRAMES)) for name in (*TRAINED_ON, HELD_OUT)}
    record = {
        "settings": vars(settings),
        "trained on": [*TRAINED_ON, OTHER_LABELS.name],
        "test": test,
        "cpu_seconds": round(time.process_time() - began),
        **provenance(),
        "command": ["python", "pretrain.py", "FOLDER"],
    }
    save_file(net.state_dict(), HERE / "potential.safetensors")
    (HERE / "potential.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    pack(folder, HERE / "ethanol.npz")
    print(json.dumps(test, indent=1))


if __name__ == "__main__":
    main()
