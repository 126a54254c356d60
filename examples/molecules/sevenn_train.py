"""SevenNet's own training with SOAP on the matrices inside the weights: its commands and files, our optimiser.

    python examples/molecules/sevenn_train.py train input.yaml

Takes what ``sevenn`` takes; its configuration then knows ``optimizer: soap``, with ``optim_param: {lr: 0.03}`` or other
arguments of ``surgeon.optim.Soap``. Loader, loss, scheduler and checkpoints stay SevenNet's.
"""

from __future__ import annotations

from typing import Any

import torch
from sevenn.main.sevenn import main
from sevenn.train.optim import optim_dict
from sevenn.train.trainer import Trainer

from surgeon import optim

usual_trainer = Trainer.from_config


def trainer_of(model: torch.nn.Module, config: dict[str, Any]) -> Trainer:
    """Make SevenNet's trainer, and tell its optimiser of the matrices of the model."""
    trainer = usual_trainer(model, config)
    if isinstance(trainer.optimizer, optim.Soap):
        trainer.optimizer.use_blocks(optim.find_blocks(trainer.model))
    return trainer


if __name__ == "__main__":
    optim_dict["soap"], Trainer.from_config = optim.Soap, staticmethod(trainer_of)
    main()
