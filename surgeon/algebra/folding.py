"""The maps that an op's own weights can produce, and the way back to the weights: least squares with J = dM/dw.

An op that is linear in its weights w has the matrix ``M(w) = M(0) + J w``. What of W its weights can take in is the
orthogonal projection of W on the range of J, ``P_op(W) = J J^+ W``, and the change of weights that adds it is the
shortest one, ``dw = J^+ W`` (docs/method.md, "Fold instead of drop"). J falls apart: weights and entries of M that have
nothing to do with each other are solved for by themselves, and of parts that are alike, as the copies of an irrep are,
only the first.

Where the op has further arguments, its matrix differs from row to row of them. Then only changes count that change the
matrix of every row in the same way, and what does not depend on the features not at all: the others are taken out
beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.probing import SparseMatrix

RANK = 1e-9
"""Smallest singular value, relative to the largest of its part, that counts."""

SHARED = 16
"""So many kinds of parts of one size are kept one by one; more of them are stacked."""


class _SelfAdjoint(torch.autograd.Function):
    """Apply an orthogonal projection; its gradient is the same projection, far cheaper than that of the indexing."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Return ``project(weight)``."""
        return project(weight)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the projection; apart from ``forward``, as the transforms of torch.func need it."""
        context.project = inputs[1]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Project the gradient, differentiably."""
        return _SelfAdjoint.apply(gradient, context.project), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(context: Any, tangent: Tensor, _: None) -> Tensor:
        """Project the tangent."""
        return _SelfAdjoint.apply(tangent, context.project)  # type: ignore[no-untyped-call,no-any-return]


@dataclass(frozen=True, eq=False)
class Parts:
    """Parts of J that are solved by themselves, of one size; their matrices are shared or one for each.

    Attributes:
        entries: shape (parts, m), long: positions in the flattened W.
        weights: shape (parts, k), long: positions in the flattened weights.
        basis: shape ([parts,] m, r), float64: orthonormal columns that span what the weights produce.
        solve: shape ([parts,] k, m): J^+.
        effect: shape ([parts,] m, k): J.
    """

    entries: Tensor
    weights: Tensor
    basis: Tensor
    solve: Tensor
    effect: Tensor

    def to(self, device: torch.device) -> Parts:
        """Return the same parts on ``device``."""
        return Parts(*(tensor.to(device) for tensor in vars(self).values()))


