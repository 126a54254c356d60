"""An e3nn network on torch_geometric's batches, as a task file: charges and positions to an energy and a dipole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from surgeon.support.e3nn_compat import import_e3nn

o3 = import_e3nn()

HIDDEN, SIZES = "4x0e+4x1o", (4, 5, 3)


class Layer(nn.Module):
    """Sends features along edges, mixed by their direction; it is given the whole batch, with features inside."""

    def __init__(self, irreps: str) -> None:
        super().__init__()
        self.linear = o3.Linear(irreps, irreps)
        self.product = o3.FullyConnectedTensorProduct(irreps, "1x0e+1x1o", irreps)

    def forward(self, batch: Any) -> Any:
        source, target = batch.edge_index
        direction = o3.spherical_harmonics("1x0e+1x1o", batch.pos[source] - batch.pos[target], True, "component")
        messages = self.product(batch.x[source], direction)
        sums = torch.zeros_like(batch.x).index_add(0, target, messages)
        scalars, vectors = self.linear(batch.x + sums).split([4, 12], dim=1)
        gates = torch.tanh(scalars).repeat_interleave(3, dim=1)
        result = batch.clone()
        result.x = torch.cat([torch.tanh(scalars), gates * vectors], dim=1)
        return result


class Net(nn.Module):
    """Two layers, and a sum over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = o3.Linear("3x0e+1x1o", HIDDEN)
        self.layers = nn.ModuleList([Layer(HIDDEN), Layer(HIDDEN)])
        self.readout = o3.Linear(HIDDEN, "1x0e+1x1o")

    def forward(self, batch: Any) -> dict[str, Tensor]:
        centres = torch.zeros(batch.num_graphs, 3).to(batch.pos).index_add(0, batch.batch, batch.pos)
        counts = torch.bincount(batch.batch, minlength=batch.num_graphs)[:, None]
        given = batch.clone()
        given.x = self.embed(torch.cat([batch.charge, batch.pos - (centres / counts)[batch.batch]], dim=1))
        for layer in self.layers:
            given = layer(given)
        rows = self.readout(given.x)
        sums = rows.new_zeros(batch.num_graphs, 4).index_add(0, batch.batch, rows)
        return {"energy": sums[:, :1], "dipole": sums[:, 1:]}


def graph(generator: torch.Generator, size: int) -> Data:
    """A fully connected cloud of charges, with its dipole and an energy."""
    pos = torch.randn(size, 3, generator=generator)
    kind = torch.randint(3, (size,), generator=generator)
    charge = nn.functional.one_hot(kind, 3).to(pos)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size)).T
    signed = charge @ torch.tensor([1.0, -1.0, 0.5])
    dipole = (signed[:, None] * (pos - pos.mean(0))).sum(0, keepdim=True)
    edges = pairs[:, pairs[0] != pairs[1]]
    return Data(
        pos=pos, charge=charge, edge_index=edges, dipole=dipole, energy=dipole.norm(dim=1, keepdim=True), name="q"
    )


class Task:
    """Batches of three graphs of different sizes."""

    output_names = ("energy", "dipole")

    def model(self) -> nn.Module:
        return Net()

    def batches(self, split: str, seed: int) -> Iterator[Batch]:
        first = {"train": 100 * seed, "validation": 7, "test": 8}[split]
        for number in range(3):
            generator = torch.Generator().manual_seed(first + 10 * number)
            yield Batch.from_data_list([graph(generator, size) for size in SIZES])

    def loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        energy = (outputs["energy"] - batch.energy).square().mean()
        return energy + (outputs["dipole"] - batch.dipole).square().mean()

    def act(self, g: Tensor, batch: Batch) -> Batch:
        moved, matrix = batch.clone(), g.to(batch.pos)
        moved.pos, moved.dipole = batch.pos @ matrix.T, batch.dipole @ matrix.T
        return moved

    def act_output(self, g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**outputs, "dipole": outputs["dipole"] @ g.T.to(outputs["dipole"])}


task = Task()
