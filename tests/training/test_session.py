"""What is the same in every training: theta of a step, the penalty, clean evaluation with statistics of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.editing.branch import branches_of
from surgeon.editing.insert import relax
from surgeon.editing.recalibration import recalibrate, running_statistics
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import CheckpointError, UsageError
from surgeon.finding.find import find
from surgeon.opening.evaluation import evaluate
from surgeon.support.trees import equal
from surgeon.training.arms import arm_named
from surgeon.training.session import TrainingSession
from surgeon.training.settings import FinetuneSettings
from tests.integrations.normalised import Normalised
from tests.tiny import TinyTask
from tests.training.conftest import train


def forward(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    result: Tensor = model(batch["scalars"], batch["vectors"])
    return result


def relaxed_network(scale: float = 2.0) -> Relaxation:
    """With a large W, so that the clean network has features of another size."""
    torch.manual_seed(0)
    net = Normalised(2)
    batch = next(TinyTask().batches("train", 0))
    relaxation = relax(net, find(net, "O3", batch["scalars"], batch["vectors"]), dense=True, init_scale=scale)
    net.train()
    return relaxation


def gather(session: TrainingSession, batches: list[dict[str, Tensor]]) -> None:
    session.set_step(1, 2)
    for batch in batches:
        forward(session.model, batch)


def test_clean_evaluation_is_that_of_the_stripped_and_recalibrated_network() -> None:
    batches = list(TinyTask(12).batches("train", 1))
    session = TrainingSession(relaxed_network(), recalibrate=5)
    gather(session, batches)
    before, random = running_statistics(session.model), torch.get_rng_state()
    stripped = copy.deepcopy(session.model)
    strip(stripped)
    kept = forward(stripped.eval(), batches[0])
    recalibrate(stripped, batches[:5], forward)
    session.model.eval()

    def noisy(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        torch.rand(())  # a forward may draw numbers
        return forward(model, batch)

    with session.clean_evaluation(batches, noisy) as changes:
        assert torch.equal(forward(session.model, batches[0]), forward(stripped, batches[0]))
    assert [change.name for change in changes] == ["norm"]
    assert not torch.allclose(kept, forward(stripped, batches[0]), rtol=0.05)
    assert equal(running_statistics(session.model), before)
    assert torch.equal(torch.get_rng_state(), random)


def unread() -> Iterator[Any]:
    raise AssertionError("nothing is to be read")
    yield


def test_nothing_is_read_where_nothing_was_gathered_or_it_is_switched_off() -> None:
    session = TrainingSession(relaxed_network())
    with session.clean_evaluation(unread(), forward) as changes:
        assert changes == ()
    off = TrainingSession(relaxed_network(), recalibrate=0)
    gather(off, list(TinyTask().batches("train", 1)))
    with off.clean_evaluation(unread(), forward) as changes:
        assert changes == ()


def test_gathered_statistics_without_a_batch_are_refused() -> None:
    session = TrainingSession(relaxed_network())
    gather(session, list(TinyTask().batches("train", 1)))
    with pytest.raises(UsageError, match="at least one batch to recalibrate"), session.clean_evaluation([], forward):
        pass


def test_frozen_statistics_stay() -> None:
    session = TrainingSession(relaxed_network())
    session.model.norm.eval()
    gather(session, list(TinyTask().batches("train", 1)))
    with session.clean_evaluation(unread(), forward):
        assert equal(running_statistics(session.model), session.start)


def test_another_number_of_steps_is_refused() -> None:
    session = TrainingSession(relaxed_network())
    session.set_step(3, 12)
    again = TrainingSession(relaxed_network())
    again.load_state_dict(session.state_dict())
    again.set_step(3, 12)
    assert again.relaxation.theta == session.relaxation.theta
    with pytest.raises(UsageError, match="a training of 12 optimiser steps, as it was started with, got one of 24"):
        again.set_step(3, 24)
    assert again.relaxation.theta == session.relaxation.theta


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"penalty_weight": -0.1}, "finite weight of the penalty of at least 0, got -0.1"),
        ({"penalty_weight": float("nan")}, "got nan"),
        ({"penalty_scale": "rel"}, "penalty scale among relative, absolute, got 'rel'"),
    ],
)
def test_an_unusable_penalty_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        TrainingSession(relaxed_network(), **settings)


def test_more_steps_than_there_are_are_refused() -> None:
    session = TrainingSession(relaxed_network())
    session.set_step(12, 12)
    with pytest.raises(UsageError, match="got 0 of 0"):
        TrainingSession(relaxed_network()).set_step(0, 0)
    with pytest.raises(UsageError, match="of a training to be done, got 13 of 12: count those of the whole"):
        session.set_step(13, 12)


class Otherwise(Normalised):
    """The same keys and shapes, and another function."""

    def forward(self, scalars: Tensor, vectors: Tensor) -> Tensor:
        return super().forward(torch.relu(scalars), vectors)


@pytest.mark.parametrize(("changed", "inputs"), [(False, 0), (True, 0), (True, 1)])
def test_a_resume_refuses_a_network_of_other_code_if_its_inputs_are_the_same(changed: bool, inputs: int) -> None:
    batches = list(TinyTask().batches("train", 0))
    session, again = TrainingSession(relaxed_network()), TrainingSession(relaxed_network())
    if changed:
        again.relaxation.model.__class__ = Otherwise
    again.load_state_dict(session.state_dict())  # nothing was recorded
    session.record_source(batches[0]["scalars"], vectors=batches[0]["vectors"])
    again.record_source(batches[inputs]["scalars"], vectors=batches[inputs]["vectors"])
    if changed and inputs == 0:
        with pytest.raises(CheckpointError, match="on the same inputs its code now computes another graph"):
            again.load_state_dict(session.state_dict())
    else:
        again.load_state_dict(session.state_dict())
    assert branches_of(again.relaxation.model)  # a copy was stripped


def test_the_gradient_is_that_of_the_weighted_penalty() -> None:
    batches = list(TinyTask().batches("train", 1))
    gradients = []
    for scale in (None, 4.0):
        session = TrainingSession(relaxed_network(), penalty_weight=0.3)
        gather(session, batches)
        parameters = session.relaxation.branch_parameters()
        if scale is None:
            (4.0 * session.weighted_penalty(2.0)).backward()
        else:
            session.add_penalty_gradient(2.0, scale)
        assert session.penalty > 0
        gradients.append([parameter.grad for parameter in parameters])
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


def test_the_engine_selects_by_recalibrated_statistics_and_keeps_them() -> None:
    relaxation, task = relaxed_network(0.0), TinyTask(6)
    settings = FinetuneSettings(epochs=4, learning_rate=2e-2)
    result = train(relaxation.model, task, settings, arm_named("drop"), relaxation)
    assert result.best_epoch > 0
    strip(relaxation)
    found = evaluate(relaxation.model, task, "validation")
    assert found["mse"] == pytest.approx(result.validation["mse"], rel=1e-6)
    kept = running_statistics(relaxation.model)
    recalibrate(relaxation.model, task.batches("train", settings.seed), task.forward)
    torch.testing.assert_close(running_statistics(relaxation.model), kept, rtol=1e-5, atol=1e-8)
