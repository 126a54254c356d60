"""A relaxed fine-tuning in a loop of one's own: `python examples/integrations/plain_loop.py`."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional

import surgeon

STEPS, BATCH = 300, 32


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
    features, targets = samples(seed=2, count=256)
    with torch.no_grad():
        return float(functional.mse_loss(model(features), targets))


def main() -> None:
    """Relax, train, strip."""
    torch.manual_seed(0)
    model = Net()
    keys, before = list(model.state_dict()), error(model)
    features, targets = samples(seed=1, count=STEPS * BATCH)

    plan = surgeon.find(model, "O3", features[:BATCH])
    relaxation = surgeon.relax(model, plan)
    optimizer = torch.optim.AdamW(
        [{"params": relaxation.base_parameters()}, {"params": relaxation.branch_parameters(), "lr": 5e-4}], lr=5e-3
    )
    for step, (x, y) in enumerate(zip(features.split(BATCH), targets.split(BATCH), strict=True)):
        relaxation.set_progress(step / STEPS)
        loss = functional.mse_loss(model(x), y) + 0.01 * relaxation.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with relaxation.clean():
        print(f"clean error {before:.4f} before, {error(model):.4f} after")

    surgeon.strip(model)
    print("the keys are the original's:", list(model.state_dict()) == keys)


if __name__ == "__main__":
    main()
