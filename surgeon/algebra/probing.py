"""The sparse matrix of a linear map that can only be run, found in far fewer runs than it has columns.

Where every output of the map depends on one input alone, four runs say on which, and how: on ``a`` (random), on
``k a_k`` (the ratio of the two tells the input's number), and twice on other random numbers, which the decoded matrix
has to predict. Where several inputs meet in one output this fails; the inputs are halved then, and pieces whose outputs
do not overlap are run together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = 1e-12
"""Largest entry, relative to the largest of a run, that counts as rounding of 0."""

DECODED = 1e-9
"""Largest relative deviation from what a decoded matrix predicts; also of a map that counts as linear."""

ALONE = 3e-14
"""Largest deviation, relative to the largest entry of a run, of an output that depends on one input alone.

Little above rounding: constants that were made in float32 leave entries of 1e-8, which may not be overlooked.
"""

DENSE = 0.9
"""Share of what two halves might reach from which on their inputs are run one by one."""

MOST_PAIRS = 30_000_000
"""Pairs of an output and a piece up to which that is done at once."""

MOST_RUNS = 3000
"""Runs after which a map in which everything depends on everything is given up."""


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """Entries of a matrix: ``row`` and ``column`` long, ``value`` float64, each of shape (entries,)."""

    row: Tensor
    column: Tensor
    value: Tensor
    shape: tuple[int, int]

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector."""
        result = torch.zeros(self.shape[0], dtype=self.value.dtype, device=self.value.device)
        return result.index_add(0, self.row, self.value * vector[self.column])


def probed_matrix(run: Callable[[Tensor], Tensor], sizes: Sequence[int]) -> SparseMatrix | None:
    """Return the matrix of the linear part of an affine map.

    Args:
        run: from the inputs, float64, shape (sum of ``sizes``,), to outputs of one axis.
        sizes: how the inputs are made up; inputs of different parts often meet in an output, those of one part seldom.

    Returns:
        The matrix, in which columns and rows without influence are empty; None if the map is not affine, or too many
        inputs meet in one output.
    """
    probe = _Probe(run, sum(sizes))
    if not probe.is_linear():
        return None
    ends = torch.tensor([0, *sizes]).cumsum(0)
    pieces = torch.stack([ends[:-1], ends[1:]], dim=1)
    pieces = pieces[pieces[:, 1] > pieces[:, 0]]
    rows, owners = torch.arange(len(probe.offset)).repeat(len(pieces)), torch.arange(len(pieces))
    owners = owners.repeat_interleave(len(probe.offset))
    colours, asked = torch.arange(len(pieces)), 0
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    while len(pieces):
        if probe.runs + (4 if bool((pieces.diff() > 1).any()) else 1) * int(colours.max() + 1) > MOST_RUNS:
            return None
        before, asked = asked, len(rows)
        rows, owners, done = probe.decode(pieces, colours, rows, owners)
        found.append(done)
        open_ = torch.unique(owners)
        owners = torch.searchsorted(open_, owners)
        pieces, colours = pieces[open_], _colours(rows, owners, len(open_))
        # where both halves reach what the whole reached, so will theirs: each input is run by itself
        dense = before and not len(done[0]) and len(rows) >= DENSE * asked
        number = int(pieces.diff().max()) if dense else 2
        number = number if number * len(rows) <= MOST_PAIRS else 2
        pieces, colours, rows, owners = _cut(pieces, colours, rows, owners, number)
    row, column, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    matrix = SparseMatrix(row, column, value, (len(probe.offset), sum(sizes)))
    return matrix if probe.agrees(matrix) else None


