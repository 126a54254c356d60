"""Training and eval mode of models, exported ones included, and the default dtype in which they are built and run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
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


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype while the context is open."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
