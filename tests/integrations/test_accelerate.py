"""accelerate, as docs/training.md and the example use it, does what the loop by hand does."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import surgeon
from tests.integrations.loops import RATE, batches, largest_difference, network, plain_loop

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed: make test-integrations")

EXACT = 1e-9


def accelerated_loop(parts: int, multiplied: bool = True) -> dict[str, torch.Tensor]:
    """The loop of the example; without ``multiplied`` the penalty is divided like a loss."""
    data, model = batches(24), network()
    accelerator = accelerate.Accelerator(gradient_accumulation_steps=parts, cpu=True)
    relaxation = surgeon.relax(model, surgeon.find(model, "O3", *data[0][:2]))
    groups = [
        {"params": relaxation.base_parameters()},
        {"params": relaxation.branch_parameters(), "lr": 0.1 * RATE},
    ]
    together = TensorDataset(*(torch.cat(tensors) for tensors in zip(*data, strict=True)))
    wrapped, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(groups, lr=RATE), DataLoader(together, batch_size=8)
    )
    steps_done, steps = 0, len(data) // parts
    for scalars, vectors, target in loader:
        with accelerator.accumulate(wrapped):
            relaxation.set_progress(steps_done / steps)
            loss = functional.mse_loss(wrapped(scalars, vectors), target)
            if accelerator.sync_gradients:
                loss = loss + (parts if multiplied else 1) * 0.5 * relaxation.penalty()
                steps_done += 1
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    model = accelerator.unwrap_model(wrapped)
    surgeon.strip(model)
    return model.state_dict()


@pytest.mark.parametrize("parts", [1, 3])
def test_it_is_the_plain_loop(parts: int) -> None:
    found = accelerated_loop(parts)
    for number in (1, 3):
        expected = plain_loop(network(), batches(24), parts=number, weight=0.5, scale="absolute")
        assert (largest_difference(found, expected) < EXACT) == (number == parts)


def test_a_penalty_that_is_divided_like_a_loss_is_another() -> None:
    assert largest_difference(accelerated_loop(3), accelerated_loop(3, multiplied=False)) > 1e3 * EXACT
