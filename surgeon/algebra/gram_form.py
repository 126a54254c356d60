"""Values and gradient of the penalty from second moments, with few products of large matrices.

With ``Y = W C`` a defect acts on the data as ``L_A(W) C = rho_out(A) Y - W rho_in(A) C``. The operators are small
matrices on the components of many copies, so only ``W C`` and the ``W rho_in(A) C`` are products worth counting. Sorted
by component they are sums over components a, b of ``W_a C_b``: for vectors the trace ``sum_a W_a C_a`` and the three
differences ``W_b C_a - W_a C_b``, nine products of the blocks. Six are enough, by pairs (a, b) in cyclic order::

    m  = (sqrt2 W_a + W_b) (sqrt2 C_a - C_b) / 2,    m' = (sqrt2 W_a - W_b) (sqrt2 C_a + C_b) / 2
    m + m' = 2 W_a C_a - W_b C_b,                    m - m' = sqrt2 (W_b C_a - W_a C_b)

All tensors that are made on the way have the size of W: larger ones would be mapped and unmapped at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from surgeon.algebra.representations.core import Block, Representation
from surgeon.algebra.representations.operator import BlockOperator, OperatorBlock

ROOT_TWO = math.sqrt(2)
Entry = tuple[int, int, float]
Root = Callable[[Tensor], Tensor]
PAIRS = ((0, 1), (1, 2), (2, 0))


@dataclass(frozen=True)
class Part:
    """All copies of one small representation, at neighbouring coordinates (component, copy).

    Attributes:
        start: first coordinate.
        size: components f of one copy.
        copies: how many.
        matrices: shape (operators, f, f).
        multiples: per operator the number of which it is that multiple of 1; None if it is none.
        entries: per operator the entries of its matrix that are not 0: row, column, value.
        turns: for vectors under antisymmetric operators their entries at ``PAIRS``, None for multiples of 1; empty
            for everything else.
    """

    start: int
    size: int
    copies: int
    matrices: Tensor
    multiples: tuple[float | None, ...]
    entries: tuple[tuple[Entry, ...], ...]
    turns: tuple[tuple[float, ...] | None, ...]

    @property
    def coordinates(self) -> slice:
        """Where the part is."""
        return slice(self.start, self.start + self.size * self.copies)

    def rows(self, x: Tensor) -> Tensor:
        """Return the part's rows of ``x`` (d, m) as a view of shape (f, copies * m)."""
        return x[self.coordinates].view(self.size, -1)

    def columns(self, x: Tensor) -> Tensor:
        """Return the part's columns of ``x`` (m, d) as a view of shape (m, f, copies)."""
        return x[:, self.coordinates].view(len(x), self.size, self.copies)


def part_of(start: int, copies: int, matrices: Tensor) -> Part:
    """Return the copies of a small representation with these operators, shape (operators, f, f), float64."""
    multiples = tuple(_multiple(matrix) for matrix in matrices)
    entries = tuple(tuple((a, b, float(m[a, b])) for a, b in m.nonzero().tolist()) for m in matrices)
    turning = [m for m, multiple in zip(matrices, multiples, strict=True) if multiple is None]
    turns: tuple[tuple[float, ...] | None, ...] = ()
    if matrices.shape[1] == len(PAIRS) and turning and all(torch.equal(m, -m.T) for m in turning):
        found = [tuple(float(matrix[pair]) for pair in PAIRS) for matrix in matrices]
        turns = tuple(turn if number is None else None for turn, number in zip(found, multiples, strict=True))
    return Part(start, matrices.shape[1], copies, matrices, multiples, entries, turns)


