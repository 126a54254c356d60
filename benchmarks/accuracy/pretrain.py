"""Train a small MACE potential on two molecules of rMD17, to be fine-tuned on another one.

    python benchmarks/accuracy/pretrain.py RMD17 malonaldehyde salicylic -o mace_malonaldehyde_salicylic.model

``RMD17`` is a folder with ``MOLECULE_train.xyz`` or ``.xyz.gz``: energies of all electrons in eV under REF_energy,
forces in eV/Angstrom under REF_forces. The energies of isolated atoms are fitted to the labels. Takes minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from rmd17 import unpacked

from surgeon.opening.evaluation import evaluate
from surgeon_adapters.mace.models import build
from surgeon_adapters.mace.task import MaceTask

SYMBOLS = {"H": 1, "C": 6, "O": 8}
EPOCHS, LEARNING_RATE, BATCH = 30, 1e-2, 5


def fitted_energies(text: str) -> list[float]:
    """Return the energies per atom, in eV, whose sums are nearest to the labels; of least norm where there are many."""
    counts, energies, lines = [], [], text.splitlines()
    while lines:
        atoms = int(lines[0])
        kinds = [line.split()[0] for line in lines[2 : 2 + atoms]]
        counts.append([kinds.count(symbol) for symbol in SYMBOLS])
        energies.append(float(lines[1].split("REF_energy=")[1].split()[0]))
        lines = lines[2 + atoms :]
    return [float(value) for value in np.linalg.lstsq(np.array(counts, float), np.array(energies), rcond=None)[0]]


def untrained(energies: list[float]) -> torch.nn.Module:
    """Return a potential of 3,808 weights, all of them random, in float64."""
    block = {"class": "RealAgnosticResidualInteractionBlock"}
    settings = {
        "r_max": 4.5,
        "num_bessel": 6,
        "num_polynomial_cutoff": 5,
        "max_ell": 2,
        "interaction_cls": block,
        "interaction_cls_first": block,
        "num_interactions": 2,
        "num_elements": len(SYMBOLS),
        "hidden_irreps": {"irreps": "8x0e+8x1o"},
        "MLP_irreps": {"irreps": "8x0e"},
        "gate": {"gate": "silu"},
        "atomic_energies": {"array": [energies]},
        "avg_num_neighbors": 8.0,
        "atomic_numbers": list(SYMBOLS.values()),
        "correlation": 2,
        "radial_MLP": [16, 16],
        "atomic_inter_scale": {"array": 1.0},
        "atomic_inter_shift": {"array": 0.0},
    }
    torch.manual_seed(0)
    return build("ScaleShiftMACE", "float64", settings)


def train(model: torch.nn.Module, data: Path, validation: Path, epochs: int) -> torch.nn.Module:
    """Train by AdamW with a cosine, and return the model in float32."""
    task = MaceTask(data, validation=str(validation), test=str(validation), batch_size=BATCH, reference="keep")
    task = task.for_model(model)
    forces = torch.cat([batch["forces"] for batch in task.batches("train", 0)])
    with torch.no_grad():  # the usual start
        model.scale_shift.scale.fill_(float(forces.square().mean().sqrt()))
    model = model.float()
    task = MaceTask(data, validation=str(validation), test=str(validation), batch_size=BATCH).for_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0, amsgrad=True)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for batch in task.batches("train", epoch):
            optimizer.zero_grad()
            task.loss(task.forward(model, batch), batch).backward()
            optimizer.step()
        plan.step()
        if epoch % 5 == 4:
            print(f"epoch {epoch + 1}: {evaluate(model, task, 'validation')}", flush=True)
    return model


def main() -> None:
    """Train and write the pickled module, as MACE's own training writes it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("molecules", nargs="+")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{split}.xyz") for split in ("train", "valid")]
        for path in paths:
            text = "".join(unpacked(options.folder, molecule, path.stem) for molecule in options.molecules)
            path.write_text(text, encoding="utf-8")
        energies = fitted_energies(paths[0].read_text(encoding="utf-8"))
        model = train(untrained(energies), *paths, options.epochs)
    torch.save(model, options.out)


if __name__ == "__main__":
    main()
