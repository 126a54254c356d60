"""A relaxed tiny network, ready to train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.finding.find import find
from surgeon.plan import Plan
from surgeon.training.arms import arm_named
from surgeon.training.engine import Finetuner
from surgeon.training.state import FinetuneResult
from tests.tiny import Net, TinyTask

Made = tuple[Net, Relaxation | None]


@pytest.fixture
def task() -> TinyTask:
    return TinyTask()


@pytest.fixture
def make() -> Callable[..., Made]:
    """Return a maker of equal networks, relaxed for an arm."""
    torch.manual_seed(0)
    weights = Net().state_dict()

    def made(arm: str = "drop", init_scale: float = 0.0, penalty_form: str = "gram") -> Made:
        net = Net()
        net.load_state_dict(weights)
        mode = arm_named(arm).mode
        if mode is None:
            return net, None
        relaxation = relax(net, plan_of(net), dense=True, mode=mode, init_scale=init_scale, penalty_form=penalty_form)  # type: ignore[arg-type]
        return net, relaxation

    return made


def plan_of(net: Net) -> Plan:
    batch = next(iter(TinyTask().batches("validation", 0)))
    return find(net, "O3", batch, forward=lambda model, x: model(x["scalars"], x["vectors"]))


def train(*given: Any) -> FinetuneResult:
    """Train a network, a task, settings, an arm, and perhaps what the arm adds and what watches the steps."""
    return Finetuner(*given[:5]).run(*given[5:])
