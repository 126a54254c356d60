"""Stripping recalibrates normalisation statistics that training has gathered, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from surgeon.editing.strip import strip
from surgeon.files.seals import seal_folder
from surgeon.opening.open import open_path
from surgeon.opening.tasks import load_task
from tests.commands import Surgeon

NORMALISED = """

class Normalised(Net):
    def __init__(self, frozen):
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.lengths = nn.BatchNorm1d(2, momentum=0.0 if frozen else 0.1)

    def forward(self, scalars, vectors):
        mixed = self.first(torch.cat([scalars, vectors.flatten(1)], 1))
        gates, features = mixed[:, :2], mixed[:, 2:].unflatten(1, (2, 3))
        bent = torch.tanh(1 + self.norm(gates) + self.lengths(features.square().sum(2)))
        return self.second((features * bent.unsqueeze(2)).flatten(1))


class NormalisedTask(TinyTask):
    def __init__(self, frozen, narrow, empty):
        super().__init__(empty=empty)
        self.frozen, self.narrow = frozen, narrow

    def model(self):
        return Normalised(self.frozen)

    def batches(self, split, seed):
        for batch in super().batches(split, seed):
            yield {key: value[:1] for key, value in batch.items()} if self.narrow and split == "train" else batch


def make_task(frozen=False, narrow=False, empty=""):
    return NormalisedTask(frozen, narrow, empty)


def make_net(frozen=False):
    return Normalised(frozen)
