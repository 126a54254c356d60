"""Training and eval mode of models, exported ones included."""

from __future__ import annotations

from torch import nn


def set_training(module: nn.Module, training: bool) -> None:
    """Put a module into training or eval mode, in place.

    The module of a ``torch.export`` program was traced in one mode and refuses to change; only its flags are set.
    """
    try:
        module.train(training)
    except NotImplementedError:
        for part in module.modules():
            part.training = training
