"""Write the shipped ethanol frames as MD17 files, and train a small Equiformer on those labelled with GFN1-xTB.

Run it in any folder: ``python PATH/equiformer.py``. It writes ``ethanol_gfn1.npz``, ``ethanol_gfn2.npz`` and
``equiformer.pth.tar``, a checkpoint of the form that the public code of Equiformer writes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from md17_files import write_both

from surgeon_adapters.zoo.equiformer import build
from surgeon_adapters.zoo.equiformer.task import EquiformerTask

SETTINGS = {
    "embedding": "16x0e+8x1e",
    "harmonics": "1x0e+1x1e",
    "feature": "24x0e",
    "head": "8x0e+4x1e",
    "mlp": "32x0e+16x1e",
    "layers": 2,
    "heads": 2,
    "num_basis": 16,
    "radial": [16, 16],
}


def pretrain(data: Path, epochs: int) -> torch.nn.Module:
    """Train on a file with the published loss."""
    torch.manual_seed(0)
    model = build(settings=SETTINGS)
    task = EquiformerTask(data).for_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-6)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        for batch in task.batches("train", epoch):
            optimizer.zero_grad()
            task.loss(task.forward(model, batch), batch).backward()
            optimizer.step()
        schedule.step()
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path.cwd())
    options = parser.parse_args()
    write_both(options.out)
    trained = pretrain(options.out / "ethanol_gfn1.npz", options.epochs)
    torch.save({"state_dict": trained.state_dict()}, options.out / "equiformer.pth.tar")
