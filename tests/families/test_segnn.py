"""A SEGNN of the shipped kind: annotation and measurement agree under motions."""

from __future__ import annotations

import pytest
import torch

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.opening.task_calls import task_symmetry
from surgeon.opening.tasks import load_task, sample_batches
from surgeon.support.modes import default_dtype
from surgeon.support.trees import to_dtype
from surgeon.testing.soundness import Model, check_plan
from tests.examples.test_nbody import EXAMPLE, example

__all__ = ["example"]
pytestmark = pytest.mark.e3nn


@pytest.mark.slow
def test_annotation_and_measurement_agree() -> None:
    from segnn import SEGNN, SEGNNConfig

    loaded = load_task(str(EXAMPLE / "task.py"))
    task = loaded.task
    with default_dtype(torch.float64):
        module = SEGNN(SEGNNConfig(scalars=4, vectors=2, layers=1)).eval()
    batch = to_dtype({name: value[:3] for name, value in sample_batches(loaded, 1)[0].items()}, torch.float64)

    symmetry = task_symmetry(task, parse_group("E3"))
    forward, actions = symmetry.forward, {"act": symmetry.act, "act_output": symmetry.act_output}
    annotated = surgeon.find(module, "E3", batch, forward=forward)
    measured = surgeon.find(module, "E3", batch, forward=forward, adapters={}, **actions)
    both = surgeon.find(module, "E3", batch, forward=forward, **actions)
    keys = [[site.key for site in plan.sites] for plan in (annotated, measured, both)]
    assert keys[0] == keys[1] == keys[2]
    assert len(keys[0]) == 7
    assert {site.source for site in both.sites} == {"both"}
    assert not both.notes
    assert {entry.coverage for entry in both.audit} == {"site", "not linear"}
    check_plan(Model(module, (batch,), symmetry), measured)
