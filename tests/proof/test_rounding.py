"""RowErrors that rounding flips, and what of them chance explains."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from surgeon.proof.rounding import LEVEL, RowErrors, can_exclude_chance, chance_of, rounded_anew, row_errors

SAMPLES = 40


def rows_of(errors: Tensor, per_sample: int = 1) -> RowErrors:
    """RowErrors of one batch with given relative errors; with several per sample there is an output of samples, too."""
    expected = torch.ones(len(errors), 1, dtype=torch.float64)
    found = RowErrors()
    samples = torch.ones(len(errors) // per_sample, 1, dtype=torch.float64)
    moved, right = ((expected + errors[:, None], samples), (expected, samples))
    found.add(0, moved, right) if per_sample > 1 else found.add(0, moved[0], right[0])
    return found


def noise(seed: int, flipped: int = 0, scale: float = 1e-6) -> Tensor:
    """Errors of rounding, some of them a thousand times larger."""
    generator = torch.Generator().manual_seed(seed)
    errors = scale * (0.5 + torch.rand(SAMPLES, generator=generator, dtype=torch.float64))
    errors[torch.randperm(SAMPLES, generator=generator)[:flipped]] *= 1000
    return errors


def test_rows_are_measured_in_units_of_the_typical_row() -> None:
    expected = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    moved = expected + torch.tensor([[0.0, 0.0], [0.0, 0.5]])
    assert row_errors(moved, expected).tolist() == pytest.approx([0.0, 0.5 / math.sqrt(12.5)])
    assert row_errors(torch.tensor(1.5), torch.tensor(1.0)).tolist() == [0.5]
    assert row_errors(torch.tensor([[math.nan]]), torch.tensor([[1.0]])).tolist() == [math.inf]


def test_the_largest_error_over_elements_counts_and_batches_are_put_one_behind_another() -> None:
    rows, ones = RowErrors(), torch.ones(2, 1, dtype=torch.float64)
    for batch, errors in ((0, [0.1, 0.0]), (0, [0.0, 0.3]), (1, [0.2, 0.0])):
        rows.add(batch, ones + torch.tensor(errors)[:, None], ones)
    assert rows.by_output()[0].tolist() == pytest.approx([0.1, 0.3, 0.2, 0.0])
    assert rows.samples == 4


@pytest.mark.parametrize("seed", range(10))
def test_flips_in_other_rows_are_chance(seed: int) -> None:
    """The maximum is a thousand times larger where one row more is flipped; the distribution is the same."""
    before, after = rows_of(noise(seed)), rows_of(noise(seed + 100, flipped=2))
    assert after.flipped() == (2, SAMPLES)
    assert before.flipped() == (0, SAMPLES)
    assert chance_of(before, after, 10.0, 1e-9) > 0.1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("worse", [noise(7, scale=1e-4), noise(7, flipped=SAMPLES // 2)])
def test_what_chance_does_not_explain(seed: int, worse: Tensor) -> None:
    """A result that is worse in every row, or in half of them."""
    before = rows_of(noise(seed, flipped=1))
    assert chance_of(before, rows_of(worse), 10.0, 1e-9) < LEVEL
    assert chance_of(before, rows_of(worse), 10.0, 1e-1) == 1.0  # all below what counts
    assert chance_of(rows_of(worse), before, 10.0, 1e-9) == 1.0  # better is not worse


def test_the_probability_is_smirnovs() -> None:
    """All of n rows worse: one of the C(2n, n) orders. The frequency of a smaller distance is that of drawing."""
    assert chance_of(rows_of(noise(0)), rows_of(noise(1, scale=1e-4)), 1.0, 0.0) == 1 / math.comb(80, 40)
    generator = torch.Generator().manual_seed(0)
    draws = torch.rand(2, 1000, 12, generator=generator, dtype=torch.float64)
    found = [chance_of(rows_of(a), rows_of(b), 1.0, 0.0) for a, b in zip(*draws, strict=True)]
    for level in (0.01, 0.1, 0.3):
        share = sum(value <= level for value in found) / len(found)
        assert share <= level + 3 * math.sqrt(level / len(found))


def test_rows_of_one_sample_are_no_independent_draws() -> None:
    """A flipped tie moves all eight atoms of a molecule: three of ten molecules are chance, 24 of 80 atoms were not."""
    errors = torch.full((80,), 1e-6, dtype=torch.float64)
    flipped = errors.clone()
    flipped[:24] = 1e-3
    assert chance_of(rows_of(errors), rows_of(flipped), 10.0, 1e-9) < LEVEL
    assert chance_of(rows_of(errors, per_sample=8), rows_of(flipped, per_sample=8), 10.0, 1e-9) > 0.1


@pytest.mark.parametrize(("samples", "enough"), [(6, False), (7, True)])
def test_too_few_rows_exclude_nothing(samples: int, enough: bool) -> None:
    rows, worse = (rows_of(torch.full((samples,), value, dtype=torch.float64)) for value in (1e-6, 1.0))
    assert can_exclude_chance(rows) is enough
    assert (chance_of(rows, worse, 10.0, 1e-9) < LEVEL) is enough


def test_another_rounding_of_a_batch() -> None:
    batch = {"x": torch.ones(100), "z": torch.ones(100, dtype=torch.cfloat), "kinds": torch.arange(3)}
    generator = torch.Generator().manual_seed(0)
    changed = rounded_anew(batch, torch.float32, generator)
    assert torch.equal(changed["kinds"], batch["kinds"])
    for name in ("x", "z"):
        assert changed[name].dtype == batch[name].dtype
        assert 0 < float((changed[name] - 1).abs().max()) < 1e-6


def test_rows_of_complex_outputs_count() -> None:
    found, outputs = RowErrors(), torch.ones(5, 2, dtype=torch.cfloat)
    found.add(0, outputs * (1 + 0.1j), outputs)
    assert found.samples == 5
    torch.testing.assert_close(found.by_output()[0], torch.full((5,), 0.1, dtype=torch.float64))
