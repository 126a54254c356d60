"""What the e3nn adapter reads off layers: representations, refusals, constant scalars, fold maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.registry import Adapter, Proposal, Refusal, adapter_named, installed_adapters
from surgeon_adapters.e3nn_layers.adapter import adapter
from tests import nets
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


def scalars(values: list[list[float]], labels: str = "3x0e", dtype: torch.dtype = torch.float64) -> Any:
    op = o3.FullyConnectedTensorProduct("1o", labels, "1o")
    calls = [{"y": torch.tensor(rows, dtype=dtype)} for rows in values]
    return adapter.fold_data(op, calls)[0]


def test_constant_scalars_are_found_with_their_values() -> None:
    assert scalars([[[1.0, 0.5, 2.0], [1.0, 0.7, 2.0]]]) == {"parameter": "weight", "scalars": {"0": 1, "2": 2}}
    assert scalars([[[1.0, 0.25, 0.0]], [[1.0, 0.25, 0.0]]])["scalars"] == {"0": 1, "1": 0.25}
    assert scalars([[[1.0, 3.0, 0.0]], [[2.0, 3.0, 0.0]]])["scalars"] == {"1": 3}


def test_small_constants_are_not_rounded_away() -> None:
    found = scalars([[[1e-8, 0.0, 1.0000001]] * 2], dtype=torch.float32)["scalars"]
    assert found["0"] == pytest.approx(1e-8)
    assert found["2"] == 1


def test_neither_vectors_nor_pseudoscalars_count() -> None:
    assert scalars([[[1.0, 1.0, 1.0, 1.0, 2.0]] * 2], "0o+1o+0e")["scalars"] == {"4": 2}
    assert scalars([[[1.0, 1.0, 1.0]] * 2], "1o") is None


@pytest.mark.parametrize(
    ("calls", "words"),
    [
        ([], "not known without a sample batch"),
        ([{"y": torch.randn(4, 8)}], "no constant scalar"),
        ([{"y": torch.ones(1, 8)}], "no constant scalar"),
        ([{"y": torch.ones(0, 8)}], "no constant scalar"),
        ([{"y": torch.zeros(4, 8)}], "no constant scalar"),
    ],
)
def test_the_note_says_why_a_product_cannot_be_folded(calls: list[dict[str, Tensor]], words: str) -> None:
    fold, note = adapter.fold_data(nets.product("uvw"), calls)
    assert fold is None
    assert words in note


def test_a_computed_weight_cannot_be_folded_into() -> None:
    op = nn.utils.parametrizations.weight_norm(o3.Linear("2x1o", "2x1o"), dim=None)
    fold, note = adapter.fold_data(op, [])
    assert fold is None
    assert "computed from other parameters" in note
    assert adapter.fold_data(o3.Linear("2x1o", "2x1o"), [])[0] == {"parameter": "weight"}


def test_wide_layers_are_mapped_without_a_loop_over_weights() -> None:
    op = o3.Linear("256x0e+256x1o", "256x0e+256x1o")
    proposal = adapter.propose(op, GROUP)
    site = nets.site_of(proposal, {"parameter": "weight"})
    entries = adapter.fold_map(op, site, GROUP).entries
    assert {label: len(part.weight) for label, part in entries.items()} == {"0e": 256**2, "1o": 256**2}
    positions = torch.cat([part.weight for part in entries.values()])
    assert torch.equal(positions.sort().values, torch.arange(op.weight.numel()))
