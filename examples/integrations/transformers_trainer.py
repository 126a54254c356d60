"""The Trainer of transformers: `python examples/integrations/transformers_trainer.py`."""

from __future__ import annotations

import tempfile

import torch
from e3nn import o3
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from transformers import TrainingArguments

from surgeon.integrations.settings import RelaxationSettings
from surgeon.integrations.transformers import RelaxedTrainer

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


class Samples(Dataset[dict[str, Tensor]]):
    """The same as the Trainer takes it: one dict per sample."""

    def __init__(self, seed: int, count: int) -> None:
        self.features, self.labels = samples(seed, count)

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"features": self.features[index], "labels": self.labels[index]}


class ModelWithLoss(nn.Module):
    """The network and its loss, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Net()

    def forward(self, features: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the loss, shape (), and the predictions."""
        predictions = self.network(features)
        return {"loss": functional.mse_loss(predictions, labels), "predictions": predictions}


def main() -> None:
    """Train with the relaxed Trainer."""
    torch.manual_seed(0)
    model = ModelWithLoss()
    keys = list(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        trainer = RelaxedTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=EPOCHS,
                per_device_train_batch_size=BATCH,
                learning_rate=5e-3,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=Samples(seed=1, count=2048),
            eval_dataset=Samples(seed=2, count=256),
            relaxation=RelaxationSettings("O3", module="network"),
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        print(f"clean error {before:.4f} before, {trainer.evaluate()['eval_loss']:.4f} after")
        print("the keys are the original's:", list(model.state_dict()) == keys)


if __name__ == "__main__":
    main()
