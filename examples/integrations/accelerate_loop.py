"""The loop with accelerate and accumulated gradients: `accelerate launch examples/integrations/accelerate_loop.py`."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import surgeon

STEPS, BATCH, PARTS = 200, 32, 2


class Net(nn.Module):
    """Two scalars and two vectors per sample in, one vector out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = o3.Linear("2x0e+2x1o", "8x0e+8x1o")
        self.second = o3.Linear("8x1o", "1x1o")

    def forward(self, x: Tensor) -> Tensor:
        """Map features of shape (b, 8) to vectors of shape (b, 3)."""
        mixed = self.first(x)
        gated = torch.tanh(mixed[:, :8]).unsqueeze(2) * mixed[:, 8:].unflatten(1, (8, 3))
        result: Tensor = self.second(gated.flatten(1))
        return result


def samples(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Return features (count, 8) and targets (count, 3)."""
    generator = torch.Generator().manual_seed(seed)
    scalars, vectors = torch.randn(count, 2, generator=generator), torch.randn(count, 2, 3, generator=generator)
    targets = vectors[:, 0] * scalars[:, :1] + 0.3 * vectors[:, 1]
    return torch.cat([scalars, vectors.flatten(1)], dim=1), targets


def error(model: nn.Module) -> float:
    """Return the mean squared error on data that training does not see."""
    device = next(model.parameters()).device
    features, targets = (tensor.to(device) for tensor in samples(seed=2, count=256))
    with torch.no_grad():
        return float(functional.mse_loss(model(features), targets))


def main() -> None:
    """Relax before `prepare`, train, strip after unwrapping."""
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=PARTS)
    model = Net()
    keys, before = list(model.state_dict()), error(model)
    data = TensorDataset(*samples(seed=1, count=STEPS * PARTS * BATCH))

    relaxation = surgeon.relax(model, surgeon.find(model, "O3", data[:BATCH][0]))
    groups = [{"params": relaxation.base_parameters()}, {"params": relaxation.branch_parameters(), "lr": 5e-4}]
    optimizer = torch.optim.AdamW(groups, lr=5e-3)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(data, BATCH))
    steps_done, steps = 0, len(loader) // PARTS
    for x, y in loader:
        with accelerator.accumulate(wrapped):
            relaxation.set_progress(steps_done / steps)
            loss = functional.mse_loss(wrapped(x), y)
            if accelerator.sync_gradients:  # an optimiser step ends here; accelerate divides the loss by PARTS
                loss = loss + PARTS * 0.01 * relaxation.penalty()
                steps_done += 1
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    model = accelerator.unwrap_model(wrapped)
    with relaxation.clean():
        accelerator.print(f"clean error {before:.4f} before, {error(model):.4f} after")

    surgeon.strip(model)
    accelerator.print("the keys are the original's:", list(model.state_dict()) == keys)


if __name__ == "__main__":
    main()
