"""Energies per element that a model adds to its own: where they are, and what they have to be for other labels.

Two codes, or two pseudopotentials, agree on forces and differ in the energy by a constant per atom of each element, of
eV to thousands of eV. Forces, stresses and energy differences at equal composition do not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from surgeon.editing.adjust import Adjustments, changes_of
from surgeon.errors import TaskError
from surgeon.files.ordinary import bytes_of
from surgeon.support.plain import parse_json

WHAT, KEEP, ESTIMATE = "reference energies", "keep", "estimate"
THRESHOLD = 0.05
"""Offset in eV per atom (root mean square over the frames) up to which labels count as the model's own.

Errors of pretrained potentials on new data of their own method are of this size; other references differ by more."""

SPREADS = 3.0
"""An offset also has to be so many times what is left of the errors after it: a bad model has no offset."""

RESOLVED = 1e-3
"""Smallest singular value, over the largest, of a combination of elements that the frames tell from the others."""


MOST_FRAMES = 1000
"""Frames that are looked at, if there are more."""


@dataclass(frozen=True)
class Energies:
    """Energies per atom that a model adds to what it computes.

    Attributes:
        values: in eV, one per kind of atom.
        names: of the kinds.
        kind: atomic number to its kind.
        tensor: name in the state dict; None if the model has no place where kinds can differ.
        first: what precedes the kind in an index of the tensor.
        last: what follows it.
    """

    values: tuple[float, ...]
    names: tuple[str, ...]
    kind: Mapping[int, int]
    tensor: str | None = None
    first: tuple[int, ...] = ()
    last: tuple[int, ...] = ()

    def of_elements(self, offsets: Mapping[str, float] | None = None) -> dict[int, float]:
        """Return atomic number to energy, with further offsets by the names of kinds."""
        further = offsets or {}
        return {z: self.values[kind] + further.get(self.names[kind], 0.0) for z, kind in self.kind.items()}

    def counts(self, frames: Sequence[Sequence[int]]) -> Tensor:
        """Return how many atoms of each kind each frame has, shape (frames, kinds), float64."""
        counts = torch.zeros(len(frames), len(self.names), dtype=torch.float64)
        for row, numbers in zip(counts, frames, strict=True):
            for number in numbers:
                row[self.kind[int(number)]] += 1
        return counts

    def adjustments(self, model: nn.Module, energies: Tensor, offsets: Mapping[str, float], why: str) -> Adjustments:
        """Return what makes these energies, shape (kinds,), the model's: in it, or in the labels if it has no place."""
        if self.tensor is not None:
            values = {(*self.first, kind, *self.last): float(energy) for kind, energy in enumerate(energies)}
            labels = {(*self.first, kind, *self.last): name for kind, name in enumerate(self.names)}
            return Adjustments(WHAT, why, changes_of(model, self.tensor, values, labels))
        shifts = {
            name: offsets.get(name, 0.0) + float(energy) - value
            for name, energy, value in zip(self.names, energies, self.values, strict=True)
            if float(energy) != value
        }
        why += "; the model has no energies per element of its own, so the labels are shifted and it stays on its scale"
        return Adjustments(WHAT, why, (), {"label_offsets": {**offsets, **shifts}} if shifts else {})


@dataclass(frozen=True)
class Fit:
    """Offsets per kind that explain errors of the energy best.

    Attributes:
        offsets: shape (kinds,), in eV per atom.
        size: of the offset, in eV per atom, root mean square over the frames.
        left: of the error after it, the same.
        rank: how many combinations of kinds the frames tell apart.
        kinds: how many kinds are in the frames.
    """

    offsets: Tensor
    size: float
    left: float
    rank: int
    kinds: int

    @property
    def is_large(self) -> bool:
        """Whether the labels have other reference energies than the model."""
        return self.size > THRESHOLD and self.size > SPREADS * self.left

    @property
    def words(self) -> str:
        """What the frames tell."""
        together = f"; the frames tell {self.rank} of {self.kinds} elements apart, so it is the one of least norm"
        return f"{_amount(self.left)} per atom are left{together * (self.rank < self.kinds)}"


def fit_offsets(errors: Tensor, counts: Tensor) -> Fit:
    """Fit label minus model, frame by frame and per atom, by one offset per kind: least squares of minimum norm.

    Combinations of kinds that the frames do not tell from others (all frames of one composition, elements that always
    occur together) get no offset of their own.

    Args:
        errors: shape (frames,), in eV.
        counts: shape (frames, kinds), atoms of each kind.

    Example:
        >>> fit = fit_offsets(torch.tensor([-20.0, -30.0]), torch.tensor([[2.0, 0.0], [2.0, 1.0]]))
        >>> [round(offset, 6) for offset in fit.offsets.tolist()], fit.rank
        ([-10.0, -10.0], 2)
    """
    counts, errors = counts.double(), errors.double()
    atoms = counts.sum(1)
    shares, targets = counts / atoms[:, None], errors / atoms
    left, sizes, right = torch.linalg.svd(shares, full_matrices=False)
    kept = sizes > RESOLVED * sizes.max()
    offsets = right[kept].T @ ((left.T @ targets)[kept] / sizes[kept])
    explained = shares @ offsets
    size, left_over = (float(values.square().mean().sqrt()) for values in (explained, targets - explained))
    return Fit(offsets, size, left_over, int(kept.sum()), int((counts.sum(0) > 0).sum()))


