"""The second moment is the same in both of its forms."""

from __future__ import annotations

import pytest
import torch

from surgeon.algebra.moments import SecondMoment, gram_matrix


@pytest.mark.parametrize("parts", [(2,), (2, 1), (3, 4), (9,), (9, 2)])
def test_both_forms_are_the_mean_of_outer_products(parts: tuple[int, ...]) -> None:
    rows = torch.randn(sum(parts), 6, dtype=torch.float64)
    moment = SecondMoment(6)
    for part in rows.split(list(parts)):
        moment.add(part)
    expected = rows.T @ rows / len(rows)
    assert moment.count == len(rows)
    assert torch.allclose(moment.matrix(), expected, rtol=0, atol=1e-12)
    kept = moment.rows()
    assert (kept is None) == (len(rows) >= 6)
    assert kept is None or torch.equal(kept, rows)
    assert not torch.allclose(moment.matrix(), rows.T @ rows, rtol=0, atol=1e-3)


def test_a_gram_matrix_is_not_rounded_by_mixed_precision() -> None:
    rows = torch.randn(5, 3)
    exact = rows.T @ rows
    with torch.autocast("cpu", torch.bfloat16):
        rounded, found = rows.T @ rows, gram_matrix(rows)
    assert torch.equal(found, exact)
    assert rounded.dtype == torch.bfloat16
    assert not torch.equal(rounded.float(), exact)
