"""A training in two processes, for test_lightning_ddp.py: writes the weights of every process to the given folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from surgeon.integrations.lightning import RelaxationCallback
from tests.integrations.loops import batches
from tests.integrations.modules import Module, trainer

# Lightning's own sampler shuffles.
OPTIONS = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}


def main(folder: Path, weight: float) -> None:
    """Each process gets every second sample of the same batches of 8."""
    module = Module()
    together = [torch.cat(tensors) for tensors in zip(*batches(12), strict=True)]
    data = torch.utils.data.TensorDataset(*together)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=2, rank=rank, shuffle=False)
    running = trainer(RelaxationCallback("O3", penalty_weight=weight), **OPTIONS)
    running.fit(module, torch.utils.data.DataLoader(data, batch_size=4, sampler=sampler))
    torch.save(module.network.state_dict(), folder / f"{running.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
