"""Constructors of representations: by irreps, axes, matrices; regular, trivial; with copies, on a grid."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from typing import Any, Literal

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.core import IRREPS_GROUPS, Block, Representation, encoded, merged
from surgeon.algebra.representations.factors import Factor
from surgeon.algebra.representations.grids import check_frame
from surgeon.algebra.representations.images import check_images
from surgeon.errors import GroupError

Layout = Literal["mul_ir", "ir_mul"]

VECTOR_AXIS_LETTERS = ("u", "v", "w")


def irreps(group: Group, irreps: str, layout: Layout = "mul_ir") -> Representation:
    """Direct sum of irreps of O(3) with multiplicities, in e3nn's notation, order and basis.

    Args:
        group: SO3, O3, SE3 or E3; without inversion (SO3, SE3) the parity letters have no effect.
        irreps: for example "16x0e+8x1o".
        layout: "mul_ir" (e3nn: the copies of an irrep one after the other) or "ir_mul" (component first).

    Raises:
        GroupError: if the group has no irreps of O(3), or the string or the layout is not understood.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> irreps(parse_group("SO3"), "2x0e+1o").dimension
        5
    """
    if group.name not in IRREPS_GROUPS:
        raise GroupError(
            f"expected one of {', '.join(IRREPS_GROUPS)} for a representation by irreps of O(3), got {group.name}: "
            "describe the features with axes, regular or trivial"
        )
    _check_layout(layout)
    terms = _parse(irreps)
    if not terms:
        raise GroupError(f"expected at least one irrep, got {irreps!r}: write for example 16x0e+8x1o")
    blocks, start = [], 0
    for multiplicity, degree, parity in terms:
        invariant = degree == 0 and (parity == 1 or group.name in ("SO3", "SE3"))
        factor = None if invariant else Factor("irrep", degree, parity)
        block = _copies_of(start, multiplicity, 2 * degree + 1, factor, layout)
        blocks.append(block)
        start += block.size
    canonical = "+".join(f"{mul}x{degree}{'e' if parity == 1 else 'o'}" for mul, degree, parity in terms)
    return Representation(group, merged(blocks), encoded({"irreps": canonical, "layout": layout}))


def axes(group: Group, names: str, sizes: Mapping[str, int], signs: Sequence[int] = ()) -> Representation:
    """Tensors in any memory order: name the axes, the last one varies fastest.

    An axis whose name begins with u, v or w is a vector index, on which the linear part of the defining representation
    acts; every other axis counts copies. "c v" are c vectors with the channel first, "v c" with the component first,
    "c v w" are c tensors of rank two.

    Args:
        names: axis names separated by blanks.
        sizes: length of each axis of copies.
        signs: +1 or -1 for each of ``group.feature_elements``, by which all is multiplied too: pseudo-tensors, as the
            skew matrix of a polar vector is one of rank two; none for tensors.

    Raises:
        GroupError: if a name repeats, a size is missing, superfluous or not positive, or the signs are not one each.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> axes(parse_group("SO(1,3)"), "c v", {"c": 8}).dimension
        32
    """
    order = names.split()
    copies = [name for name in order if not name.startswith(VECTOR_AXIS_LETTERS)]
    if not order or len(set(order)) < len(order):
        raise GroupError(f"expected distinct axis names, got {names!r}: write for example 'c v w'")
    if not isinstance(sizes, Mapping) or set(sizes) != set(copies):
        raise GroupError(
            f"expected sizes of exactly the axes {copies} of {names!r}, got {sizes}: names that begin with "
            "u, v or w are vector axes and take the group's dimension, rename other axes"
        )
    for name in copies:
        _check_positive(f"the size of axis {name!r}", sizes[name])
    vector = Factor("vector")
    shape = tuple(sizes.get(name, group.vector_dimension) for name in order)
    factors = tuple((axis, vector) for axis, name in enumerate(order) if name not in copies)
    spec: dict[str, Any] = {"axes": " ".join(order), "sizes": {name: sizes[name] for name in copies}}
    if len(signs):
        shape, factors = (*shape, 1), (*factors, (len(order), _character(group, signs)))
        spec["signs"] = [int(sign) for sign in signs]
    return Representation(group, merged([Block(0, shape, factors)]), encoded(spec))


def _character(group: Group, signs: Sequence[int]) -> Factor:
    """One-dimensional: 1 on the identity component, a sign on each of ``group.feature_elements``."""
    if len(signs) != len(group.feature_elements) or any(sign not in (1, -1) for sign in signs):
        raise GroupError(
            f"expected a sign, 1 or -1, for each of the {len(group.feature_elements)} elements of {group.name} besides "
            f"its algebra, got {list(signs)}: give one for each"
        )
    images = {"algebra": [[[0.0]]] * len(group.feature_algebra), "elements": [[[float(sign)]] for sign in signs]}
    return Factor("matrices", data=check_images(group, images))


def regular(group: Group, copies: int, layout: Layout = "mul_ir") -> Representation:
    """Copies of the regular representation of a finite group: g maps the basis vector of h to that of g h.

    Args:
        group: a finite group; basis vectors are in the order of ``Group.all_elements``.
        layout: "mul_ir" (the elements of one copy are neighbours) or "ir_mul" (the copies of one element are).

    Raises:
        GroupError: if the group is not finite, or ``copies`` or ``layout`` is not usable.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> regular(parse_group("D4"), 3).dimension
        24
    """
    _check_layout(layout)
    _check_positive("the number of copies", copies)
    block = _copies_of(0, copies, len(group.all_elements()), Factor("regular"), layout)
    return Representation(group, merged([block]), encoded({"regular": copies, "layout": layout}))


def trivial(group: Group, dimension: int) -> Representation:
    """Invariant features.

    Raises:
        GroupError: if ``dimension`` is not positive.
    """
    _check_positive("the dimension", dimension)
    return Representation(group, (Block(0, (dimension,), ()),), encoded({"trivial": dimension}))


def matrices(group: Group, images: Mapping[str, Any], copies: int = 1, layout: Layout = "mul_ir") -> Representation:
    """Copies of a representation given by the images of the group's generators: irreps in another basis, for example.

    Args:
        images: ``{"algebra": [...], "elements": [...]}``: one f x f matrix, as nested lists, for each of
            ``group.feature_algebra`` and of ``group.feature_elements``.
        layout: "mul_ir" (the components of one copy are neighbours) or "ir_mul" (the copies of one component are).

    Raises:
        GroupError: if the matrices are not one per generator, not square, or not of equal size.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> frequency_two = [[[0.0, -2.0], [2.0, 0.0]]]
        >>> matrices(parse_group("SO2"), {"algebra": frequency_two, "elements": []}, 3).dimension
        6
    """
    _check_layout(layout)
    _check_positive("the number of copies", copies)
    text = check_images(group, images)
    factor = Factor("matrices", data=text)
    block = _copies_of(0, copies, factor.size(group), factor, layout)
    spec = encoded({"matrices": json.loads(text), "copies": copies, "layout": layout})
    return Representation(group, merged([block]), spec)


def repeated(rho: Representation, copies: int) -> Representation:
    """Copies of a representation, entry by entry: the copies of one entry are neighbours in memory.

    Args:
        rho: what each copy transforms by.

    Raises:
        GroupError: if ``copies`` is not positive.
    """
    _check_positive("the number of copies", copies)
    blocks = [Block(copies * block.start, (*block.shape, copies), block.factors) for block in rho.blocks]
    return Representation(rho.group, merged(blocks), encoded({"copies": copies, "of": rho.to_data()}))


def on_grid(rho: Representation, sizes: Sequence[int], frame: Sequence[Sequence[int]]) -> Representation:
    """Patches of a field: ``(g x)(u) = rho(g) x(g^-1 u)`` for the positions u of a grid about its centre.

    Args:
        rho: how the field's values transform.
        sizes: points along each axis of the grid, for example ``(3, 3)``; the position varies fastest in memory.
        frame: signed permutation matrix; ``frame @ x`` are the grid's indices of the group's coordinates x.

    Raises:
        GroupError: if sizes and frame do not fit the group.
    """
    points, axes_ = [int(size) for size in sizes], check_frame(rho.group, sizes, frame)
    factor = Factor("grid", data=encoded({"sizes": points, "frame": axes_}))
    count = factor.size(rho.group)
    blocks = [
        Block(count * block.start, (*block.shape, count), (*block.factors, (len(block.shape), factor)))
        for block in rho.blocks
    ]
    return Representation(rho.group, merged(blocks), encoded({"grid": points, "frame": axes_, "of": rho.to_data()}))


def _without_names(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != "called"}


def _copies_of(start: int, copies: int, size: int, factor: Factor | None, layout: Layout) -> Block:
    shape = (copies, size) if layout == "mul_ir" else (size, copies)
    axis = 1 if layout == "mul_ir" else 0
    return Block(start, shape, ((axis, factor),) if factor else ())


def _parse(text: str) -> list[tuple[int, int, int]]:
    """Read what ``e3nn.o3.Irreps`` reads, without the seconds that importing it takes: (multiplicity, l, parity)."""
    terms = []
    for term in text.split("+") if text.strip() else ():
        match = re.fullmatch(r"\s*(?:(\d{1,9})\s*x)?\s*(\d{1,4})([eoy])\s*", term, re.ASCII)
        if match is None:
            raise GroupError(
                f"expected irreps of O(3) in e3nn's notation, got {text!r}: write multiplicity x degree parity, "
                "for example 16x0e+8x1o"
            )
        degree = int(match[2])
        odd = degree % 2 if match[3] == "y" else match[3] == "o"
        terms.append((int(match[1] or 1), degree, -1 if odd else 1))
    return [term for term in terms if term[0] > 0]


def _check_layout(layout: str) -> None:
    if layout not in ("mul_ir", "ir_mul"):
        raise GroupError(f"expected a layout, got {layout!r}: choose mul_ir or ir_mul")


def _check_positive(what: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise GroupError(f"expected {what} to be a positive whole number, got {value!r}: correct it")


class _OfCode(Representation):
    """A representation of a group that a file names as ``module:function``: imported when first asked for."""

    def __init__(self, group_name: str, told: str) -> None:
        self.group_name, self._told = group_name, told
        self.spec = json.dumps(json.loads(told, object_hook=_without_names), sort_keys=True)

    def named_data(self) -> dict[str, Any]:
        """With the names that the file tells, before the group is imported, which they would take."""
        told: dict[str, Any] = json.loads(self._told)
        return super().named_data() if "group" in vars(self) else told

    @cached_property
    def group(self) -> Group:  # type: ignore[override]
        return parse_group(self.group_name)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:  # type: ignore[override]
        return representation_from(self.group, self.to_data()).blocks


def representation_from(group: Group | str, data: Mapping[str, Any]) -> Representation:
    """Rebuild a representation from :meth:`Representation.to_data`.

    Args:
        group: the group or its name; one that is code is imported, and ``data`` are checked, when it is first used.
        data: a description; a missing layout is "mul_ir", missing sizes are none.

    Raises:
        GroupError: if the description is malformed or the group has no such representation.
    """
    if isinstance(group, str) and ":" in group and isinstance(data, Mapping):
        return _OfCode(group, encoded(data))
    group = parse_group(group)
    match data if isinstance(data, Mapping) else {}:
        case {"irreps": str(text), **rest} if rest.keys() <= {"layout"}:
            return irreps(group, text, rest.get("layout", "mul_ir"))
        case {"axes": str(names)} if data.keys() <= {"axes", "sizes", "signs"}:
            return axes(group, names, data.get("sizes", {}), data.get("signs", ()))
        case {"regular": int(copies), **rest} if rest.keys() <= {"layout"}:
            return regular(group, copies, rest.get("layout", "mul_ir"))
        case {"trivial": int(dimension), **rest} if not rest:
            return trivial(group, dimension)
        case {"matrices": dict(images), "copies": int(copies), **rest} if rest.keys() <= {"layout", "called"}:
            return matrices(group, images, copies, rest.get("layout", "mul_ir"))
        case {"copies": int(copies), "of": dict(inner), **rest} if not rest:
            return repeated(representation_from(group, inner), copies)
        case {"grid": [*sizes], "frame": [*frame], "of": dict(inner), **rest} if not rest:
            return on_grid(representation_from(group, inner), sizes, frame)
        case {"sum": [_, *_] as terms, **rest} if not rest:
            return reduce(lambda left, right: left + right, (representation_from(group, term) for term in terms))
    raise GroupError(
        f"expected a representation as irreps, axes, regular, trivial, matrices, copies, grid or sum, "
        f"got {data!r}: see Representation.to_data"
    )
