"""Matrices that can only be run, found with constants that are not as clean as mathematics would have them."""

import torch

from surgeon.algebra.probing import probed_matrix


def test_entries_of_the_size_of_float32_rounding_are_found() -> None:
    """Kernel bases that were sampled in float32 have 1e-8 where there should be 0."""
    number = torch.arange(200)
    matrix = torch.eye(200, dtype=torch.float64)
    matrix[number, number ^ 1] = 1e-8
    found = probed_matrix(lambda x: matrix @ x + 1, [200])
    assert found is not None
    dense = torch.zeros_like(matrix).index_put((found.row, found.column), found.value)
    assert torch.allclose(dense, matrix, rtol=0, atol=1e-13)


def test_a_map_that_is_not_affine_has_no_matrix() -> None:
    matrix = torch.randn(5, 3, dtype=torch.float64)
    assert probed_matrix(lambda x: matrix @ x, [3]) is not None
    assert probed_matrix(lambda x: (matrix @ x) ** 2, [3]) is None


def test_blocks_in_which_all_inputs_meet_are_run_input_by_input() -> None:
    """Every block of 32 inputs fills its outputs, as the points of a kernel do: about one run for each of the 32."""
    torch.manual_seed(0)
    matrix = torch.block_diag(*torch.randn(8, 40, 32, dtype=torch.float64))
    runs = []

    def run(x: torch.Tensor) -> torch.Tensor:
        runs.append(1)
        return matrix @ x + 1

    found = probed_matrix(run, [256])
    assert found is not None
    dense = torch.zeros_like(matrix).index_put((found.row, found.column), found.value)
    assert torch.allclose(dense, matrix, rtol=0, atol=1e-12)
    assert len(runs) < 100  # halving everywhere takes more than 150
