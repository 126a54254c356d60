from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from surgeon.algebra.schedule import Schedule
from surgeon.errors import UsageError
from surgeon.training.settings import PRESETS, FinetuneSettings

BAD = [
    ("epochs", 0, "epochs of at least 1"),
    ("evaluate_every", 0, "evaluate_every of at least 1"),
    ("learning_rate", 0.0, "positive finite learning_rate"),
    ("learning_rate", math.nan, "positive finite learning_rate"),
    ("branch_factor", math.inf, "positive finite branch_factor"),
    ("clip", 0.0, "positive finite clip"),
    ("weight_decay", -1.0, "weight_decay of at least 0"),
    ("penalty_weight", math.nan, "penalty_weight of at least 0"),
    ("decay", "sawtooth", "decay among cosine, linear, constant, step"),
    ("penalty_scale", "x", "penalty_scale among relative, absolute"),
    ("penalty_form", "x", "penalty_form among gram, rows, square"),
    ("penalty_rows", 0, "penalty_rows of at least 1"),
    ("accumulate", 0, "accumulate of at least 1"),
    ("patience", 0, "patience of at least 1"),
    ("ema", 1.0, "between 0 and 1 for ema"),
    ("warmup", -1, "warmup of at least 0"),
    ("warmup", 10**400, "finite warmup"),
    ("optimizer", "lion", "optimizer among adamw, adam, sgd, soap, muon"),
    ("beta2", 1.0, "beta2 from 0 to below 1"),
    ("normalisation", "row", "normalisation among entry, block"),
    ("precision", "fp8", "precision among no, bf16, fp16"),
]


@pytest.mark.parametrize(("name", "value", "words"), BAD)
def test_a_setting_out_of_range_is_refused(name: str, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        dataclasses.replace(FinetuneSettings(), **{name: value})


def test_a_beta2_that_nothing_would_use_is_refused() -> None:
    with pytest.raises(UsageError, match="no beta2 with the optimizer sgd"):
        FinetuneSettings(optimizer="sgd", beta2=0.9)


def test_the_rate_rises_by_itself_only_where_bases_have_to_be_found() -> None:
    assert FinetuneSettings().warmup_steps == FinetuneSettings(optimizer="soap", warmup=0).warmup_steps == 0
    assert FinetuneSettings(optimizer="soap").warmup_steps == FinetuneSettings(optimizer="muon").warmup_steps == 10


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ("soap", 0.03, 5.0)),
        ({"optimizer": "soap"}, ("soap", 0.03, 5.0)),
        ({"optimizer": "soap", "learning_rate": 0.01, "clip": 1.0}, ("soap", 0.01, 1.0)),
        ({"optimizer": "muon"}, ("muon", 1e-3, None)),
        ({"learning_rate": 0.01}, ("adamw", 0.01, None)),
    ],
)
def test_what_a_task_prefers_goes_together(given: dict[str, Any], found: tuple[Any, ...]) -> None:
    preferred = {"optimizer": "soap", "learning_rate": 0.03, "clip": 5.0}
    settings = FinetuneSettings(**given).settled(preferred)
    assert (settings.optimizer, settings.learning_rate, settings.clip) == found
    assert FinetuneSettings().settled() == FinetuneSettings(optimizer="adamw", learning_rate=1e-3)
    with pytest.raises(UsageError, match="expected settings of a training in the task's `preferred`"):
        FinetuneSettings().settled({"optimizer": "soap", "lr": 0.03})


def test_settings_survive_json() -> None:
    settings = FinetuneSettings(epochs=3, clip=1.0, schedule=Schedule("cosine", tail=0.1))
    assert FinetuneSettings.from_data(json.loads(json.dumps(settings.to_data()))) == settings


def test_the_preset_of_the_paper() -> None:
    paper = PRESETS["paper"]
    assert (paper.penalty_weight, paper.penalty_scale, paper.penalty_form) == (None, "absolute", "rows")
    assert (paper.branch_factor, paper.decay, paper.schedule.name) == (1.0, "constant", "triangle")
    assert PRESETS["default"] == FinetuneSettings()
