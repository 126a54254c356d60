from __future__ import annotations

from pathlib import Path

import pytest
import torch

from surgeon.groups import parse_group
from surgeon.surgery import relax
from surgeon.verdict import MeasureSettings, at_full_relaxation, sample_batches, strip_and_certify, task_equivariance
from surgeon.workspace import OpenOptions, Workspace, open_path
from tests.commands import Surgeon
from tests.test_workspace import make_relaxed
from tests.tiny import Net

QUICK = MeasureSettings(2, 1)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return open_path(make_relaxed(Surgeon.folder(tmp_path, monkeypatch)))


def test_a_stripped_model_is_certified(opened: Workspace) -> None:
    model, certificate = strip_and_certify(opened, "drop", QUICK)
    assert certificate.identical, certificate.differences
    assert certificate.checks["same function as clean evaluation"]
    assert certificate.checks["recorded graph"]
    assert set(certificate.equivariance) == {"original", "relaxed", "relaxed, theta 1", "stripped"}
    assert certificate.equivariance["relaxed"]["float64"]["identity"].median > 1e-3
    assert certificate.equivariance["stripped"]["float64"]["identity"].median < 1e-12
    assert certificate.projection_error is not None
    assert certificate.projection_error > 1e-3
    assert certificate.metrics["original"] == certificate.metrics["stripped"]
    assert [site.note for site in certificate.sites] == ["dropped", "dropped"]
    assert set(model.state_dict()) == set(Net().state_dict())


def test_the_other_mode_is_no_clean_evaluation_but_a_certificate_all_the_same(opened: Workspace) -> None:
    _, certificate = strip_and_certify(opened, "fold", QUICK, split=None)
    assert certificate.identical
    assert certificate.strip_mode == "fold"
    assert "same function as clean evaluation" not in certificate.checks
    assert certificate.metrics == {}
    assert sum(site.folded for site in certificate.sites) > 0.01


def test_a_folded_model_is_clean_evaluation(opened: Workspace) -> None:
    workspace = open_path(opened.path, mode="fold")
    _, certificate = strip_and_certify(workspace, "fold", QUICK)
    assert certificate.checks["same function as clean evaluation"]
    assert certificate.identical


def test_a_model_that_lost_its_symmetry_gets_no_certificate(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Net, scalars: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return self.second(vectors[:, : self.hidden].flatten(1)) + 0.1 * scalars.sum(1, keepdim=True)

    original = opened.original
    monkeypatch.setattr(opened, "original", lambda: original())
    opened.model.forward = broken.__get__(opened.model)  # type: ignore[method-assign]
    _, certificate = strip_and_certify(opened, "drop", QUICK)
    assert not certificate.identical
    assert not certificate.checks["recorded graph"]


def test_without_a_task_form_alone_is_certified(opened: Workspace) -> None:
    (opened.path.parent / "task.py").rename(opened.path.parent / "nets.py")
    import json

    config = opened.path / "surgeon_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "task": None}))
    workspace = open_path(opened.path, OpenOptions(factory="nets:make_net"))
    _, certificate = strip_and_certify(workspace, "drop", QUICK)
    assert certificate.identical
    assert certificate.projection_error is None
    assert certificate.equivariance == {}
    assert "recorded graph" not in certificate.checks


def test_full_relaxation_is_put_back(opened: Workspace) -> None:
    relaxation = opened.relaxation
    assert relaxation is not None
    with at_full_relaxation(relaxation):
        assert relaxation.theta == (1.0, 1.0)
    assert relaxation.theta == (0.5, 0.25)


def test_equivariance_and_its_negative_twin(opened: Workspace) -> None:
    task, group = opened.require_task(), parse_group("O3")
    assert len(sample_batches(task, 2)) == 2
    original, _ = opened.original()
    assert max(error.maximum for error in task_equivariance(original, task, group, QUICK).values()) < 1e-4
    assert opened.relaxation is not None
    twin, _ = opened.original()
    broken = relax(twin, opened.relaxation.plan, init_scale=1.0)
    broken.set_theta(1.0)
    assert min(error.median for error in task_equivariance(twin, task, group, QUICK).values()) > 1e-2
