"""What the e3nn adapter reads off layers: representations and refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.registry import Adapter, Proposal, Refusal, adapter_named, installed_adapters
from surgeon_adapters.e3nn_layers.adapter import adapter
from tests.nets import o3

pytestmark = pytest.mark.e3nn

GROUP = parse_group("O3")


def test_it_is_installed_under_its_name() -> None:
    found: Adapter = adapter_named("e3nn", installed_adapters())
    assert found is adapter
    assert set(adapter.groups) == {"SO3", "O3", "SE3", "E3"}
    assert adapter.rebuild({"weight": torch.zeros(3)}) is None


def test_a_linear_layer_is_proposed_with_its_irreps() -> None:
    proposal = adapter.propose(o3.Linear("2x0e+1o", "3x1o+0e"), GROUP)
    assert isinstance(proposal, Proposal)
    assert proposal.kind == "linear"
    assert proposal.rho_in.to_data() == {"irreps": "2x0e+1x1o", "layout": "mul_ir"}
    assert proposal.rho_out.to_data() == {"irreps": "3x1o+1x0e", "layout": "mul_ir"}
    assert proposal.context == {}


def test_a_product_is_proposed_in_its_first_argument() -> None:
    proposal = adapter.propose(o3.FullyConnectedTensorProduct("2x0e", "1o", "2x1o"), GROUP)
    assert isinstance(proposal, Proposal)
    assert (proposal.argument, proposal.kind) == ("x", "tensor product")
    assert proposal.context["y"].to_data() == {"irreps": "1x1o", "layout": "mul_ir"}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: o3.Linear("0e", "1o"), "share no irrep"),
        (lambda: o3.Linear("2x1o", "2x1o", internal_weights=False), "supplied from elsewhere"),
        (lambda: o3.Linear("2x1o", "2x1o").requires_grad_(False), "frozen"),
        (lambda: o3.Linear("1o", "1o", f_in=2, f_out=3), "channel axis"),
        (lambda: o3.FullyConnectedTensorProduct("1o", "1o", "0e", internal_weights=False), "supplied from elsewhere"),
        (lambda: o3.TensorSquare("2x1o", "0e"), "quadratic"),
    ],
)
def test_refusals_say_why(make: Callable[[], nn.Module], words: str) -> None:
    answer = adapter.propose(make(), GROUP)
    assert isinstance(answer, Refusal)
    assert words in answer.reason


@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 3), lambda: o3.FullTensorProduct("1o", "1o"), nn.ReLU])
def test_other_modules_are_none_of_its_business(make: Callable[[], nn.Module]) -> None:
    assert adapter.propose(make(), GROUP) is None
