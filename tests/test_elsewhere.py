"""Everything that is done to a network stays on its device: pretended, since most machines have none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import surgeon
from surgeon.opening.evaluation import evaluate
from surgeon_adapters.zoo.segnn.network import SEGNN, SegnnSettings
from surgeon_adapters.zoo.segnn.particles import graph_of
from tests.elsewhere import DEVICE, elsewhere
from tests.tiny import Net, TinyTask


class Careless(Net):
    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        return super().forward(scalars, vectors) * torch.ones(3)


def test_two_devices_do_not_meet() -> None:
    net, batch = Careless(), next(TinyTask(1).batches("train", 0))
    with elsewhere(net) as put:
        moved = put(batch)
        assert net.first.weight.device == moved["vectors"].device == DEVICE
        assert torch.zeros(2, device=moved["vectors"].device).device == DEVICE
        assert moved["vectors"].cpu().device.type == "cpu"
        with pytest.raises(RuntimeError, match="of tensors on xpu:0 and cpu"):
            TinyTask(1).forward(net, moved)


class Particles(TinyTask):
    """Three charged particles, and a small SEGNN that moves them."""

    def model(self) -> nn.Module:
        attributes = "1x0e+1x1o"
        return SEGNN(SegnnSettings("2x1o+1x0e", "4x0e+4x1o", "1x1o", attributes, attributes, 1, "2x0e"))

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        positions, velocities = torch.randn(2, 2, 3, 3)
        charges = torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, 1.0]])
        target = (positions + velocities).flatten(0, 1)
        yield {"positions": positions, "velocities": velocities, "charges": charges, "target": target}

    def forward(self, model: nn.Module, batch: dict[str, Tensor]) -> Any:
        return model(**graph_of(batch["positions"], batch["velocities"], batch["charges"], (1, 1), "integral"))


@pytest.mark.parametrize(("task", "dense"), [(TinyTask(1), True), (Particles(1), False)], ids=["e3nn", "SEGNN"])
def test_the_whole_way_on_another_device(task: TinyTask, dense: bool) -> None:
    torch.manual_seed(0)
    net, batch = task.model(), next(iter(task.batches("train", 0)))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with elsewhere(net) as put:
        moved = put(batch)
        plan = surgeon.find(net, "O3", moved, forward=task.forward)
        relaxation = surgeon.relax(net, plan, dense=dense, mode="fold", init_scale=0.5)
        assert {parameter.device for parameter in net.parameters()} == {DEVICE}
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        relaxation.set_progress(0.5)
        loss = task.loss(task.forward(net, moved), moved) + relaxation.penalty()
        loss.backward()
        optimizer.step()
        with relaxation.clean():
            assert evaluate(net, task, "validation")["mse"] > 0  # which moves the batches by itself
        surgeon.strip(relaxation, "fold")
        task.forward(net, moved)
    after = net.state_dict()
    assert after.keys() == before.keys()
    assert any(not torch.equal(after[name], before[name]) for name in before)
