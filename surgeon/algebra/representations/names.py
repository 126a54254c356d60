"""Names of representations that are given by matrices, where one that has a name is equivalent to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.images import image_tensors

LARGEST_NAMED = 16
"""Dimension up to which intertwiners to known representations are looked for."""

CLOSE = 1e-4
"""Largest deviation of what was measured by small steps from a whole number."""

Images = tuple[Tensor, Tensor]
"""Of the generators of the Lie algebra, (a, f, f), and of the other elements, (n, f, f)."""


@lru_cache(maxsize=256)
def known_name(group: Group, data: str) -> str:
    """Return what a representation is called; empty if nothing that has a name is equivalent to it.

    Args:
        data: images of the group's generators, see :func:`surgeon.algebra.representations.images.check_images`.

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> known_name(parse_group("SO2"), '{"algebra": [[[0, 3], [-3, 0]]], "elements": []}')
        'frequency 3'
    """
    algebra, elements = image_tensors(data)
    size = (algebra if len(algebra) else elements).shape[-1]
    if size == 1:
        return _character(group, algebra, elements)
    if spinor := _spinor(group, algebra):
        return spinor
    if group.rotations and group.vector_dimension == 3:
        terms = _degrees(algebra, elements)
        terms = f"({terms})" if "+" in terms else terms
        return f"{terms} in another basis" if terms else ""
    if not len(algebra) and _are_permutations(elements):
        return f"permutation of {size} points"
    if group.vector_dimension == 2:
        return _frequencies(group, algebra, elements)
    fitting = (name for name, known in _known(group) if _equivalent((algebra, elements), known))
    return next(fitting, "") if size <= LARGEST_NAMED else ""


def _character(group: Group, algebra: Tensor, elements: Tensor) -> str:
    """One-dimensional: which elements change its sign."""
    if bool(algebra.any()) or not bool((elements.abs() == 1).all()):
        return ""
    odd = [name for name, sign in zip(group.element_names, elements.flatten().tolist(), strict=True) if sign < 0]
    return f"scalar odd under {' and under '.join(odd)}" if odd else "scalar"


def _degrees(algebra: Tensor, elements: Tensor) -> str:
    """Irreps of O(3), read off the Casimir, -sum A^2 = l (l + 1), and the inversion."""
    casimir, vectors = torch.linalg.eig(-(algebra @ algebra).sum(0))
    degrees = ((1 + 4 * casimir.real.clamp(min=0)).sqrt() - 1) / 2
    if float((degrees - degrees.round()).abs().max()) > CLOSE or float(casimir.imag.abs().max()) > CLOSE:
        return ""
    terms = []
    for degree in degrees.round().unique().tolist():
        own = vectors[:, degrees.round() == degree]
        dimension = int(2 * degree + 1)
        traces = [float((torch.linalg.pinv(own) @ g.to(own.dtype) @ own).trace().real) for g in elements]
        odd = [round((own.shape[1] - trace) / 2 / dimension) for trace in traces] or [0]
        counts = (("e", own.shape[1] // dimension - odd[0]), ("o", odd[0]))
        terms += [f"{f'{n}x' if n > 1 else ''}{int(degree)}{parity}" for parity, n in counts if n]
    return "+".join(terms)


def _frequencies(group: Group, algebra: Tensor, elements: Tensor) -> str:
    """Of functions on the circle, cos m phi and sin m phi; ``elements[0]`` generates a finite group's turns.

    Those of m = 0 that reflections change are odd; of the largest m of a finite group's there is one, not a pair.
    """
    largest = float("inf")
    if len(algebra):
        turns, vectors = torch.linalg.eig(algebra[0])
        found, flips = turns.imag.abs(), elements
    elif group.finite and group.generator_names[:1] == ("rotation",):
        turns, vectors = torch.linalg.eig(elements[0])
        step = float(torch.linalg.eigvals(group.elements[0]).angle().abs().max())
        found, flips, largest = turns.angle().abs() / step, elements[1:], torch.pi / step
    else:
        return ""
    if float((found - found.round()).abs().max()) > CLOSE:
        return ""
    counts = dict[str, int]()
    for frequency in sorted(set(found.round().tolist())):
        own = vectors[:, found.round() == frequency]
        single = frequency == 0 or abs(frequency - largest) <= CLOSE
        counts[f"{frequency:.0f}"] = own.shape[1] if single else own.shape[1] // 2
        if frequency == 0 and len(flips):
            trace = float((torch.linalg.pinv(own) @ flips[0].to(own.dtype) @ own).trace().real)
            odd = round((own.shape[1] - trace) / 2)
            counts |= {"0": own.shape[1] - odd, "0 odd": odd}
    terms = [f"{f'{count}x' if count > 1 else ''}{name}" for name, count in counts.items() if count]
    return f"{'frequency' if len(terms) == 1 else 'frequencies'} {', '.join(terms)}"


def _spinor(group: Group, algebra: Tensor) -> str:
    """As real pairs, of groups that are locally SU(2) or the Lorentz group: by the Casimir that is 1 on the adjoint.

    It is j (j + 1) / 2, or the sum of two such, and the groups are told by the signs of their Killing form.
    """
    if len(algebra) not in (3, 6):
        return ""
    adjoint, _ = _adjoint(group)
    killing = torch.einsum("aij,bji->ab", adjoint, adjoint)
    compact, others = (int((sign * torch.linalg.eigvalsh(killing) > CLOSE).sum()) for sign in (-1, 1))
    if compact + others < len(algebra) or (compact, others) not in ((3, 0), (3, 3)):
        return ""
    size = algebra.shape[-1]
    casimir = torch.einsum("ab,aij,bjk->ik", torch.linalg.inv(killing), algebra, algebra)
    value = float(casimir.trace()) / size
    if float((casimir - value * torch.eye(size)).abs().max()) > CLOSE:
        return ""
    if others:
        name = {4: "Weyl spinor", 8: "Dirac spinor"}.get(size, f"{size // 4} Weyl spinors")
        return name if abs(value - 3 / 8) <= CLOSE else ""
    twice = (1 + 8 * max(value, 0.0)) ** 0.5 - 1
    half = round(twice) % 2 == 1 and abs(twice - round(twice)) <= CLOSE
    return f"spin {round(twice)}/2" if half and size == 2 * round(twice) + 2 else ""


def _are_permutations(elements: Tensor) -> bool:
    whole = bool(((elements == 0) | (elements == 1)).all())
    return whole and all(bool((elements.sum(axis) == 1).all()) for axis in (1, 2))


def _known(group: Group) -> Iterator[tuple[str, Images]]:
    """Yield representations that are made of the defining one V, with their names."""
    algebra, elements = group.feature_algebra, group.feature_elements
    size = group.vector_dimension
    yield "vector in another basis", (algebra, elements)
    for degree in range(2, size):
        name = {2: "bivector", 3: "trivector"}.get(degree, f"{degree}-vector")
        yield name, (_on_forms(algebra, degree, True), _on_forms(elements, degree, False))
    if len(algebra):
        yield "adjoint", _adjoint(group)


def _adjoint(group: Group) -> Images:
    """The action on the Lie algebra."""
    algebra, elements = group.feature_algebra, group.feature_elements
    inverse = torch.linalg.pinv(algebra.flatten(1).mT)
    brackets = algebra[:, None] @ algebra - algebra @ algebra[:, None]
    turned = elements[:, None] @ algebra @ torch.linalg.inv(elements)[:, None]
    return inverse @ brackets.flatten(2).mT, inverse @ turned.flatten(2).mT


def _on_forms(matrices: Tensor, degree: int, derivative: bool) -> Tensor:
    """The action on antisymmetric tensors: minors of matrices, or the sum of those with one column of each."""
    chosen = list(combinations(range(matrices.shape[-1]), degree))
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype)

    def entry(each: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> float:
        part = each[list(rows)][:, list(columns)]
        if not derivative:
            return float(torch.linalg.det(part))
        still, index = one[list(rows)][:, list(columns)], torch.arange(degree)
        return sum(float(torch.linalg.det(torch.where(index == m, part, still))) for m in range(degree))

    images = [[[entry(each, rows, columns) for columns in chosen] for rows in chosen] for each in matrices]
    return torch.tensor(images, dtype=torch.float64).reshape(len(matrices), len(chosen), len(chosen))


def _equivalent(left: Images, right: Images) -> bool:
    """Tell whether an invertible T has ``T left = right T``: one is drawn from all that commute."""
    pairs = [(a, b) for own, other in zip(left, right, strict=True) for a, b in zip(own, other, strict=True)]
    size = int(pairs[0][0].shape[-1])
    if pairs[0][1].shape[-1] != size:
        return False
    one = torch.eye(size, dtype=torch.float64)
    conditions = torch.cat([torch.kron(one, a.mT.contiguous()) - torch.kron(b.contiguous(), one) for a, b in pairs])
    _, singular, rows = torch.linalg.svd(conditions, full_matrices=False)
    null = rows[singular <= CLOSE * singular.max()]
    if not len(null):
        return False
    weights = torch.randn(len(null), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = (weights @ null).reshape(size, size)
    return int(torch.linalg.matrix_rank(drawn, rtol=CLOSE)) == size