@dataclass(frozen=True)
class Side:
    """One side of W with its coordinates sorted: equal parts together, components before copies.

    Attributes:
        order: coordinate k of the sorted features is coordinate ``order[k]`` of the features; None if equal.
        back: the inverse of ``order``.
        parts: cover the sorted coordinates.
    """

    order: Tensor | None
    back: Tensor | None
    parts: tuple[Part, ...]

    def to(self, like: Tensor) -> Side:
        """Return the same side in the dtype and on the device of ``like``."""
        parts = tuple(replace(part, matrices=part.matrices.to(like)) for part in self.parts)
        order, back = (None if index is None else index.to(like.device) for index in (self.order, self.back))
        return Side(order, back, parts)

    def add_left(self, out: Tensor, x: Tensor, number: int, transpose: bool = False) -> None:
        """Add ``rho x``, or ``rho^T x``, to ``out`` (d, m) in place, for one operator."""
        for part in self.parts:
            multiple = part.multiples[number]
            if multiple is None:
                matrix = part.matrices[number]
                part.rows(out).addmm_(matrix.T if transpose else matrix, part.rows(x))
            elif multiple:
                out[part.coordinates].add_(x[part.coordinates], alpha=multiple)

    def subtract_right(self, out: Tensor, x: Tensor, number: int, transpose: bool = False) -> None:
        """Subtract ``x rho``, or ``x rho^T``, from ``out`` (m, d) in place, for one operator."""
        for part in self.parts:
            multiple = part.multiples[number]
            if multiple is None:
                target, source = part.columns(out).unbind(1), part.columns(x).unbind(1)
                for row, column, entry in part.entries[number]:
                    a, b = (column, row) if transpose else (row, column)
                    target[b].sub_(source[a], alpha=entry)
            elif multiple:
                out[:, part.coordinates].sub_(x[:, part.coordinates], alpha=multiple)


def sorted_side(rho: Representation) -> Side:
    """Sort the coordinates of a representation."""
    stacks = [stack for stack in (rho.generators(), rho.element_actions()) if stack.count]
    found: dict[tuple[int, bytes], tuple[Tensor, list[Tensor]]] = {}
    for number, block in enumerate(rho.blocks):
        axes = sorted({axis for axis, _ in block.factors})
        size = math.prod(block.shape[axis] for axis in axes)
        small = [_small(stack, number, block, axes) for stack in stacks]
        matrices = torch.cat(small) if small else torch.zeros(0, size, size)
        others = [axis for axis in range(len(block.shape)) if axis not in axes]
        places = torch.arange(block.start, block.start + block.size).view(block.shape).permute(*axes, *others)
        key = (size, matrices.numpy().tobytes())
        found.setdefault(key, (matrices, []))[1].append(places.reshape(size, -1))
    parts, orders, start = [], [], 0
    for matrices, places_of in found.values():
        order = torch.cat(places_of, 1)
        parts.append(part_of(start, order.shape[1], matrices))
        orders.append(order.flatten())
        start += order.numel()
    total = torch.cat(orders)
    if torch.equal(total, torch.arange(rho.dimension)):
        return Side(None, None, tuple(parts))
    return Side(total, total.argsort(), tuple(parts))


def _small(stack: BlockOperator, number: int, block: Block, axes: list[int]) -> Tensor:
    """Return what a stack of operators does to one copy of a block; shape (operators, f, f)."""
    sizes = tuple(block.shape[axis] for axis in axes) or (1,)
    factors = tuple((axes.index(axis), matrices) for axis, matrices in stack.blocks[number].factors)
    return BlockOperator(stack.count, math.prod(sizes), (OperatorBlock(0, sizes, factors),), stack.kind).dense()


def _multiple(matrix: Tensor) -> float | None:
    number = float(matrix[0, 0])
    return number if torch.equal(matrix, number * torch.eye(len(matrix)).to(matrix)) else None