def _cut(
    pieces: Tensor, colours: Tensor, rows: Tensor, owners: Tensor, number: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut each piece into so many, of which all may reach what the whole reached."""
    part = torch.arange(number)
    ends = pieces[:, :1] + (pieces.diff() * torch.arange(number + 1) + number - 1) // number
    pieces = torch.stack([ends[:, :-1], ends[:, 1:]], dim=2).flatten(0, 1)
    colours = (number * colours[:, None] + part).flatten()
    return pieces, colours, rows.repeat(number), (number * owners + part[:, None]).flatten()


class _Probe:
    """Runs of an affine map."""

    def __init__(self, run: Callable[[Tensor], Tensor], size: int) -> None:
        self._run, self._size, self.runs = run, size, 1
        self._generator = torch.Generator().manual_seed(0)
        self.offset = run(torch.zeros(size, dtype=torch.float64))

    def _random(self) -> Tensor:
        return 1 + torch.rand(self._size, generator=self._generator, dtype=torch.float64)

    def _at(self, inputs: Tensor) -> Tensor:
        self.runs += 1
        return self._run(inputs) - self.offset

    def is_linear(self) -> bool:
        """Tell whether two random inputs add up, and a multiple gives the multiple."""
        x, y = self._random() - 1.5, self._random() - 1.5
        at_x, at_y, both = self._at(x), self._at(y), self._at(2 * x + y)
        return _close(both, 2 * at_x + at_y, at_x.abs() + at_y.abs())

    def agrees(self, matrix: SparseMatrix) -> bool:
        """Tell whether a matrix predicts one more run."""
        x = self._random() - 1.5
        return _close(self._at(x), matrix @ x, self.offset.abs())

    def decode(
        self, pieces: Tensor, colours: Tensor, rows: Tensor, owners: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Run all pieces of inputs, those of one colour together, and read off the columns of those that allow it.

        Args:
            pieces: first input and end of each piece, shape (pieces, 2).
            colours: of the pieces; pieces of one colour share no row.
            rows: outputs that a piece may reach, shape (pairs,).
            owners: the piece of each pair, shape (pairs,).

        Returns:
            Rows that the other pieces do reach, their owners, and the entries (row, column, value) that were found.
        """
        found = torch.zeros(4, len(rows), dtype=torch.float64)
        scale, *others = self._random(), self._random(), self._random()
        rounding = torch.zeros(len(rows), dtype=torch.float64)
        number = torch.arange(self._size, dtype=torch.float64)
        colour_of = torch.full((self._size,), -1)
        for (start, end), colour in zip(pieces.tolist(), colours.tolist(), strict=True):
            number[start:end] = (number[start:end] - start + 1) / (end - start)
            colour_of[start:end] = colour
        order, counts = torch.argsort(colours[owners], stable=True), torch.bincount(colours[owners])
        for colour, chosen in enumerate(torch.split(order, counts.tolist())):
            taken = scale * (colour_of == colour)
            inputs = [taken, taken * number, *(taken * other for other in others)]
            for index, given in enumerate(inputs if (pieces[colours == colour].diff() > 1).any() else inputs[:1]):
                result = self._at(given)
                largest = result.abs().max()
                result[result.abs() <= NOTHING * largest] = 0
                rounding[chosen] = ALONE * largest
                found[index, chosen] = result[rows[chosen]]
        reached = found.any(0)
        rows, owners, (once, counted, *controls) = rows[reached], owners[reached], found[:, reached]
        size = pieces[:, 1] - pieces[:, 0]
        ratio = torch.where(once != 0, counted / once, torch.zeros_like(once))
        place = (ratio * size[owners]).round().long() - 1
        column = pieces[owners, 0] + place.clamp(min=0).minimum(size[owners] - 1)
        fits = torch.ones_like(rows, dtype=torch.bool)
        for control, other in zip(controls, others, strict=True):
            fits &= (control - once * other[column]).abs() <= rounding[reached]
        simple = ((torch.bincount(owners[~fits], minlength=len(pieces)) == 0) | (size == 1))[owners]
        values = torch.where(simple, once, 0) / scale[column]
        return rows[~simple], owners[~simple], (rows[simple], column[simple], values[simple])


def _close(left: Tensor, right: Tensor, scale: Tensor) -> bool:
    size = float((right.abs() + scale).max()) if len(right) else 0.0
    return not len(left) or bool((left - right).abs().max() <= DECODED * size)


def _colours(rows: Tensor, owners: Tensor, count: int) -> Tensor:
    """Return the least colours, taken greedily, by which pieces that share a row differ; shape (count,)."""
    colours = torch.zeros(count, dtype=torch.long)
    _, rows = torch.unique(rows, return_inverse=True)
    names = torch.randint(1 << 60, (count,), generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(int(rows.max()) + 1 if len(rows) else 0, dtype=torch.long).index_add(0, rows, names[owners])
    _, alike = torch.unique(sums, return_inverse=True)  # rows of the same owners count once
    pairs = torch.unique(alike[rows] * count + owners)
    rows, owners = pairs // count, pairs % count
    shared = torch.bincount(rows, minlength=1)[rows] > 1
    by_owner: dict[int, list[int]] = {}
    for row, owner in zip(rows[shared].tolist(), owners[shared].tolist(), strict=True):
        by_owner.setdefault(owner, []).append(row)
    used: dict[int, set[int]] = {}
    for owner, own in sorted(by_owner.items()):
        taken = set().union(*(used.setdefault(row, set()) for row in own))
        colour = next(number for number in range(len(taken) + 1) if number not in taken)
        colours[owner] = colour
        for row in own:
            used[row].add(colour)
    return colours
