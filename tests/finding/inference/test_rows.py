"""A few rows are looked at where all rows are alike; where they are not, and in the end, all are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import irreps
from surgeon.algebra.representations.tensors import TensorType
from surgeon.finding.inference.hypotheses import infer_type
from surgeon.finding.inference.rows import FEW_ROWS, FewRows, few_positions, few_rows
from tests.finding.inference.probes import elements_of, probe_of, random

MANY = 500
KIND = TensorType(irreps(parse_group("O3"), "3x0e+2x1o"), (-1,))
UNSEEN = next(row for row in range(MANY) if row not in few_positions(MANY).tolist())


def test_few_rows_are_spread_from_the_first_to_the_last() -> None:
    chosen = few_positions(MANY).tolist()
    assert chosen == sorted({*chosen, 0, MANY - 1})
    assert len(chosen) == FEW_ROWS


@pytest.mark.parametrize(
    ("run", "alone"),
    [
        (lambda x, w: {"y": x @ w}, True),
        (lambda x, w: x @ w + x.mean(dim=0) @ w, False),
        (lambda x, w: (x @ w)[: len(x) // 2], False),
        (lambda x, w: x @ w * torch.arange(len(x)).unsqueeze(1), False),
        (lambda x, w: x.view(MANY, -1), False),
        (lambda x, w: None, False),
    ],
)
def test_rows_that_depend_on_each_other_are_all_kept(run: Callable[[Tensor, Tensor], Any], alone: bool) -> None:
    arguments: Mapping[str, Any] = {"x": random(MANY, 4), "w": random(4, 3)}
    found = few_rows(lambda given: run(given["x"], given["w"]), arguments)
    assert found == (FewRows(MANY) if alone else FewRows())
    assert [len(found.of(arguments)[name]) for name in ("x", "w")] == [FEW_ROWS if alone else MANY, 4]


def test_what_fits_a_few_rows_has_to_fit_all() -> None:
    elements, base = elements_of("O3"), random(MANY, 9)
    assert infer_type(probe_of(elements, base, KIND.act)).type == KIND

    def one_row_stays(g: Tensor, x: Tensor) -> Tensor:
        moved = KIND.act(g, x)
        moved[UNSEEN] = x[UNSEEN]
        return moved

    verdict = infer_type(probe_of(elements, base, one_row_stays))
    assert verdict.type is None
    assert verdict.residual > 1e-3


def test_what_is_zero_in_a_few_rows_is_found_in_all() -> None:
    elements, base = elements_of("O3"), random(MANY, 9)
    base[few_positions(MANY), 3:6] = 0
    verdict = infer_type(probe_of(elements, base, KIND.act), apart=(-1,))
    assert (verdict.type, verdict.silent) == (KIND, ())


def test_a_long_axis_of_features_is_no_axis_of_rows() -> None:
    kind = TensorType(irreps(parse_group("O3"), "100x0e+20x1o"), (-2,))
    assert infer_type(probe_of(elements_of("O3"), random(160, 5), kind.act)).type == kind
