"""What a clean folder shows by itself, without the original: what follows from its files, and nothing passed over."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from surgeon.files.clean import ATTESTATION_FILE, sealed
from surgeon.opening import clean
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.workspace import Workspace
from surgeon.proof.attestation import attested
from surgeon.proof.verdict import Verification
from surgeon.proof.verify import ONLY_RECORDED, verify_clean
from tests.proof.test_verify import (
    edit,
    error,
    exported,
    listed,
    lost_norm,
    metric,
    outcomes,
    tensor,
    theta,
    verified,
    work,
)
from tests.tiny import Net

__all__ = ["exported", "work"]


def alone(work: Path, task: bool = True) -> Verification:
    return verify_clean(work / "clean", options=OpenOptions(task=str(work / "task.py")) if task else None, group="O3")


def test_a_folder_alone_is_checked_as_far_as_it_goes(work: Path) -> None:
    bare = alone(work, task=False)
    assert bare.holds
    found = outcomes(bare)
    held = (
        "certificate's own sha256",
        "files",
        "recorded forms of the result",
        "tensors",
        "finite weights and buffers",
    )
    assert {found[name] for name in held} == {"holds"}
    missing = ("original checkpoint", "recorded forms of the original", "recorded graph", "metrics")
    assert {found[name] for name in missing} == {"not checked"}
    measured = alone(work)
    assert measured.holds, measured.differences
    found = outcomes(measured)
    held = ("recorded module classes", "recorded equivariance", "metrics", "container net.pt: outputs of its model")
    assert {found[name] for name in held} == {"holds"}
    assert found["as equivariant as the original"] == found["recorded graph"] == "not checked"


def test_a_network_that_is_known_by_its_keys_alone_may_be_of_another_class(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an adapter would recognise the weights of a network that a task builds by a class of its own."""

    def known(path: Path, options: OpenOptions) -> Workspace:
        return open_path(path, dataclasses.replace(options, build=Net))

    def others(data: dict[str, Any]) -> None:
        data["architecture"]["classes"][""] = "elsewhere.Net"

    monkeypatch.setattr(clean, "open_path", known)
    assert outcomes(alone(work, task=False))["recorded module classes"] == "holds"
    edit(work, others, forged=True)
    told = alone(work, task=False)
    assert told.holds
    found = {finding.name: finding.note for finding in told.findings if finding.outcome == "not checked"}
    assert "class elsewhere.Net was certified" in found["recorded module classes"]
    assert outcomes(alone(work))["recorded module classes"] == "differs"


@pytest.mark.parametrize(
    ("change", "name"), [(error, "recorded equivariance"), (metric, "metrics"), (tensor, "tensors"), (listed, "files")]
)
def test_damage_is_found_in_a_folder_alone(work: Path, change: Callable[[dict[str, Any]], None], name: str) -> None:
    edit(work, change, forged=True)
    assert [finding.name for finding in alone(work).findings if finding.outcome == "differs"] == [name]


def test_nan_in_a_folder_alone_is_left_to_the_original(work: Path) -> None:
    path = work / "clean" / "model.safetensors"
    weights = load_file(path)
    weights["first.weight"][0] = float("nan")
    save_file(weights, path, {"format": "pt"})
    assert outcomes(alone(work, task=False))["finite weights and buffers"] == "not checked"


@pytest.mark.parametrize("change", [metric, lost_norm, theta])
def test_a_changed_figure_is_found_in_the_folder_alone_by_the_words(
    work: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """The seal and the statement are renewed with the figure, and CERTIFICATE.md still says the other one."""
    path = work / "clean" / "certificate.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(sealed(data)))
    (work / "clean" / ATTESTATION_FILE).write_text(json.dumps(attested(data, work / "clean")))
    verification = alone(work, task=False)
    name = "CERTIFICATE.md says what certificate.json says"
    assert [finding.name for finding in verification.findings if finding.outcome == "differs"] == [name]
    assert verification.differences[0].startswith("CERTIFICATE.md: expected '")


def test_a_conclusion_that_does_not_follow_from_its_figures(work: Path) -> None:
    def broken(data: dict[str, Any]) -> None:
        data["equivariance"]["stripped"]["float64"]["inversion"]["maximum"] = None

    edit(work, broken, forged=True)
    (sentence,) = alone(work, task=False).differences
    assert sentence.startswith("from the recorded errors follows: equivariance error under inversion in float64")


def test_nothing_in_a_certificate_is_passed_over(work: Path) -> None:
    """Every entry is a field that is compared, is judged with the conclusions, or is named as only recorded."""
    data = json.loads((work / "clean" / "certificate.json").read_text())
    compared = {"sha256", "files", "architecture", "buffers_written", "equivariance", "metrics", "details"}
    concluded = {"format_version", "passed", "grade", "checks", "differences"}
    assert data.keys() - compared - concluded - ONLY_RECORDED.keys() == set()
    compared = {"original", "tensors", "graph_nodes", "graph_constants", "graph_sha256", "relaxed_graph", "container"}
    read = {"versions", "group", "measurement"}
    assert data["details"].keys() - compared - read - ONLY_RECORDED.keys() == set()


@pytest.mark.parametrize("name", ["tensors", "graph_nodes", "graph_constants"])
def test_counts_are_counted_again(work: Path, name: str) -> None:
    def more(data: dict[str, Any]) -> None:
        data["details"][name] += 1

    edit(work, more, forged=True)
    differences = (alone(work, task=False) if name == "tensors" else verified(work)).differences
    assert differences[0].startswith(f"recorded {name}: ")
