from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.files.seals import seal_folder
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import EQUIVARIANCE_CHECK, FUNCTION_CHECK, SiteRecord, StripMode
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.architecture import CHECKS
from surgeon.proof.equivariance import at_full_relaxation, task_equivariance
from surgeon.proof.strip_and_certify import strip_and_certify
from tests.commands import Surgeon
from tests.opening.test_workspace import make_relaxed
from tests.tiny import Net

QUICK = MeasureSettings(2, 1)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    return open_path(make_relaxed(Surgeon.folder(tmp_path, monkeypatch)))


def test_a_stripped_model_is_certified(opened: Workspace) -> None:
    model, certificate = strip_and_certify(opened, "drop", QUICK)
    assert certificate.passed, certificate.differences
    assert certificate.checks["same function as clean evaluation"]
    assert certificate.checks["recorded graph"]
    assert set(certificate.equivariance) == {"original", "relaxed", "relaxed, theta 1", "stripped"}
    assert certificate.equivariance["relaxed"]["float64"]["identity"].median > 1e-3
    assert certificate.equivariance["stripped"]["float64"]["identity"].maximum < 1e-12
    assert certificate.projection_error is not None
    assert certificate.projection_error > 1e-3
    assert certificate.metrics["original"] == certificate.metrics["stripped"]
    assert [site.note for site in certificate.sites] == ["dropped", "dropped"]
    assert set(model.state_dict()) == set(Net().state_dict())


def test_the_other_mode_is_no_clean_evaluation_but_a_certificate_all_the_same(opened: Workspace) -> None:
    _, certificate = strip_and_certify(opened, "fold", QUICK, split=None)
    assert certificate.grade == "same graph"
    assert certificate.strip_mode == "fold"
    assert "same function as clean evaluation" not in certificate.checks
    assert certificate.metrics == {}
    assert sum(site.folded for site in certificate.sites) > 0.01


def test_a_folded_model_is_clean_evaluation(opened: Workspace) -> None:
    workspace = open_path(opened.path, mode="fold")
    _, certificate = strip_and_certify(workspace, "fold", QUICK)
    assert certificate.grade == "same function"


