"""The default dtype comes back, whatever happens meanwhile; exported programs change their mode, too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surgeon.support.modes import default_dtype, set_training


def test_the_default_dtype_comes_back_after_an_error() -> None:
    before = torch.get_default_dtype()

    def failing() -> None:
        with default_dtype(torch.float64):
            assert torch.zeros(1).dtype == torch.float64 != before
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert torch.get_default_dtype() == before


def test_a_module_that_refuses_its_mode_takes_it_in_all_parts() -> None:
    class Exported(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            raise NotImplementedError

    usual, exported = nn.Sequential(nn.Dropout()), Exported(nn.Dropout())
    for training in (False, True):
        for module in (usual, exported):
            set_training(module, training)
            assert [part.training for part in module.modules()] == [training] * 2
