"""One callback in Lightning: `python examples/integrations/lightning_callback.py`."""

from __future__ import annotations

import tempfile

import lightning.pytorch as pl
import torch
from e3nn import o3
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from surgeon.integrations.lightning import RelaxationCallback

EPOCHS, BATCH = 4, 32


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


class Module(pl.LightningModule):
    """An ordinary LightningModule that knows nothing of this."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Net()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss."""
        x, y = batch
        return functional.mse_loss(self.network(x), y)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Log the error of the clean model."""
        x, y = batch
        self.log("error", functional.mse_loss(self.network(x), y))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser; the branches are among the parameters by now."""
        return torch.optim.AdamW(self.parameters(), lr=5e-3)


def main() -> None:
    """Train with the callback."""
    torch.manual_seed(0)
    module = Module()
    keys = list(module.state_dict())
    train = DataLoader(TensorDataset(*samples(seed=1, count=2048)), BATCH, shuffle=True)
    validation = DataLoader(TensorDataset(*samples(seed=2, count=256)), 256)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = ModelCheckpoint(folder, monitor="error")
        trainer = pl.Trainer(
            max_epochs=EPOCHS,
            callbacks=[RelaxationCallback("O3", module="network"), checkpoints],
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
        )
        before = trainer.validate(module, validation, verbose=False)[0]["error"]
        trainer.fit(module, train, validation)
        after = trainer.validate(module, validation, verbose=False)[0]["error"]
        best = torch.load(checkpoints.best_model_path, weights_only=True)
    print(f"clean error {before:.4f} before, {after:.4f} after")
    print("the keys are the original's:", list(module.state_dict()) == keys)
    print("those of the checkpoint are, too:", list(best["state_dict"]) == keys)


if __name__ == "__main__":
    main()