def _at(flat: Tensor, index: Tensor) -> Tensor:
    return flat.index_select(0, index.flatten()).view(index.shape)


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Apply a matrix, or one for each, to rows: shape (parts, n)."""
    if matrices.ndim == 2:
        return vectors @ matrices.to(vectors).T
    return torch.einsum("pmn,pn->pm", matrices.to(vectors), vectors)


class FoldMap:
    """What the weights of an op can take in of W.

    Attributes:
        shape: of W.
        parameters: names of the op's parameters that are changed, and their shapes.
        parts: J, by parts.
        holds_while: what is taken for constant of the op's other arguments, in words; empty for nothing.
        pairs: names of the complex ones; the last axis of their shapes is that of real and imaginary parts.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        parameters: Mapping[str, Sequence[int]],
        parts: Sequence[Parts],
        holds_while: str = "",
        pairs: Collection[str] = (),
    ) -> None:
        self.pairs = frozenset(pairs)
        self.shape, self.holds_while = tuple(shape), holds_while
        self.parameters = {name: tuple(size) for name, size in parameters.items()}
        self.parts = list(parts)

    @property
    def rank(self) -> int:
        """Dimension of the space of maps that the weights can produce."""
        return sum(len(part.entries) * part.basis.shape[-1] for part in self.parts)

    def changes(self, parameter: str) -> bool:
        """Tell whether anything of a parameter is ever changed."""
        sizes = [math.prod(shape) for shape in self.parameters.values()]
        index = list(self.parameters).index(parameter)
        start, end = sum(sizes[:index]), sum(sizes[: index + 1])
        return any(bool(((part.weights >= start) & (part.weights < end)).any()) for part in self.parts)

    def _move_to(self, device: torch.device) -> None:
        if any(part.entries.device != device for part in self.parts):
            self.parts = [part.to(device) for part in self.parts]

    def project(self, weight: Tensor) -> Tensor:
        """Return P_op(W): the map nearest to W among those that the op's own weights can produce.

        Returns:
            Shaped as W, differentiable in ``weight``.
        """
        self._move_to(weight.device)
        projected: Tensor = _SelfAdjoint.apply(weight, self._project)  # type: ignore[no-untyped-call]
        return projected

    def _project(self, weight: Tensor) -> Tensor:
        flat = weight.flatten()
        result = torch.zeros_like(flat)
        for part in self.parts:
            found = _times(part.basis, _times(part.basis.mT, _at(flat, part.entries)))
            result.index_copy_(0, part.entries.flatten(), found.flatten())
        return result.view_as(weight)

    def weight_change(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the shortest change of the op's parameters that adds P_op(W) to the op.

        Returns:
            Parameter to change, in its shape and the dtype of ``weight``; computed in float64, differentiable.
        """
        self._move_to(weight.device)
        flat, sizes = weight.flatten(), [math.prod(shape) for shape in self.parameters.values()]
        change = flat.new_zeros(sum(sizes), dtype=torch.float64)
        for part in self.parts:
            found = _times(part.solve, _at(flat, part.entries).double())
            change = change.index_copy(0, part.weights.flatten(), found.flatten())
        pieces = zip(self.parameters.items(), torch.split(change.to(weight), sizes), strict=True)
        changes = {name: piece.reshape(shape) for (name, shape), piece in pieces}
        return {name: torch.view_as_complex(each) if name in self.pairs else each for name, each in changes.items()}

    def map_change(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Return what changes of the op's parameters do to its linear map; the converse of :meth:`weight_change`.

        Args:
            changes: parameter to its change.

        Returns:
            Shaped as W, float64.
        """
        real = [torch.view_as_real(changes[n]) if n in self.pairs else changes[n] for n in self.parameters]
        change = torch.cat([each.double().flatten() for each in real])
        self._move_to(change.device)
        result = change.new_zeros(math.prod(self.shape))
        for part in self.parts:
            result.index_copy_(0, part.entries.flatten(), _times(part.effect, _at(change, part.weights)).flatten())
        return result.reshape(self.shape)


@dataclass(frozen=True, eq=False)
class Entries:
    """Entries of an op's matrix that were read off it, each of which stands for all that equal it by Schur's lemma.

    Attributes:
        positions: of all of them in the flattened W, long, one entry's after another's.
        start: where each begins in ``positions``, and the end; shape (entries + 1,).
    """

    positions: Tensor
    start: Tensor

    @classmethod
    def single(cls, count: int) -> Entries:
        """Return all entries of a W, each by itself."""
        return cls(torch.arange(count), torch.arange(count + 1))

    @property
    def copies(self) -> Tensor:
        """How many positions each entry has."""
        return self.start.diff()

    def places(self, entries: Tensor) -> Tensor:
        """Return the positions of entries, shape (n, m), of which those in a column have equally many."""
        each = [
            self.positions[self.start[column][:, None] + torch.arange(int(self.copies[column[0]]))]
            for column in entries.unbind(1)
        ]
        return torch.cat(each, dim=1) if each else entries


def folding_parts(jacobian: SparseMatrix, rows: int, entries: Entries) -> list[Parts]:
    """Solve J by parts.

    Args:
        jacobian: of what an op does in the rows of its further arguments: in each the entries of its matrix, and then
            what it makes of features 0; flattened.
        entries: where the entries of the matrix are in W.

    Returns:
        The parts in which the weights produce anything that is the same in every row.
    """
    if not len(jacobian.row):
        return []
    width, copies = jacobian.shape[0] // rows, entries.copies
    copies = torch.cat([copies, copies.new_zeros(width - len(copies))])
    pieces = _Pieces(jacobian.row % width, jacobian.column, jacobian.row // width, jacobian.value)
    solved: dict[tuple[int, ...], list[Parts]] = {}
    for members in pieces.alike(copies):
        own, weights = pieces.members(members)
        free = copies[own[0]] > 0
        found = _solve(pieces.dense(int(members[0]), rows), free, copies[own[0][free]])
        if found is not None:
            part = Parts(entries.places(own[:, free]), weights, *found)
            solved.setdefault((*part.entries.shape[1:], *part.solve.shape, part.basis.shape[-1]), []).append(part)
    return [part for kinds in solved.values() for part in (kinds if len(kinds) <= SHARED else [_stacked(kinds)])]


def _stacked(kinds: Sequence[Parts]) -> Parts:
    """Put parts of one size together, with a matrix for each."""

    def each(name: str) -> Tensor:
        return torch.cat([getattr(part, name).expand(len(part.entries), -1, -1) for part in kinds])

    entries, weights = (torch.cat([getattr(part, name) for part in kinds]) for name in ("entries", "weights"))
    return Parts(entries, weights, each("basis"), each("solve"), each("effect"))


def connected_pieces(size: int, one: Tensor, other: Tensor) -> tuple[Tensor, int]:
    """Number the connected pieces of a graph with these edges: names pass to neighbours, and to who bears the name.

    scipy has this, and importing it takes as long as a network of ten layers takes to fold.
    """
    label = torch.arange(size)
    while True:
        before = label
        for start, end in ((one, other), (other, one)):
            least = label[label][end]
            label = label.scatter_reduce(0, label[start], least, "amin").scatter_reduce(0, start, least, "amin")
        label = label[label]
        if torch.equal(before, label):
            names, label = torch.unique(label, return_inverse=True)
            return label, len(names)


class _Pieces:
    """The connected pieces of the graph of matrix entries and weights in which each entry of J is an edge."""

    def __init__(self, entry: Tensor, weight: Tensor, row: Tensor, value: Tensor) -> None:
        self._entries, entry = torch.unique(entry, return_inverse=True)
        self._weights, weight = torch.unique(weight, return_inverse=True)
        size = len(self._entries) + len(self._weights)
        label, count = connected_pieces(size, entry, len(self._entries) + weight)
        of_entry, of_weight = torch.split(label, [len(self._entries), len(self._weights)])
        self._entries, self._entry_start, entry_place = _sorted(self._entries, of_entry, count)
        self._weights, self._weight_start, weight_place = _sorted(self._weights, of_weight, count)
        order = torch.argsort(of_entry[entry], stable=True)
        self._edge_start = _starts(of_entry[entry], count)
        self._piece = of_entry[entry][order]
        self._edges = (row[order], entry_place[entry][order], weight_place[weight][order], value[order])

    def alike(self, kinds: Tensor) -> list[Tensor]:
        """Return lists of pieces with the same matrices, between entries of the same kinds, which are whole numbers."""
        row, entry, weight, value = self._edges
        kind = kinds[self._entries[self._entry_start[self._piece] + entry]]
        mixed = torch.sin(1.0 + row * 1.7 + entry.double() * 0.9 + torch.sqrt(2.0 + weight.double()) + 0.5 * kind)
        size = len(self._edge_start) - 1
        names = torch.zeros(2, size, dtype=torch.float64)
        names[0].index_add_(0, self._piece, value * mixed)
        names[1].index_add_(0, self._piece, kind * mixed)
        names = (names / value.abs().max() * 1e11).round().long()
        counts = [start.diff() for start in (self._entry_start, self._weight_start, self._edge_start)]
        keys = torch.randint(1 << 60, (len(counts) + 2, 1), generator=torch.Generator().manual_seed(0))
        _, group = torch.unique((torch.stack([*counts, *names]) * keys).sum(0), return_inverse=True)
        return list(torch.split(torch.argsort(group, stable=True), torch.bincount(group).tolist()))

    def members(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Return the entries and the weights of pieces of one size; shapes (pieces, m) and (pieces, k)."""
        found = []
        for values, start in ((self._entries, self._entry_start), (self._weights, self._weight_start)):
            size = int(start[pieces[0] + 1] - start[pieces[0]])
            found.append(values[start[pieces][:, None] + torch.arange(size)])
        return found[0], found[1]

    def dense(self, piece: int, rows: int) -> Tensor:
        """Return the matrices of one piece; shape (rows, m, k)."""
        start, end = self._edge_start[piece : piece + 2].tolist()
        m, k = (int(each[piece + 1] - each[piece]) for each in (self._entry_start, self._weight_start))
        row, entry, weight, value = (each[start:end] for each in self._edges)
        return torch.zeros(rows, m, k, dtype=torch.float64).index_put((row, entry, weight), value)


def _starts(label: Tensor, count: int) -> Tensor:
    return torch.cat([torch.zeros(1, dtype=torch.long), torch.bincount(label, minlength=count).cumsum(0)])


def _sorted(values: Tensor, label: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return values piece by piece, where each piece starts, and the place of each value within its piece."""
    order, start = torch.argsort(label, stable=True), _starts(label, count)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) - start[label[order]]
    return values[order], start, place


def _solve(matrices: Tensor, free: Tensor, copies: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Solve one part; None if it produces nothing that is the same in every row and only where it may.

    Args:
        matrices: shape (rows, entries, weights).
        free: which of the entries are of W, shape (entries,); the others have to stay.
        copies: for how many entries of W each of these stands.

    Returns:
        An orthonormal basis of what is produced, J^+ and J.
    """
    effect = matrices[:, free].mean(0)
    varying = torch.cat([(matrices[:, free] - effect).flatten(0, 1), matrices[:, ~free].flatten(0, 1)])
    least = RANK * float(torch.linalg.matrix_norm(matrices.flatten(0, 1)))
    allowed = torch.eye(effect.shape[1], dtype=torch.float64)
    if bool((varying.abs() > least).any()):
        _, sizes, directions = torch.linalg.svd(torch.linalg.qr(varying, "r").R)
        allowed = directions[int((sizes > least).sum()) :].T
    if not effect.numel() or not allowed.numel():
        return None
    effect = effect.repeat_interleave(copies, dim=0)
    basis, sizes, directions = torch.linalg.svd(effect @ allowed, full_matrices=False)
    rank = int((sizes > least).sum())
    if not rank:
        return None
    basis = basis[:, :rank]
    return basis, allowed @ (directions[:rank].T / sizes[:rank]) @ basis.T, effect
