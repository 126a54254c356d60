"""The way of the data through an opened model, recorded in one run of it."""

from __future__ import annotations

import torch
from torch import nn

from surgeon.opening.evaluation import fitted
from surgeon.opening.task_calls import task_forward
from surgeon.opening.tasks import LoadedTask, sample_batches
from surgeon.plan import Plan
from surgeon.recording.flow import Flow, boxed_modules, data_flow
from surgeon.recording.record import record
from surgeon.support.modes import in_evaluation_mode


def recorded_flow(model: nn.Module, task: LoadedTask, plan: Plan) -> Flow:
    """Run a model, with or without branches, on the first validation batch, and return the flow through its plan."""
    batch = fitted(sample_batches(task, 1)[0], model)
    with torch.random.fork_rng(devices=[]), in_evaluation_mode(model):
        recording = record(model, batch, forward=lambda model, x: task_forward(task.task, model, x))
    return data_flow(recording, boxed_modules(plan))
