"""Matrices inside weights: what maps the copies of one irrep to those of another, wherever its numbers lie.

By Schur's lemma an equivariant linear map acts on the copies of an irrep as a matrix of multiplicities, a_l (x) 1. The
weights of a layer hold these matrices one after the other, often in one flat tensor (docs/optimizers.md). A block says
where one of them lies; which numbers belong together is what a library says of its layers, or is read off J = dM/dw
(``surgeon.algebra.folding``): numbers that act on the same copies of the features, or make the same copies of the
result, stand in one column, or row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.algebra.folding import FoldMap


@dataclass(frozen=True)
class MatrixBlock:
    """Where the numbers of one matrix lie in a weight, counted as in a contiguous tensor of its shape.

    Attributes:
        shape: rows and columns.
        offset: number of the first entry.
        strides: from one row, and from one column, to the next.
        label: what the matrix maps, in words.
    """

    shape: tuple[int, int]
    offset: int
    strides: tuple[int, int]
    label: str = ""

    @classmethod
    def run(cls, offset: int, rows: int, columns: int, label: str = "") -> MatrixBlock:
        """Return the block whose numbers lie row by row without a gap."""
        return cls((rows, columns), offset, (columns, 1), label)

    @classmethod
    def whole(cls, shape: Sequence[int], label: str = "") -> MatrixBlock:
        """Return the block of a whole tensor whose first axis are the rows."""
        return cls.run(0, shape[0], math.prod(shape[1:]), label)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def of(self, tensor: Tensor) -> Tensor:
        """Return the matrix inside a tensor, sharing memory; shape :attr:`shape`.

        Raises:
            RuntimeError: if the tensor is not contiguous, and not the matrix itself.
        """
        if tensor.shape == self.shape and self.strides == (self.shape[1], 1):
            return tensor
        flat = tensor.view(-1)
        return flat.as_strided(self.shape, self.strides, flat.storage_offset() + self.offset)


def blocks_of_map(fold_map: FoldMap) -> dict[str, list[MatrixBlock]]:
    """Read the matrices off what every weight of an op does to its linear map.

    Rows (columns) of W that one weight acts on together are components of one copy. Weights are put in a matrix by the
    copies that they join; where the numbers do not lie at regular distances, it is cut into several.

    Returns:
        Parameter to its blocks; parameters whose numbers make none are left out.
    """
    pairs = _copies(fold_map)
    found: dict[str, list[MatrixBlock]] = {}
    start = 0
    for name, shape in fold_map.parameters.items():
        end = start + math.prod(shape)
        cells = {(*pairs[weight], weight - start) for weight in pairs if start <= weight < end}
        blocks = [block for matrix in _matrices(cells) for block in _regular(matrix)]
        if blocks:
            found[name] = sorted(blocks, key=lambda block: block.offset)
        start = end
    return found


def _copies(fold_map: FoldMap) -> dict[int, tuple[int, int]]:
    """Return for every weight the copy of the result that it adds to and the copy of the features that it reads."""
    inner, columns = math.prod(fold_map.shape[2:]), fold_map.shape[1]
    row_of, column_of = _Unions(fold_map.shape[0]), _Unions(columns)
    seen: list[tuple[list[int], int, int]] = []
    for part in fold_map.parts:
        rows, reads = part.entries // (columns * inner), part.entries // inner % columns
        for row, read, weights in zip(rows.tolist(), reads.tolist(), part.weights.tolist(), strict=True):
            row_of.join(row)
            column_of.join(read)
            seen.append((weights, row[0], read[0]))
    return {weight: (row_of.find(r), column_of.find(c)) for weights, r, c in seen for weight in weights}


class _Unions:
    """Sets of numbers that are joined step by step."""

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def find(self, number: int) -> int:
        """Return the smallest member of the set of a number."""
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def join(self, numbers: Sequence[int]) -> None:
        """Make one set of those of all numbers."""
        roots = {self.find(number) for number in numbers}
        for root in roots:
            self._parent[root] = min(roots)


def _matrices(cells: set[tuple[int, int, int]]) -> Iterator[Tensor]:
    """Yield positions in a weight, shape (rows, columns), of copies of the result that read the same copies."""
    rows: dict[int, list[tuple[int, int]]] = {}
    for row, column, position in sorted(cells):
        rows.setdefault(row, []).append((column, position))
    alike: dict[tuple[int, ...], list[list[int]]] = {}
    for members in rows.values():
        alike.setdefault(tuple(column for column, _ in members), []).append([position for _, position in members])
    for positions in alike.values():
        matrix = torch.tensor(positions)
        matrix = matrix[:, matrix[0].argsort()]
        yield matrix[matrix[:, 0].argsort()]


def _regular(matrix: Tensor) -> Iterator[MatrixBlock]:
    """Cut a matrix of positions into pieces in which neighbours lie at the same distance everywhere."""
    for rows in _runs(matrix):
        for piece in (run.T for run in _runs(rows.T)):
            strides = (_distance(piece), _distance(piece.T))
            yield MatrixBlock((piece.shape[0], piece.shape[1]), int(piece[0, 0]), strides)


def _runs(matrix: Tensor) -> Iterator[Tensor]:
    """Cut a matrix into runs of rows, each of which follows the one before at one distance."""
    start = 0
    for end in range(1, len(matrix) + 1):
        if end == len(matrix) or bool((matrix[start : end + 1].diff(dim=0) != _distance(matrix[start:])).any()):
            yield matrix[start:end]
            start = end


def _distance(matrix: Tensor) -> int:
    """Return the distance between the first numbers of the first two rows; 1 if there is one row."""
    return int(matrix[1, 0] - matrix[0, 0]) if len(matrix) > 1 else 1
