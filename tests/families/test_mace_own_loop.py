"""MACE's own training script takes our optimiser, with the groups and rates that it makes."""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from pathlib import Path

import pytest
import torch

from surgeon.optim import Soap
from tests.families.mace_small import small

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mace", reason="mace-torch is not installed: make test-mace")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
SCRIPT = Path(__file__).parents[2] / "examples" / "molecules" / "mace_run_train.py"
ARGUMENTS = {"lr": 0.02, "weight_decay": 1e-3, "lr_params_factors": '{"products_lr_factor": 0.5}', "freeze": None}


def test_groups_and_rates_are_those_of_mace_and_matrices_are_known() -> None:
    spec = importlib.util.spec_from_file_location("mace_run_train_example", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    given, model = argparse.Namespace(**ARGUMENTS, amsgrad=True, beta=0.9), small()
    optimizer = script.optimizer_of(given, script.options_of(given, model))
    assert isinstance(optimizer, Soap)
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert rates["interactions_decay"] == (0.02, 1e-3)
    assert rates["interactions_no_decay"] == (0.02, 0.0)
    assert rates["products"] == (0.01, 1e-3)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.parameters()}
    assert sum(weight.covered for weight in script.BLOCKS) > 0.5 * sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    try:
        optimizer.step()
        bases = [key for state in optimizer.state.values() for key in state if "basis" in key]
        assert bases
    finally:
        model.load_state_dict(before)
        model.zero_grad()
