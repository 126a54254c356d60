"""What surgery costs: runs of the network and the largest tensors, which sites do not add to, and linear work."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import surgeon
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import average
from surgeon.algebra.representations.build import irreps
from surgeon.finding import fold
from surgeon.finding.fold import fold_map_at, with_fold
from surgeon.finding.inference.probe import HELD
from surgeon.finding.measured_ops import same_action
from surgeon.plan import Site
from surgeon.support.trees import tensors_in
from tests import nets
from tests.nets import o3

GROUP = parse_group("O3")
MOST_RUNS = 40
PACKAGE = str(Path(surgeon.__file__).parent)


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """How many numbers the largest tensor has that is made meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.size = max(self.size, *(tensor.untyped_storage().nbytes() // 8 for tensor in tensors_in(result)), 0)
        return result


class Layer(nn.Module):
    """Mix the channels of vectors, of which some are not there at first; gate them, and multiply them by matrices.

    The matrices are multiples of the identity, which look invariant, and so does what the gate is made of.
    """

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.mix, self.first = nn.Linear(4, 4, bias=False), first
        self.gate, self.matrices = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, norms = self.mix(x * 0 if self.first else x), x.square().sum(1)
        matrices = self.matrices(torch.tanh(norms)[:, None, None] * torch.eye(3).to(x)[..., None])
        return x + h * torch.tanh(self.gate(norms))[:, None] + torch.einsum("nijc,njc->nic", matrices, x) / 9


class Raw(nn.Module):
    """Mix the channels of vectors by a matrix of its own."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(x.square().sum(1, keepdim=True)) * (x @ self.matrix)


class Chain(nn.Module):
    def __init__(self, layers: int, kind: type[Layer | Raw] = Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(kind(first=not number) for number in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().sum(1)


def turned(g: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("ij,njc->nic", g.to(x), x)


def runs_to_find(layers: int) -> tuple[int, int]:
    """Return the runs of the network, and the sites."""
    runs = [0]

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        runs[0] += 1
        output: Tensor = model(x)
        return output

    x, more = torch.randn(6, 3, 4), [(torch.randn(6, 3, 4),)] * 2
    told: list[str] = []
    plan = surgeon.find(
        Chain(layers),
        "O3",
        x,
        forward=forward,
        further=more,
        adapters={},
        act=turned,
        act_output=lambda g, y: y,
        stage=told.append,
    )
    assert told[-1] == f"found {len(plan.sites)} sites, after {runs[0]} runs of the network in all"
    return runs[0], len(plan.sites)


@pytest.mark.parametrize("held", [HELD, 1])
def test_more_sites_take_no_more_runs(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor do features that look invariant and are not, or calls that do not fit into memory."""
    monkeypatch.setattr("surgeon.finding.measurement.HELD", held)
    monkeypatch.setattr("surgeon.finding.measurement.computed_bytes", lambda recording: held)
    (few, some), (many, more) = runs_to_find(2), runs_to_find(12)
    assert (some, more) == (1 + 2, 11 + 12)
    assert few == many <= MOST_RUNS


class Lines:
    """How many lines of the package run meanwhile; a comprehension counts once for each of its items."""

    def __enter__(self) -> Lines:
        self.count, self._before = 0, sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: FrameType, event: str, _: object) -> Any:
        return self._ran if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _ran(self, frame: FrameType, event: str, _: object) -> Any:
        self.count += event == "line"
        return self._ran


@pytest.mark.parametrize(("kind", "step"), [(Layer, 3), (Raw, 2)])
def test_work_is_linear_in_the_layers(kind: type[Layer | Raw], step: int) -> None:
    """As many more lines run for ``3 step`` layers than for ``2 step`` as for these than for ``step``."""
    counts = []
    for layers in (2, step, 2 * step, 3 * step):  # the first fills caches
        model, x = Chain(layers, kind), torch.randn(6, 3, 4)
        with Lines() as lines:
            plan = surgeon.find(model, "O3", x, adapters={}, act=turned, act_output=lambda g, y: y)
            surgeon.strip(surgeon.relax(model, plan))
        counts.append(lines.count)
    _, few, some, many = counts
    assert abs(many - 2 * some + few) < step**2 / 2  # one line for each pair of layers is twice as many


def annotated(op: nn.Module, x: Tensor, **more: Tensor) -> Site:
    from surgeon_adapters.e3nn_layers.adapter import adapter

    proposal: Any = adapter.propose(op, GROUP)
    return with_fold(nets.site_of(proposal, None), op, [{proposal.argument: x, **more}], ())


@pytest.mark.e3nn
def test_no_dense_matrix_is_formed_to_see_that_an_op_folds() -> None:
    hidden = "24x0e+24x1o+24x2e"
    op, width = o3.Linear(hidden, hidden), 24 * 9
    with Largest() as largest:
        site = annotated(op, torch.randn(2, width))
        fold_map = fold_map_at(op, site)
    assert site.fold is not None
    assert not site.fold_note
    assert fold_map.rank == 3 * 24**2
    assert largest.size <= width**2  # that of W itself
    weight = torch.randn(width, width, dtype=torch.float64)
    assert torch.allclose(fold_map.project(weight), average(weight, site.rho_out, site.rho_in), atol=1e-12)


def test_no_dense_matrix_is_formed_to_compare_two_labels() -> None:
    elements = GROUP.all_elements() if GROUP.finite else torch.linalg.matrix_exp(GROUP.algebra)
    one = irreps(GROUP, "200x0e+200x1o+100x2e")
    with Largest() as largest:
        assert same_action(one, irreps(GROUP, "100x0e+100x0e+200x1o+100x2e"), elements)
        assert not same_action(one, irreps(GROUP, "200x0e+100x1o+100x1e+100x2e"), torch.cat([elements, -elements]))
        assert not same_action(one, irreps(GROUP, "200x0e+200x1o+100x2e", "ir_mul"), elements)
    assert largest.size < one.dimension**2


@pytest.mark.e3nn
@pytest.mark.parametrize("most", [fold.MOST_PRODUCTS, 1])
def test_an_op_with_a_matrix_for_each_of_many_kinds(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few copies of an irrep tell whether an op folds; all of them are folded."""
    monkeypatch.setattr(fold, "MOST_PRODUCTS", most)
    kinds, hidden = 80, "4x0e+3x1o"
    with nets.default_dtype(torch.float64):
        op = o3.FullyConnectedTensorProduct(hidden, f"{kinds}x0e", hidden)
    codes = torch.eye(kinds, dtype=torch.float64)[[3, 1, 4, 1, 5]]
    site = annotated(op, torch.randn(5, 13, dtype=torch.float64), y=codes)
    assert (site.fold_note, site.fold_while) == ("", "every row of y is a one-hot code")
    assert len(json.dumps(site.fold)) < 500
    weight = torch.randn(13, 13, dtype=torch.float64)
    fold_map = fold_map_at(op, site)
    assert torch.allclose(fold_map.project(weight), average(weight, site.rho_out, site.rho_in), atol=1e-9)


@pytest.mark.e3nn
def test_an_op_that_would_take_too_long_to_fold_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    op, x = o3.Linear("4x0e+3x1o", "4x0e+3x1o"), torch.randn(2, 13)
    monkeypatch.setattr(fold, "MOST_FOLDED", 4 * 25)
    assert annotated(op, x).fold is not None
    monkeypatch.setattr(fold, "MOST_FOLDED", 4 * 25 - 1)
    site = annotated(op, x)
    assert site.fold is None
    assert "takes 1e+02 products" in site.fold_note


@pytest.mark.e3nn
def test_rows_that_differ_in_more_ways_than_can_be_tried_do_not_fold() -> None:
    op = o3.FullyConnectedTensorProduct("2x0e", "40x0e+2x1o", "2x0e+2x1o")
    site = annotated(op, torch.randn(20, 2), y=torch.randn(20, 46))
    assert site.fold is None
    assert "no change of its weights changes its linear map alone and does the same in every row" in site.fold_note


@pytest.mark.e3nn
def test_what_differs_from_row_to_row_and_does_not_matter_folds() -> None:
    class Shifted(o3.Linear):  # type: ignore[misc, name-defined]
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x) + y.sum(-1, keepdim=True) * torch.eye(5)[0]

    site = annotated(Shifted("4x0e+3x1o", "2x0e+1x1o"), torch.randn(20, 13), y=torch.randn(20, 200))
    assert (site.fold_note, site.fold_while) == ("", "")
