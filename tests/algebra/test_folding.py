"""Least squares with J, written down: what the weights of an op may take in of W."""

from __future__ import annotations

import torch

from surgeon.algebra.folding import Entries, FoldMap, folding_parts
from surgeon.algebra.probing import SparseMatrix

EXACT = 1e-12


def test_what_weights_add_to_features_that_are_0_has_to_stay() -> None:
    """Of W (x + 1) the fold may change what it makes of x, as far as what it makes of x = 0 is as before."""
    row, column = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 0, 1])
    jacobian = SparseMatrix(row, column, torch.ones(4, dtype=torch.float64), (3, 2))
    fold_map = FoldMap((1, 2), {"weight": (1, 2)}, folding_parts(jacobian, 1, Entries.single(2)))
    weight = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    expected = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(fold_map.project(weight), expected, atol=EXACT)
    assert torch.allclose(fold_map.weight_change(weight)["weight"], expected, atol=EXACT)