"""


def task_options(**arguments: Any) -> list[str]:
    return ["--task", "norm.py", "--task-args", json.dumps(arguments)]


def relaxed(surgeon: Surgeon, **arguments: Any) -> None:
    """Write ``net-relaxed``, of a network with two normalisations."""
    Path("norm.py").write_text(Path("task.py").read_text() + NORMALISED)
    torch.manual_seed(0)
    torch.save(load_task("norm.py", arguments).task.model().state_dict(), "net.pt")  # type: ignore[attr-defined]
    surgeon("relax", "net.pt", *task_options(**arguments), "--init-scale", "1")


def gather() -> None:
    """Gather statistics with the relaxed model at theta 1, as training does, and write them into ``net-relaxed``."""
    workspace = open_path("net-relaxed")
    assert workspace.relaxation is not None
    workspace.relaxation.set_theta(1.0)
    for batch in workspace.require_task().task.batches("train", 0):
        workspace.model.train()(batch["scalars"], batch["vectors"])
    state = workspace.model.state_dict()
    save_file({key: state[key].clone() for key in load_file("net-relaxed/model.safetensors")}, "new.safetensors")
    Path("new.safetensors").replace("net-relaxed/model.safetensors")
    seal_folder(Path("net-relaxed"))


def weights(folder: str) -> dict[str, Tensor]:
    return load_file(f"{folder}/model.safetensors")


def changed(left: dict[str, Tensor], right: dict[str, Tensor]) -> set[str]:
    assert left.keys() == right.keys()
    return {key for key in left if not torch.equal(left[key], right[key])}


STATISTICS = {f"{layer}.running_{which}" for layer in ("norm", "lengths") for which in ("mean", "var")}


def test_gathered_statistics_are_replaced_by_those_of_the_clean_model(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    gather()
    told = surgeon("strip", "net-relaxed", "-o", "clean").out
    assert "statistics of 2 normalisation layers recalibrated on 3 training batches: validation mse " in told
    assert "largest relative change " in told
    told = surgeon("strip", "net-relaxed", "-o", "gathered", "--no-recalibrate").out
    assert "statistics of normalisation layers were not recalibrated: it was switched off" in told
    # The parameters, and how often training has counted, are the same.
    assert changed(weights("clean"), weights("gathered")) == STATISTICS
    workspace = open_path("net-relaxed")
    assert workspace.relaxation is not None
    strip(workspace.relaxation)
    gates = [
        workspace.model.first(torch.cat([b["scalars"], b["vectors"].flatten(1)], 1))[:, :2]
        for b in workspace.require_task().task.batches("train", 0)
    ]
    expected = torch.stack([g.detach().mean(0) for g in gates]).mean(0)
    assert torch.allclose(weights("clean")["norm.running_mean"], expected, atol=1e-6)
    assert not torch.allclose(weights("gathered")["norm.running_mean"], expected, atol=1e-3)


def test_the_certificate_records_it_and_says_identical(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    gather()
    certificate = surgeon("strip", "net-relaxed", "--json").data["certificate"]
    assert certificate["grade"] == "same function"
    assert certificate["checks"]["same function as clean evaluation"]
    assert set(certificate["buffers_written"]) >= STATISTICS
    record = certificate["details"]["recalibration"]
    assert (record["done"], record["batches"], record["metric"]) == (True, 3, "mse")
    assert record["before"] != record["after"]
    assert record["worse"] == (record["before"] < record["after"])
    assert [layer["calls"] for layer in record["layers"].values()] == [3, 3]
    assert max(layer["mean"] for layer in record["layers"].values()) > 1e-3


def test_a_model_that_was_not_trained_stays_to_the_byte(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    told = surgeon("strip", "net-relaxed", "-o", "clean").out
    assert "were not recalibrated: they are those of the original" in told
    assert changed(weights("clean"), torch.load("net.pt", weights_only=True)) == set()


def test_a_model_without_normalisation_says_nothing_about_it(surgeon: Surgeon) -> None:
    surgeon.once("relax", "net.pt")
    assert "statistics" not in surgeon("strip", "net-relaxed", "-o", "clean").out
    certificate = surgeon("strip", "net-relaxed", "--json").data["certificate"]
    assert "recalibration" not in certificate["details"]


def test_export_uses_no_more_batches_than_it_is_told(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    gather()
    told = surgeon("export", "net-relaxed", "--container", "--recalibrate", "2").out
    assert "recalibrated on 2 training batches" in told
    assert changed(torch.load("net-clean/net.pt", weights_only=True), weights("net-clean")) == set()
    assert "--recalibrate" in surgeon("strip", "net-relaxed", "-o", "x", "--recalibrate", "0", code=2).err


def test_a_layer_that_training_leaves_alone_is_left_alone(surgeon: Surgeon) -> None:
    relaxed(surgeon, frozen=True)
    gather()
    told = surgeon("strip", "net-relaxed", "-o", "clean").out
    assert "statistics of 1 normalisation layers recalibrated" in told
    original = torch.load("net.pt", weights_only=True)
    assert changed(weights("clean"), original) & STATISTICS == {"norm.running_mean", "norm.running_var"}


def test_without_a_task_it_is_said(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    gather()
    config = Path("net-relaxed/surgeon_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "task": None}))
    seal_folder(config.parent)
    # Nor can it be certified that these statistics are what a training forward writes.
    result = surgeon("strip", "net-relaxed", "-o", "clean", "--model", "norm:make_net", code=1)
    assert "were not recalibrated: no task is known, so there are no training batches: give `--task FILE`" in result.out
    assert "(buffers)" in result.err
    surgeon("strip", "net-relaxed", "-o", "clean", *task_options())


def test_without_training_batches_it_is_said(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    gather()
    told = surgeon("strip", "net-relaxed", "-o", "clean", *task_options(empty="train")).out
    assert "were not recalibrated: the task has no batch in the split 'train'" in told


def test_training_batches_that_fail_are_an_error_and_nothing_is_written(surgeon: Surgeon) -> None:
    relaxed(surgeon)
    gather()
    err = surgeon("strip", "net-relaxed", "-o", "clean", *task_options(narrow=True), code=2).err
    assert "the forward fails with" in err
    assert "--no-recalibrate" in err
    assert not Path("clean").exists()
    surgeon("strip", "net-relaxed", "-o", "clean", *task_options(narrow=True), "--no-recalibrate")


def test_it_is_said_when_the_gathered_statistics_were_better(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    import surgeon.proof.recalibrated as verdict

    relaxed(surgeon)
    gather()
    for worse in (True, False):
        monkeypatch.setattr(verdict, "is_better", lambda *values, worse=worse: worse)
        told = surgeon("strip", "net-relaxed", "-o", "clean", "--force").out
        assert ("--no-recalibrate keeps them" in told) == worse
