"""Whether measured images of a group's generators multiply as these do.

With few rows a regression finds some matrix for every generator, whatever made the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group

TOLERANCE = 1e-6
"""Largest deviation of a product, relative to its largest entry, which counts as at least 1."""

ALGEBRA_TOLERANCE = 1e-5
"""The same of a bracket, whose parts were measured by a small step."""


def respects_relations(group: Group, images: Sequence[Tensor]) -> bool:
    """Tell whether images of a finite group's generators multiply as the generators do, ``rho(g h) = rho(g) rho(h)``.

    Args:
        images: one square matrix per generator.
    """
    elements = group.all_elements()
    known = {0: torch.eye(len(images[0]), dtype=torch.float64)}
    frontier = [0]
    while frontier:
        index = frontier.pop()
        for generator, image in zip(group.elements, images, strict=True):
            product = int((elements - elements[index] @ generator).flatten(1).abs().amax(dim=1).argmin())
            expected = known[index] @ image
            if product not in known:
                known[product] = expected
                frontier.append(product)
            elif not _equal(known[product], expected, TOLERANCE):
                return False
    return True


def respects_brackets(group: Group, algebra: Sequence[Tensor], elements: Sequence[Tensor]) -> bool:
    """Tell whether images of a Lie algebra are a representation of it, and turn under those of the elements as it does.

    That is ``[rho(A), rho(B)] = rho([A, B])`` and ``rho(s) rho(A) = rho(s A s^-1) rho(s)``.

    Args:
        algebra: one square matrix for each of ``group.feature_algebra``.
        elements: one for each of ``group.feature_elements``.
    """
    basis = group.feature_algebra
    if not len(basis):
        return True
    images = torch.stack(list(algebra))

    def image(matrices: Tensor) -> Tensor:
        coordinates = matrices.flatten(1) @ torch.linalg.pinv(basis.flatten(1))
        return torch.einsum("na,aij->nij", coordinates, images)

    if not _equal(_brackets(images), image(_brackets(basis)), ALGEBRA_TOLERANCE):
        return False
    turned = [image(s @ basis @ torch.linalg.inv(s)) for s in group.feature_elements]
    pairs = zip(turned, elements, strict=True)
    return all(_equal(moved @ images, expected @ moved, ALGEBRA_TOLERANCE) for expected, moved in pairs)


def _brackets(matrices: Tensor) -> Tensor:
    products = matrices[:, None] @ matrices
    return (products - products.transpose(0, 1)).flatten(0, 1)


def _equal(left: Tensor, right: Tensor, tolerance: float) -> bool:
    return bool((left - right).abs().max() <= tolerance * (1 + right.abs().max()))