class GramForm:
    """The penalty of W from C = mean of x x^T, for one pair of representations.

    Args:
        rho_out: output representation, dimension d_out.
        rho_in: input representation, dimension d_in, of the same group.
    """

    def __init__(self, rho_out: Representation, rho_in: Representation) -> None:
        self._out, self._into = sorted_side(rho_out), sorted_side(rho_in)
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Side, Side]] = {}

    def __call__(self, weight: Tensor, moments: Tensor, root: Root | None) -> tuple[Tensor, Tensor]:
        """Return all terms and the gradient of their sum.

        Args:
            weight: W, shape (d_out, d_in).
            moments: C, shape (d_in, d_in).
            root: applied to every ``tr(M C M^T)``; None for the trace itself.

        Returns:
            Terms of shape (1 + operators,), that of W and those of its defects; the gradient, shaped as W.
        """
        out, into = self._sides(weight)
        w, c = _permuted(weight, out.order, into.order), _permuted(moments, into.order, into.order)
        y, acting = _products(w, c, into)
        terms = [_term(w, y, root)]
        gradient = y * _slope(terms[0], root)
        for number, product in enumerate(acting):
            defect = torch.zeros_like(w)
            out.add_left(defect, w, number)
            into.subtract_right(defect, w, number)
            out.add_left(product, y, number)
            terms.append(_term(defect, product, root))
            product.mul_(_slope(terms[-1], root))
            out.add_left(gradient, product, number, transpose=True)
            into.subtract_right(gradient, product, number, transpose=True)
        return torch.stack(terms), _permuted(gradient, out.back, into.back)

    def _sides(self, like: Tensor) -> tuple[Side, Side]:
        # Always cast from float64: operators that went through float32 would stay rounded.
        key = (like.dtype, like.device)
        if key not in self._cast:
            self._cast = {key: (self._out.to(like), self._into.to(like))}
        return self._cast[key]


def _permuted(x: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    x = x if rows is None else x.index_select(0, rows)
    return (x if columns is None else x.index_select(1, columns)).contiguous()


def _term(matrix: Tensor, product: Tensor, root: Root | None) -> Tensor:
    square = torch.dot(matrix.flatten(), product.flatten())
    return square if root is None else root(square)


def _slope(term: Tensor, root: Root | None) -> Tensor | float:
    """Return the derivative of a term by its matrix M over M C: d tr(M C M^T) = 2 tr(dM C M^T) for symmetric C."""
    return 2.0 if root is None else 1 / term


def _products(w: Tensor, c: Tensor, into: Side) -> tuple[Tensor, list[Tensor]]:
    """Return W C and, for every operator, minus W rho C; w and c are sorted."""
    y = torch.zeros_like(w)
    acting = [torch.zeros_like(w) for _ in into.parts[0].multiples]
    for part in into.parts:
        if not any(part.multiples) and None not in part.multiples:
            y.addmm_(w[:, part.coordinates], c[part.coordinates])
            continue
        own = _vectors(w, c, part, acting) if part.turns else _general(w, c, part, acting)
        y.add_(own)
        for product, multiple in zip(acting, part.multiples, strict=True):
            if multiple:
                product.sub_(own, alpha=multiple)
    return y, acting


def _vectors(w: Tensor, c: Tensor, part: Part, acting: list[Tensor]) -> Tensor:
    """Return W C of one part, and subtract its W rho C for antisymmetric rho, by the six products of this module."""
    weights, moments = part.columns(w).unbind(1), c[part.coordinates].view(3, part.copies, -1).unbind(0)
    own = torch.zeros_like(w)
    for pair, (a, b) in enumerate(PAIRS):
        first, half = ROOT_TWO * weights[a], moments[b] / 2
        plus = (first + weights[b]) @ torch.sub(moments[a] / ROOT_TWO, half)
        minus = (first - weights[b]) @ torch.add(moments[a] / ROOT_TWO, half)
        own.add_(plus).add_(minus)
        plus.sub_(minus)
        for product, turn in zip(acting, part.turns, strict=True):
            if turn is not None and turn[pair]:
                product.add_(plus, alpha=turn[pair] / ROOT_TWO)
    return own


def _general(w: Tensor, c: Tensor, part: Part, acting: list[Tensor]) -> Tensor:
    """The same for any matrices, leaving out components that an operator does not reach."""
    rows = c[part.coordinates].view(part.size, part.copies, -1)
    for product, matrix, multiple, entries in zip(acting, part.matrices, part.multiples, part.entries, strict=True):
        if multiple is None:
            reached = sorted({column for _, column, _ in entries})
            moved = matrix[:, reached].T @ part.columns(w)
            product.addmm_(moved.flatten(1), rows[reached].flatten(0, 1), alpha=-1)
    return w[:, part.coordinates] @ c[part.coordinates]
