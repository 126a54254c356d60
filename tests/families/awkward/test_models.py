"""The awkward models by themselves: they are as equivariant as they claim, and recording one leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import equivariance_error
from surgeon.recording.provenance import used_parameters
from surgeon.recording.record import record
from surgeon.support.modes import default_dtype
from surgeon.support.trees import as_pairs, equal, map_tensors, tensors_in
from tests.families.awkward.broken import BROKEN
from tests.families.awkward.case import Case
from tests.families.awkward.sampled import NEARLY
from tests.families.awkward.test_catalogue import CASES, build

FAITHFUL = [case for case in CASES if case not in NEARLY and (case.sites or case.name == "invariants only")]
UNFAITHFUL = [case for case in CASES if "to be a symmetry" in case.error] + [broken.case for broken in BROKEN]


def name(case: Case) -> str:
    return case.name


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    """Models create constants as they run."""
    with default_dtype(torch.float64):
        yield


def fresh(case: Case) -> tuple[object, ...]:
    """The inputs of a call; some models write to them."""
    torch.manual_seed(1)
    return case.inputs()


def worst_error(case: Case) -> float:
    inputs, model = fresh(case), build(case)
    errors = equivariance_error(model, [inputs], case.symmetry, count=3)
    return max(summary.maximum for summary in errors.values())


@pytest.mark.parametrize("case", FAITHFUL, ids=name)
def test_equivariant(case: Case) -> None:
    by_itself_in_float32 = case.name in ("float32 constant", "fixed dtype")
    assert worst_error(case) < (1e-5 if by_itself_in_float32 else 1e-9)


@pytest.mark.parametrize("case", NEARLY, ids=name)
def test_nearly_equivariant(case: Case) -> None:
    assert 1e-6 < worst_error(case) < 1e-2


@pytest.mark.parametrize("case", UNFAITHFUL, ids=name)
def test_not_equivariant(case: Case) -> None:
    assert worst_error(case) > (1e-4 if "nearly" in case.name + case.trap else 1e-3)


def parameters_with_gradient(model: nn.Module, outputs: object) -> set[str]:
    """Autograd's account of what the outputs were made of, which does not know of the recorder."""
    named = dict(model.named_parameters())
    leaves = [as_pairs(leaf) for leaf in tensors_in(outputs) if leaf.requires_grad]
    total = torch.stack([leaf.sum() for leaf in leaves]).sum()
    gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {key for key, gradient in zip(named, gradients, strict=True) if gradient is not None}


@pytest.mark.parametrize("case", CASES, ids=name)
def test_recording_changes_nothing_and_misses_no_parameter(case: Case) -> None:
    model, inputs = build(case).train(), fresh(case)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    given = map_tensors(Tensor.clone, inputs)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.random.get_rng_state()
    recording = record(model, *given)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert equal(given, inputs)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    assert [module.training for module in model.modules()] == modes
    outputs = model(*map_tensors(Tensor.clone, inputs))
    assert equal(recording.outputs, map_tensors(Tensor.detach, outputs))
    assert parameters_with_gradient(model, outputs) <= used_parameters(recording).keys()