def test_a_model_that_lost_its_symmetry_gets_no_certificate(opened: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Net, scalars: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        return self.second(vectors[:, : self.hidden].flatten(1)) + 0.1 * scalars.sum(1, keepdim=True)

    original = opened.original
    monkeypatch.setattr(opened, "original", lambda: original())
    opened.model.forward = broken.__get__(opened.model)  # type: ignore[method-assign]
    _, certificate = strip_and_certify(opened, "drop", QUICK)
    assert not certificate.passed
    assert not certificate.checks["recorded graph"]


SKEW = torch.tensor([[0.0, 0.3, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


class Turned(Net):
    """A last layer without any symmetry of its own, which is the identity at first; ``turn`` is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.turn.weight)

    def forward(self, scalars: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.turn(super().forward(scalars, vectors))
        return result


@pytest.fixture
def turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    work = Surgeon.folder(tmp_path, monkeypatch)
    torch.save(Turned().state_dict(), work / "net.pt")
    options = OpenOptions(task="task.py", factory="tests.proof.test_strip_and_certify:Turned")
    return open_path(make_relaxed(work, options=options), options)


def lose_function(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strip all branches, and change a weight in the same breath: one that no symmetry forbids."""

    def damaging(relaxation: Relaxation, mode: StripMode) -> tuple[SiteRecord, ...]:
        records = strip(relaxation, mode)
        workspace.model.second.weight.data.mul_(1.01)  # type: ignore[union-attr, operator]
        return records

    monkeypatch.setattr("surgeon.proof.strip_and_certify.strip", damaging)


def lose_symmetry(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train weights out of the symmetry: clean evaluation has lost it, too."""
    workspace.model.turn.weight.data.add_(SKEW)  # type: ignore[union-attr, operator]


FAILURES: dict[str, tuple[Callable[[Workspace, pytest.MonkeyPatch], None], str]] = {
    FUNCTION_CHECK: (lose_function, r"differs from clean evaluation by 1\.0e-02 \(relative\)"),
    EQUIVARIANCE_CHECK: (lose_symmetry, "equivariance error under identity in float64: expected"),
}


@pytest.mark.parametrize("check", FAILURES)
def test_each_check_of_function_and_symmetry_can_fail_alone(
    turned: Workspace, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    damage, words = FAILURES[check]
    damage(turned, monkeypatch)
    _, certificate = strip_and_certify(turned, "drop", QUICK)
    assert [name for name, holds in certificate.checks.items() if not holds] == [check]
    assert certificate.grade is None
    assert any(re.search(words, text) for text in certificate.differences), certificate.differences


def test_every_check_of_a_verdict_is_made_to_fail(turned: Workspace) -> None:
    _, certificate = strip_and_certify(turned, "drop", QUICK, split=None)
    assert certificate.grade == "same function", certificate.differences
    assert certificate.checks.keys() == {*CHECKS, *FAILURES}


@pytest.mark.parametrize("damage", [None, lose_symmetry, lose_function])
def test_without_float64_rows_of_the_own_dtype_decide(
    turned: Workspace, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Workspace, pytest.MonkeyPatch], None] | None
) -> None:
    turned.float64 = {"how": None, "why": "it is float32 only"}
    if damage is not None:
        damage(turned, monkeypatch)
    _, certificate = strip_and_certify(turned, "drop", QUICK, split=None)
    assert {dtype for by in certificate.equivariance.values() for dtype in by} == {"float32"}
    counts = certificate.details["flipped rows"]["identity"]
    assert counts["original"][1] == counts["stripped"][1] > 1
    failed = {None: [], lose_symmetry: [EQUIVARIANCE_CHECK], lose_function: [FUNCTION_CHECK]}[damage]
    assert [name for name, holds in certificate.checks.items() if not holds] == failed, certificate.differences


def test_drop_is_held_to_float64s_rounding(turned: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 would have let pass: a weight that is off by a millionth."""

    def damaging(relaxation: Relaxation, mode: StripMode) -> tuple[SiteRecord, ...]:
        records = strip(relaxation, mode)
        turned.model.second.weight.data.mul_(1 + 1e-6)  # type: ignore[union-attr, operator]
        return records

    monkeypatch.setattr("surgeon.proof.strip_and_certify.strip", damaging)
    _, certificate = strip_and_certify(turned, "drop", QUICK, split=None)
    assert not certificate.checks[FUNCTION_CHECK]


def test_a_fold_is_exact_without_rounding_and_the_weights_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch is too few for flipped ties to be told from a fault, so both halves are computed."""
    folder = make_relaxed(Surgeon.folder(tmp_path, monkeypatch), mode="fold")
    for part, factor in {"": 1.0, "weights": 1 + 1e-5, "function": 1 + 1e-8}.items():
        workspace = open_path(folder)

        def damaging(relaxed: Any, mode: StripMode, part: str = part, factor: float = factor) -> Any:
            records = strip(relaxed, mode)
            twin = isinstance(relaxed, nn.Module)
            if twin == (part == "function"):
                network: Any = relaxed if twin else relaxed.model
                network.second.weight.data.mul_(factor)
            return records

        monkeypatch.setattr("surgeon.proof.strip_and_certify.strip", damaging)
        _, certificate = strip_and_certify(workspace, "fold", QUICK, split=None)
        assert certificate.checks[FUNCTION_CHECK] is (not part), certificate.differences
        words = {"": "", "weights": "second.weight is", "function": "differs from clean evaluation by"}[part]
        assert words in " ".join(certificate.differences), certificate.differences


def test_without_a_task_form_alone_is_certified(opened: Workspace) -> None:
    (opened.path.parent / "task.py").rename(opened.path.parent / "nets.py")
    import json

    config = opened.path / "surgeon_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "task": None}))
    seal_folder(opened.path)
    workspace = open_path(opened.path, OpenOptions(factory="nets:make_net"))
    _, certificate = strip_and_certify(workspace, "drop", QUICK)
    assert certificate.grade == "same form"
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
    broken = relax(twin, opened.relaxation.plan, dense=True, init_scale=1.0)
    broken.set_theta(1.0)
    assert min(error.median for error in task_equivariance(twin, task, group, QUICK).values()) > 1e-2
