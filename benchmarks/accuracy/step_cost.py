"""What a training step costs with each optimiser, in one process, so that other work disturbs all alike."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Collection

from surgeon.optim.adam import MatrixOptimizer
from surgeon.optim.blocks import find_blocks
from surgeon.training.arms import Contender
from surgeon.training.comparison import Comparison
from surgeon.training.optimizers import make_optimizer


def step_seconds(comparison: Comparison, arms: Collection[str], rounds: int = 40) -> dict[str, float]:
    """Measure what a step of each arm takes, in turn on one model and batch, so that other work disturbs all alike.

    Returns:
        Arm to seconds of the processor, means of the middle half: forward and backward, which all share, and the
        optimiser's own.
    """
    model, task = comparison.make_model(), comparison.task
    batch, groups = next(iter(task.batches("train", 0))), [{"params": list(model.parameters())}]
    optimizers = {}
    for arm in arms:
        settings = dataclasses.replace(Contender.parse(arm).settings(comparison.settings), learning_rate=1e-9)
        optimizers[arm] = make_optimizer([dict(group) for group in groups], settings)
        if isinstance(optimizers[arm], MatrixOptimizer):
            optimizers[arm].use_blocks(find_blocks(model))
    times: dict[str, list[float]] = {arm: [] for arm in ("shared", *arms)}
    for _ in range(rounds):
        began = time.process_time()
        model.zero_grad()
        task.loss(task.forward(model, batch), batch).backward()
        times["shared"].append(time.process_time() - began)
        for arm in arms:
            began = time.process_time()
            optimizers[arm].step()
            times[arm].append(time.process_time() - began)
    shared, *own = (statistics.fmean(sorted(each)[rounds // 4 : -rounds // 4]) for each in times.values())
    return {arm: shared + seconds for arm, seconds in zip(arms, own, strict=True)}
