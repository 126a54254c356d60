"""Energies per element: what is fitted to labels, when it is taken, and when it is left alone. No library is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from surgeon.errors import TaskError
from surgeon_adapters.atoms import reference
from surgeon_adapters.atoms.reference import Energies, fit_offsets, new_energies, sampled

ENERGIES = Energies((1.0, 2.0, 3.0), ("H", "C", "O"), {1: 0, 6: 1, 8: 2}, "energies")
TRUE = torch.tensor([-3.0, -40.0, 100.0], dtype=torch.float64)
MOLECULES = [[1, 1, 8], [6, 1, 1, 1, 1], [6, 8, 8], [6, 8], [1, 1]]


def frames(offsets: Tensor, molecules: list[list[int]] = MOLECULES, noise: float = 0.01) -> tuple[Tensor, Tensor]:
    """Errors of a model that is ``noise`` off per atom, besides offsets, and the composition of each frame."""
    counts = ENERGIES.counts(molecules)
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(len(molecules), generator=generator, dtype=torch.float64)
    return counts @ offsets + noise * counts.sum(1) * random, counts


def test_offsets_are_found_for_each_element() -> None:
    fit = fit_offsets(*frames(TRUE, MOLECULES * 10))
    assert torch.allclose(fit.offsets, TRUE, atol=0.05)
    assert fit.is_large
    assert fit.rank == fit.kinds == 3


def test_without_other_references_nothing_is_large() -> None:
    """The negative twin; nor is a model that is bad on all frames, or labels that are a little off."""
    assert not fit_offsets(*frames(0 * TRUE, MOLECULES * 10)).is_large
    assert not fit_offsets(*frames(0 * TRUE, MOLECULES * 10, noise=20.0)).is_large
    assert not fit_offsets(*frames(0 * TRUE + 0.04, MOLECULES * 10, noise=0.0)).is_large
    assert fit_offsets(*frames(0 * TRUE + 0.06, MOLECULES * 10, noise=0.0)).is_large


def test_one_composition_tells_no_elements_apart() -> None:
    """The solution of least norm explains the labels; what no frame has stays as it is."""
    errors, counts = frames(TRUE, [[6, 6, 1, 1, 1, 1]] * 8)
    fit = fit_offsets(errors, counts)
    assert (fit.rank, fit.kinds) == (1, 2)
    assert abs(float(fit.offsets[2])) < 1e-9
    assert torch.allclose(fit.offsets[0], 2 * fit.offsets[1])
    assert ((errors - counts @ fit.offsets) / 6).abs().max() < 0.05
    assert "tell 1 of 2 elements apart" in fit.words


def test_elements_that_always_occur_together_share_their_offset() -> None:
    errors, counts = frames(TRUE, [[6, 8, 1], [6, 8], [6, 8, 1, 1]] * 3, noise=0.0)
    fit = fit_offsets(errors, counts)
    assert fit.rank == 2
    assert torch.allclose(fit.offsets, torch.tensor([-3.0, 30.0, 30.0], dtype=torch.float64))


def test_isolated_atoms_of_the_file_are_taken_if_they_explain_the_labels() -> None:
    errors, counts = frames(TRUE, [[6, 8, 1]] * 8)
    isolated = dict(zip((1, 6, 8), (TRUE + torch.tensor(ENERGIES.values)).tolist(), strict=True))
    new, why = new_energies(ENERGIES, errors, counts, isolated, None)
    assert new is not None
    assert new.tolist() == list(isolated.values())
    assert "those of its isolated atoms" in why
    for wrong in ({1: 0.0, 6: 0.0, 8: 0.0}, {1: isolated[1], 8: isolated[8]}):
        new, why = new_energies(ENERGIES, errors, counts, wrong, None)
        assert new is not None
        assert "fitted by least squares" in why
        assert (errors - counts @ (new - torch.tensor(ENERGIES.values))).abs().max() < 0.2


def test_what_is_asked_for_counts(tmp_path: Path) -> None:
    errors, counts = frames(0 * TRUE + 0.01, noise=0.0)
    kept, why = new_energies(ENERGIES, errors, counts, {}, None)
    assert kept is None
    assert why.startswith("kept, since the labels of 5 training frames are 10 meV per atom off, not more than 50 meV")
    fitted, _ = new_energies(ENERGIES, errors, counts, {}, "estimate")
    assert fitted is not None
    assert torch.allclose(fitted, torch.tensor(ENERGIES.values).double() + 0.01)
    path = tmp_path / "energies.json"
    path.write_text(json.dumps({"H": -13.6, "C": -1000, "O": 2.5}))
    given, why = new_energies(ENERGIES, errors, counts, {}, str(path))
    assert given is not None
    assert given.tolist() == [-13.6, -1000.0, 2.5]
    assert "given by energies.json; " in why


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "could not read .*correct --reference"),
        ('{"H": "much"}', "could not read"),
        ('{"H": 1, "C": 2}', "the model is not given one for O"),
        ('{"H": 1, "C": 2, "O": 3, "Xx": 4}', r"the model has no Xx \(it has H, C, O\)"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "energies.json"
    path.write_text(content)
    with pytest.raises(TaskError, match=words):
        new_energies(ENERGIES, *frames(TRUE), {}, str(path))
    with pytest.raises(TaskError, match="expected reference as keep, estimate or a JSON file .*could not read 'kep'"):
        new_energies(ENERGIES, *frames(TRUE), {}, "kep")


def test_a_model_without_a_place_leaves_them_to_the_labels() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("energies", torch.tensor(ENERGIES.values))

    new = torch.tensor([1.0, 2.5, 3.0], dtype=torch.float64)
    placed = ENERGIES.adjustments(Network(), new, {}, "why")
    assert [(change.label, change.before, change.after) for change in placed.changes] == [("C", 2.0, 2.5)]
    assert placed.arguments == {}
    nowhere = Energies(ENERGIES.values, ENERGIES.names, ENERGIES.kind)
    shifted = nowhere.adjustments(Network(), new, {"H": 0.25}, "why")
    assert shifted.changes == ()
    assert shifted.arguments == {"label_offsets": {"H": 0.25, "C": 0.5}}
    assert nowhere.of_elements({"C": 0.5})[6] == 2.5
    assert "the labels are shifted" in shifted.why


def test_a_rare_element_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MOST_FRAMES", 3)
    counts = ENERGIES.counts([[1, 6]] * 8 + [[8]] + [[1, 6]])
    assert sampled(counts) == [0, 4, 8]
    assert sampled(counts[:2]) == [0, 1]
    assert sampled(ENERGIES.counts([[1]] * 5 + [[8]] + [[1]] * 3)) == [0, 3, 5, 6]
