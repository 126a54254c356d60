"""A network of torch_geometric's ``MessagePassing`` on scalars and vectors, as a task file: charges to a dipole."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import MessagePassing, global_add_pool

CHANNELS = 4


class Messages(MessagePassing):
    """Vectors from neighbours, mixed by a linear map on every edge, and directions scaled by scalars."""

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.mix = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.gate = nn.Linear(2 * CHANNELS, 2 * CHANNELS)

    def forward(self, x: Tensor, v: Tensor, edge_index: Tensor, pos: Tensor) -> tuple[Tensor, Tensor]:
        v = v + self.propagate(edge_index, x=x, v=v, pos=pos)
        return x + v.square().sum(1).tanh(), v

    def message(self, x_i: Tensor, x_j: Tensor, v_j: Tensor, pos_i: Tensor, pos_j: Tensor) -> Tensor:
        first, second = self.gate(torch.cat([x_i, x_j], dim=-1)).tanh().unsqueeze(1).chunk(2, dim=-1)
        return first * self.mix(v_j) + second * (pos_j - pos_i).unsqueeze(-1)


class Net(nn.Module):
    """Two rounds of messages and a sum over the nodes of each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, CHANNELS)
        self.layers = nn.ModuleList([Messages(), Messages()])
        self.readout = nn.Linear(CHANNELS, 1, bias=False)

    def forward(self, data: Data) -> Tensor:
        x, v = self.embed(data.charge), data.pos.new_zeros(data.pos.size(0), 3, CHANNELS)
        for layer in self.layers:
            x, v = layer(x, v, data.edge_index, data.pos)
        return global_add_pool(self.readout(v * x.unsqueeze(1)).squeeze(-1), data.batch, size=data.dipole.shape[0])


def graph(generator: torch.Generator, size: int) -> Data:
    """A fully connected cloud of charges with its dipole."""
    pos, charge = torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size)).T
    dipole = (charge * (pos - pos.mean(0))).sum(0, keepdim=True)
    return Data(pos=pos, charge=charge, edge_index=pairs[:, pairs[0] != pairs[1]], dipole=dipole)


class Task:
    """Batches of graphs of different sizes, more of them in each batch."""

    output_names = ("dipole",)

    def model(self) -> nn.Module:
        return Net()

    def batches(self, split: str, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed({"train": 100 * seed, "validation": 7, "test": 8}[split])
        for number in range(2, 6):
            yield Batch.from_data_list([graph(generator, 3 + (number + index) % 4) for index in range(number)])

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return (outputs - batch.dipole).square().mean()

    def act(self, g: Tensor, batch: Batch) -> Batch:
        moved = batch.clone()
        moved.pos, moved.dipole = (x @ g.T.to(x) for x in (batch.pos, batch.dipole))
        return moved

    def act_output(self, g: Tensor, outputs: Tensor) -> Tensor:
        return outputs @ g.T.to(outputs)


task = Task()
