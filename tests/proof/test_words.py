"""The readable certificate says what the data say."""

from __future__ import annotations

import dataclasses
from typing import Any

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.files.content import json_compatible
from surgeon.plan import FUNCTION_CHECK, GRAPH_CHECK, Certificate, SiteRecord
from surgeon.proof.words import certificate_text

ERRORS = {
    model: {"float32": {"identity": ErrorSummary(2e-7, 1e-7, maximum, 16, "random 3")}}
    for model, maximum in (("original", 3e-7), ("relaxed", float("inf")), ("stripped", 4e-7))
}


def data(certificate: Certificate) -> Any:
    details = {"original": {"file": "net.pt", "sha256": "aa11", "entry": None}, **certificate.details}
    architecture = {"result": {"weight": [[2], "torch.float32", "dd"]}}
    files = {"model.safetensors": "bb22"}
    return json_compatible({**certificate.to_data(), "details": details, "architecture": architecture, "files": files})


FULL = Certificate(
    {"shapes": True, "dtypes": True},
    buffers_written={"norm.running_mean": 0.25},
    strip_mode="fold",
    sites=(SiteRecord("", "x", 1.5, 1.25, 0.5, "folded a|b"),),
    equivariance=ERRORS,
    metrics={"original": {"mse": 1.25}, "stripped": {"mse": 0.5, "mae": float("nan")}},
    projection_error=0.125,
    details={
        "versions": {"torch": "9.9"},
        "graph_sha256": ["cc33", "cc33"],
        "graph_nodes": 7,
        "theta": [0.5, 0.25],
        "group": "O3",
        "measurement": {"elements": 8, "batches": 2, "seed": 5, "split": "test"},
    },
)


def test_everything_is_said() -> None:
    text = certificate_text(data(FULL))
    for words in (
        "**same form: keys, shapes, classes and attributes are the original's, no run was compared.**",
        "has 1 tensors and was compared with `net.pt`, sha256 `aa11`",
        "finds damage, not deliberate forgery",
        "| shapes | yes |",
        "| `model.safetensors` | `bb22` |",
        "stripped by `fold`",
        "Theta of the relaxed model: 0.5 (foldable part 0.25)",
        "changed the outputs by 1.2e-01",
        "| `(model)` | x | 1.500e+00 | 1.250e+00 | 5.000e-01 | folded a\\|b |",
        "under O3 on 2 validation batches with 8 random elements per component, seed 5",
        "| stripped | float32 | identity | 2.0e-07 | 1.0e-07 | 4.0e-07 | random 3 | 16 |",
        "| relaxed | float32 | identity | 2.0e-07 | 1.0e-07 | not finite | random 3 | 16 |",
        "On the test split.",
        "| original | 1.25 | - |",
        "| stripped | 0.5 | not finite |",
        "| `norm.running_mean` | 2.5e-01 |",
        "7 nodes each.",
        "| result | `cc33` |",
        "| torch | 9.9 |",
    ):
        assert words in text, words


def test_what_was_not_measured_has_no_section() -> None:
    text = certificate_text(data(Certificate({"shapes": True})))
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Checks", "## Files"]


def test_the_verdict_is_the_grade() -> None:
    run = Certificate({"shapes": True, GRAPH_CHECK: True})
    assert "**same graph: the recorded graph is the original's.**" in certificate_text(data(run))
    whole = Certificate({**run.checks, FUNCTION_CHECK: True})
    assert "the function that of clean evaluation.**" in certificate_text(data(whole))
    recalibrated = Certificate(whole.checks, details={"recalibration": {"done": True}})
    assert "the function that of clean evaluation before recalibration.**" in certificate_text(data(recalibrated))


def test_a_difference_is_said() -> None:
    text = certificate_text(data(Certificate({"shapes": False}, ("shape of weight: expected a, got b",))))
    assert "**NOT the original: the architecture is not the original's.**" in text
    assert "| shapes | **NO** |" in text
    assert "Difference: shape of weight: expected a, got b." in text


def test_further_formats_are_described() -> None:
    program = {"nodes": 12, "graph_sha256": "ee55", "deviation": 0.05, "equivariance": {"identity": 0.25}}
    container = {"file": "net.pt", "opened_by": "somebody", "batches": 2, "bit_equal": True, "deviation": 0.0}
    text = certificate_text(data(Certificate({}, details={"onnx": program, "container": container})))
    assert "`model.onnx`: 12 nodes, the same as for the original (sha256 `ee55`)" in text
    assert "ONNX Runtime deviates from the model by 0.05, and f(gx) from g f(x) by 0.25 under identity" in text
    assert "opened by somebody, it gives the model's outputs on 2 batches, bit by bit." in text
    assert "model.pt2" not in text
    bare = {"pt2": {**program, "equivariance": {}}, "container": {**container, "batches": 0}}
    text = certificate_text(data(Certificate({}, details=bare)))
    assert "`torch.export.load` deviates from the model by 0.05, and f(gx) from g f(x) by not measured" in text
    assert "its outputs were not compared, for lack of a task" in text


def test_flipped_rows_are_told_where_nothing_finer_could_be_run() -> None:
    flipped = {"flipped rows": {"identity": {"original": [1, 32], "stripped": [3, 32]}}}
    details = {**FULL.details, **flipped, "no float64": "it fails"}
    text = certificate_text(data(dataclasses.replace(FULL, details=details)))
    assert "as flipped ties are: under identity 1 of 32 in the original, 3 of 32 in the stripped" in text
    finer = certificate_text(data(dataclasses.replace(FULL, details={**FULL.details, **flipped})))
    assert "flipped ties" not in finer
