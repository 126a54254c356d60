"""Real representations on a flat feature axis: direct sums of blocks with a layout."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.factors import Factor, check_orthogonal
from surgeon.algebra.representations.names import known_name
from surgeon.algebra.representations.operator import BlockOperator, OperatorBlock
from surgeon.errors import GroupError

IRREPS_GROUPS = ("SO3", "O3", "SE3", "E3")


@dataclass(frozen=True)
class Block:
    """A slice of the feature axis, and how it transforms.

    Attributes:
        start: first index of the slice.
        shape: the slice is reshaped, row-major, to this shape.
        factors: pairs (axis, factor) of the axes that transform, all others count copies; none: invariant.
    """

    start: int
    shape: tuple[int, ...]
    factors: tuple[tuple[int, Factor], ...]

    @property
    def size(self) -> int:
        """Length of the slice."""
        return math.prod(self.shape)


class Representation:
    """A real representation of a group on R^d, applied block by block.

    Build one with :func:`irreps`, :func:`axes`, :func:`regular` or :func:`trivial`, and add them for a direct sum. Two
    are equal if they have the same description and groups of the same name. Equal neighbouring blocks are merged, so
    ``blocks`` can be fewer than the terms of the description.

    Attributes:
        blocks: cover the feature axis in order.
        spec: the description as JSON, see :meth:`to_data`.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> from surgeon.algebra.representations import irreps
        >>> rho = irreps(parse_group("O3"), "16x0e+8x1o")
        >>> rho, rho.dimension, rho.generators().count
        (16x0e+8x1o (mul_ir), 40, 3)
    """

    def __init__(self, group: Group, blocks: tuple[Block, ...], spec: str) -> None:
        self.group, self.blocks, self.spec, self.group_name = group, blocks, spec, group.name

    @property
    def dimension(self) -> int:
        """Length d of the feature axis."""
        return self.blocks[-1].start + self.blocks[-1].size

    @property
    def irreps(self) -> str | None:
        """The irreps of O(3) in order, for ``e3nn.o3.Irreps`` to read; None if this is no direct sum of them.

        Copies follow one another as in e3nn, whatever the layout of the features is. Vectors are "1o".

        Example:
            >>> from surgeon.algebra.groups import parse_group
            >>> from surgeon.algebra.representations import axes, trivial
            >>> (trivial(parse_group("O3"), 4) + axes(parse_group("O3"), "v c", {"c": 8})).irreps
            '4x0e+8x1o'
        """
        if self.group_name not in IRREPS_GROUPS:
            return None
        terms = []
        for block in self.blocks:
            factors = [factor for _, factor in block.factors] or [Factor("irrep")]
            if len(factors) > 1 or factors[0].kind not in ("irrep", "vector"):
                return None
            label = "1o" if factors[0].kind == "vector" else str(factors[0])
            terms.append(f"{block.size // factors[0].size(self.group)}x{label}")
        return "+".join(terms)

    @property
    def is_trivial(self) -> bool:
        """True if every block is invariant."""
        return not any(block.factors for block in self.blocks)

    def action(self, g: Tensor) -> BlockOperator:
        """Return rho(g).

        Args:
            g: shape (k, k) or (n, k, k); elements in the defining representation, or their linear parts.

        Returns:
            A stack of n operators (one for a single element), float64 on the CPU.

        Raises:
            GroupError: if ``g`` is not in the group; tested for irreps and regular representations only.
            ShapeError: if ``g`` has another shape.
        """
        linear = self._linear_stack(g)
        self._check_proper(linear)
        matrices = {factor: factor.action(self.group, linear) for factor in self._factors}
        blocks = tuple(
            OperatorBlock(block.start, block.shape, tuple((axis, matrices[f]) for axis, f in block.factors))
            for block in self.blocks
        )
        return BlockOperator(len(linear), self.dimension, blocks, "action")

    def derivative(self, a: Tensor) -> BlockOperator:
        """Return drho(A), the derivative of the action at the identity.

        Args:
            a: shape (k, k) or (n, k, k); Lie-algebra elements in the defining representation, or their linear parts.

        Returns:
            A stack of n operators (one for a single generator), float64 on the CPU.

        Raises:
            GroupError: if irreps are asked for a matrix that is not antisymmetric.
            ShapeError: if ``a`` has another shape.
        """
        linear = self._linear_stack(a)
        matrices = {factor: factor.derivative(self.group, linear) for factor in self._factors}
        blocks = []
        for block in self.blocks:
            pairs = [(axis, matrices[factor]) for axis, factor in block.factors]
            kept = tuple((axis, matrix) for axis, matrix in pairs if matrix is not None)
            blocks.append(OperatorBlock(block.start, block.shape, kept))
        return BlockOperator(len(linear), self.dimension, tuple(blocks), "derivative")

    def generators(self) -> BlockOperator:
        """Return the derivative at each generator of ``group.feature_algebra``."""
        return self.derivative(self.group.feature_algebra)

    def element_actions(self) -> BlockOperator:
        """Return the action of each of ``group.feature_elements``."""
        return self.action(self.group.feature_elements)

    def to_data(self) -> dict[str, Any]:
        """Return a description as JSON-compatible data.

        One of ``{"irreps": "16x0e+8x1o", "layout": "mul_ir"}``, ``{"axes": "c v", "sizes": {"c": 16}}``, for a
        pseudo-tensor with ``"signs": [-1]``, one for each of the group's elements,
        ``{"regular": 4, "layout": "mul_ir"}``, ``{"trivial": 7}``, ``{"copies": 8, "of": {...}}``, ``{"sum": [...]}``,
        ``{"matrices": {"algebra": [...], "elements": [...]}, "copies": 2, "layout": "mul_ir"}``,
        ``{"grid": [3, 3], "frame": [[1, 0], [0, 1]], "of": {...}}``.
        """
        data: dict[str, Any] = json.loads(self.spec)
        return data

    def named_data(self) -> dict[str, Any]:
        """Return :meth:`to_data` with the name of each term that is given by matrices, where it has one."""
        return _named(self.group, self.to_data())

    def __add__(self, other: Representation) -> Representation:
        """Direct sum: the features of ``other`` follow those of ``self``."""
        if self.group_name != other.group_name:
            raise GroupError(
                f"expected representations of one group in a direct sum, got {self.group_name} and {other.group_name}: "
                "build both with the same group"
            )
        shifted = [Block(self.dimension + block.start, block.shape, block.factors) for block in other.blocks]
        terms = [term for data in (self.to_data(), other.to_data()) for term in data.get("sum", [data])]
        return Representation(self.group, merged([*self.blocks, *shifted]), encoded({"sum": terms}))

    def __eq__(self, other: object) -> bool:
        """Equal descriptions and groups of the same name."""
        if not isinstance(other, Representation):
            return NotImplemented
        return (self.group_name, self.spec) == (other.group_name, other.spec)

    def __hash__(self) -> int:
        """Consistent with equality."""
        return hash((self.group_name, self.spec))

    def __deepcopy__(self, memo: object) -> Representation:
        """Itself: nothing in it is ever changed."""
        return self

    def __repr__(self) -> str:
        """The description in words, for example "16x0e+8x1o (mul_ir)"."""
        return _words(self.named_data())

    @property
    def _factors(self) -> list[Factor]:
        """The distinct factors, in order."""
        return list(dict.fromkeys(factor for block in self.blocks for _, factor in block.factors))

    def _linear_stack(self, matrices: Tensor) -> Tensor:
        linear = self.group.linear(matrices)
        return linear.reshape(-1, *linear.shape[-2:])

    def _check_proper(self, linear: Tensor) -> None:
        """Irreps ignore parity in a group without inversion, so an improper element has no meaning there."""
        if self.group_name not in ("SO3", "SE3") or not any(factor.kind == "irrep" for factor in self._factors):
            return
        if bool((check_orthogonal(linear) < 0).any()):
            raise GroupError(
                f"expected elements of {self.group.name} with determinant 1, got one with determinant -1: "
                "use O3 or E3 for inversions and reflections"
            )


def merged(blocks: list[Block]) -> tuple[Block, ...]:
    """Join neighbours that transform alike and whose copies lie one after the other, so that there is less to do."""
    result: list[Block] = []
    for block in blocks:
        # Invariant entries need no shape.
        current = block if block.factors else Block(block.start, (block.size,), ())
        previous = result[-1] if result else None
        if previous is not None and _mergeable(previous, current):
            joined = (previous.shape[0] + current.shape[0], *current.shape[1:])
            result[-1] = Block(previous.start, joined, previous.factors)
        else:
            result.append(current)
    return tuple(result)


def _mergeable(first: Block, second: Block) -> bool:
    alike = first.factors == second.factors and first.shape[1:] == second.shape[1:]
    return alike and all(axis != 0 for axis, _ in first.factors)


def encoded(data: Mapping[str, Any]) -> str:
    """Canonical JSON."""
    return json.dumps(data, sort_keys=True)


def _named(group: Group, data: dict[str, Any]) -> dict[str, Any]:
    if "matrices" in data:
        name = known_name(group, json.dumps(data["matrices"], sort_keys=True))
        return {**data, "called": name} if name else data
    if "of" in data:
        return {**data, "of": _named(group, data["of"])}
    return {**data, "sum": [_named(group, term) for term in data["sum"]]} if "sum" in data else data


def _words(data: Mapping[str, Any]) -> str:
    if "irreps" in data:
        return f"{data['irreps']} ({data['layout']})"
    if "axes" in data:
        sizes = ", ".join(f"{name}={size}" for name, size in data["sizes"].items())
        pseudo = "pseudo-tensor " if "signs" in data else ""
        return f"{pseudo}axes {data['axes']}" + (f" ({sizes})" if sizes else "")
    if "regular" in data:
        return f"{data['regular']} x regular ({data['layout']})"
    if "trivial" in data:
        return f"{data['trivial']} x trivial"
    if "matrices" in data:
        images = data["matrices"]["algebra"] or data["matrices"]["elements"]
        return f"{data['copies']} x {data.get('called') or f'{len(images[0])}-dimensional'} ({data['layout']})"
    if "of" in data:
        times = f"x {data['copies']}" if "copies" in data else f"on a {' x '.join(map(str, data['grid']))} grid"
        inner = _words(data["of"])
        return f"({inner}) {times}" if "sum" in data["of"] else f"{inner} {times}"
    return " + ".join(_words(term) for term in data["sum"])
