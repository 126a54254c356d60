"""Adapter of the library ``arrows``: its layers, checkpoints and data."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy
import torch

from surgeon.algebra.representations.build import axes
from surgeon.errors import TaskError
from surgeon.registry import Adapter, Proposal
from surgeon.support.imports import call_with


class ArrowsAdapter(Adapter):
    name, groups = "arrows", ("SO3", "O3")

    def propose(self, module, group):  # which argument is linear, and how both ends transform: as c vectors
        if (type(module).__module__, type(module).__name__) != ("arrows", "Mix"):
            return None
        rho_out, rho_in = (axes(group, "c v", {"c": size}) for size in module.weight.shape)
        return Proposal("x", "linear", rho_in, rho_out, axes_in=(-2, -1), axes_out=(-2, -1))

    def rebuild(self, tensors):  # recognise a checkpoint by its keys, and build its architecture
        if not {"lift.weight", "layers.0.own.weight", "out.weight"} <= tensors.keys():
            return None
        import arrows

        return arrows.network_of(tensors)

    def reopen(self, path):  # an exported checkpoint has to open in the library, too
        import arrows

        return arrows.load(path) if arrows.is_checkpoint(path) else None

    def data_of(self, module, checkpoint):  # NAME.pt has its data in NAME.npz, so that no --task is needed
        data = checkpoint.with_suffix(".npz")
        return data if type(module).__name__ == "ArrowNet" and data.is_file() else None

    def task(self, data, arguments):
        return call_with(partial(ArrowsTask, data), arguments, "the task of arrows", TaskError)


@dataclass(frozen=True)
class ArrowsTask:
    data: Path
    batch_size: int = 8

    def batches(self, split, seed):  # six tenths to train, two each to validate and to test
        arrays = {key: torch.from_numpy(array) for key, array in numpy.load(self.data).items()}
        tenths = {"train": slice(0, 6), "validation": slice(6, 8), "test": slice(8, 10)}[split]
        rows = torch.cat(torch.arange(len(arrays["positions"])).tensor_split(10)[tenths])
        return [{key: array[part] for key, array in arrays.items()} for part in rows.split(self.batch_size)]

    def forward(self, model, batch):
        return model(batch["positions"], batch["velocities"])

    def loss(self, outputs, batch):
        return (outputs - batch["displacements"]).square().mean()

    def act(self, g, batch):
        return {key: vectors @ g.T.to(vectors) for key, vectors in batch.items()}

    def act_output(self, g, outputs):
        return outputs @ g.T.to(outputs)


adapter = ArrowsAdapter()