def read_energies(path: Path, energies: Energies, needed: Tensor) -> Tensor:
    """Read the energies of atoms from a JSON file, by the names of kinds; kinds that it leaves out keep theirs.

    Args:
        needed: shape (kinds,), atoms of each in the frames.

    Returns:
        Shape (kinds,), float64, in eV.

    Raises:
        TaskError: if it cannot be read, names unknown kinds, or lacks one that the frames have.
    """
    shape = f'{{"{energies.names[0]}": -13.6, ...}}, in eV'
    try:
        given = parse_json(bytes_of(path))
        values = {str(name): float(value) for name, value in given.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TaskError(
            f"expected reference as keep, estimate or a JSON file {shape}, could not read {str(path)!r} ({error}): "
            "correct --reference"
        ) from error
    unknown = [name for name in values if name not in energies.names]
    absent = [name for name, count in zip(energies.names, needed, strict=True) if count and name not in values]
    if unknown or absent:
        words = f"has no {', '.join(unknown)}" if unknown else f"is not given one for {', '.join(absent)}"
        raise TaskError(
            f"expected an energy for each element of the training frames in {str(path)!r}, but the model {words} "
            f"(it has {', '.join(energies.names)}): write {shape}"
        )
    pairs = zip(energies.names, energies.values, strict=True)
    return torch.tensor([values.get(name, value) for name, value in pairs], dtype=torch.float64)


def new_energies(
    energies: Energies, errors: Tensor, counts: Tensor, isolated: Mapping[int, float], reference: str | None
) -> tuple[Tensor | None, str]:
    """Decide which energies the model should add.

    Args:
        energies: those it has.
        errors: shape (frames,), label minus model in eV.
        counts: shape (frames, kinds), atoms of each kind.
        isolated: energies of isolated atoms in the labels' file, by atomic number.
        reference: "estimate" fits them in any case, a file gives them; None takes the isolated atoms, or fits, if the
            labels are far off.

    Returns:
        Shape (kinds,), float64, or None to keep them; and why.
    """
    current = torch.tensor(energies.values, dtype=torch.float64)
    if reference not in (None, ESTIMATE):
        new = read_energies(Path(str(reference)), energies, counts.sum(0))
        return new, f"given by {Path(str(reference)).name}; {_left(errors, counts, new - current)}"
    fit = fit_offsets(errors, counts)
    found = f"the labels of {len(errors)} training frames are {_amount(fit.size)} per atom off"
    if reference is None and not fit.is_large:
        why = f"{found}, not more than {_amount(THRESHOLD)} and {SPREADS:g} times what is left without that"
        return None, f"kept, since {why} ({_amount(fit.left)}); --reference estimate fits them all the same"
    own = {kind: isolated[number] for number, kind in energies.kind.items() if number in isolated}
    if reference is None and all(kind in own for kind, count in enumerate(counts.sum(0)) if count):
        new = torch.tensor([own.get(kind, value) for kind, value in enumerate(energies.values)], dtype=torch.float64)
        if not fit_offsets(errors - counts @ (new - current), counts).is_large:
            return new, f"{found}; those of its isolated atoms, {_left(errors, counts, new - current)}"
    return current + fit.offsets, f"{found} (limit {_amount(THRESHOLD)}); fitted by least squares, {fit.words}"


def _left(errors: Tensor, counts: Tensor, offsets: Tensor) -> str:
    left = ((errors - counts @ offsets) / counts.sum(1)).square().mean().sqrt()
    return f"{_amount(float(left))} per atom are left" if len(errors) else "nothing was compared, for want of energies"


def _amount(energy: float) -> str:
    return f"{energy:.4g} eV" if energy >= 1 else f"{1000 * energy:.3g} meV"


def sampled(counts: Tensor) -> list[int]:
    """Return which frames are looked at: all, or every so many of them, and one for each kind that these miss."""
    chosen = set(range(0, len(counts), -(-len(counts) // MOST_FRAMES) or 1))
    missing = (counts.sum(0) > 0) & (counts[sorted(chosen)].sum(0) == 0)
    return sorted(chosen | {int(counts[:, kind].argmax()) for kind in missing.nonzero().flatten()})
