"""Representations given by the images of a group's generators."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.groups.core import Group
from surgeon.errors import GroupError

SAME_ELEMENT = 1e-5
"""Elements may come from float32."""


def check_images(group: Group, images: Mapping[str, Any]) -> str:
    """Return images as canonical JSON.

    Args:
        images: ``{"algebra": [...], "elements": [...]}``, see :func:`surgeon.algebra.representations.matrices`.

    Raises:
        GroupError: if they are not one square matrix of one size per generator, or not finite.
    """
    try:
        algebra, elements = (torch.as_tensor(images[key], dtype=torch.float64) for key in ("algebra", "elements"))
    except (KeyError, TypeError, ValueError) as error:
        raise GroupError(
            f"expected lists of matrices under 'algebra' and 'elements', got {type(images).__name__} ({error}): "
            "correct them"
        ) from error
    needed = (len(group.feature_algebra), len(group.feature_elements))
    if (len(algebra), len(elements)) != needed:
        raise GroupError(
            f"expected {needed[0]} generators and {needed[1]} elements for a representation of {group.name}, got "
            f"{len(algebra)} and {len(elements)}: give one matrix for each"
        )
    shapes = {tuple(part.shape[1:]) for part in (algebra, elements) if len(part)}
    if len(shapes) != 1 or any(len(shape) != 2 or shape[0] != shape[1] for shape in shapes):
        raise GroupError(f"expected square matrices of one size, got shapes {sorted(shapes)}: correct them")
    if not (bool(algebra.isfinite().all()) and bool(elements.isfinite().all())):
        raise GroupError("expected finite matrices, got NaN or infinity among them: correct them")
    return json.dumps({"algebra": algebra.tolist(), "elements": elements.tolist()}, sort_keys=True)


@lru_cache(maxsize=256)
def image_tensors(data: str) -> tuple[Tensor, Tensor]:
    """Return the images of the Lie algebra's generators, (a, f, f), and of the elements, (n, f, f)."""
    parsed = json.loads(data)
    algebra, elements = (torch.tensor(parsed[key], dtype=torch.float64) for key in ("algebra", "elements"))
    return algebra, elements


def image_size(data: str) -> int:
    """Return the dimension f of the representation."""
    algebra, elements = image_tensors(data)
    return int((algebra if len(algebra) else elements).shape[-1])


def images_of_algebra(group: Group, data: str, linear: Tensor) -> Tensor | None:
    """Return drho(A) for Lie-algebra elements with linear parts (n, d, d); shape (n, f, f), None for a finite group."""
    algebra = image_tensors(data)[0]
    if not len(algebra):
        return None
    return torch.einsum("na,aij->nij", _coordinates(group.feature_algebra, linear), algebra)


def _coordinates(basis: Tensor, matrices: Tensor) -> Tensor:
    """Coordinates of (n, d, d) in the basis (a, d, d): shape (n, a)."""
    result: Tensor = matrices.flatten(1) @ torch.linalg.pinv(basis.flatten(1))
    return result


def images_of_elements(group: Group, data: str, linear: Tensor) -> Tensor:
    """Return rho(g) for elements with linear parts (n, d, d); shape (n, f, f).

    Finite groups by products of generators; Lie groups by ``rho(exp(A) e) = exp(drho(A)) rho(e)``; scales by powers.

    Raises:
        GroupError: if a matrix is not in the group.
    """
    image_of = _finite_image if group.finite else _lie_image if len(group.algebra) else _power_image
    images = [image_of(group, data, g) for g in linear]
    return torch.stack(images) if images else torch.zeros(0, image_size(data), image_size(data), dtype=torch.float64)


def _finite_image(group: Group, data: str, g: Tensor) -> Tensor:
    elements, table = _finite_table(group, data)
    distances = (elements - g).flatten(1).abs().amax(dim=1)
    nearest = int(distances.argmin())
    if not float(distances[nearest]) <= SAME_ELEMENT * max(1.0, float(elements.abs().max())):
        raise GroupError(
            f"expected an element of {group.name}, got a matrix at distance {float(distances[nearest]):.1e} from all "
            f"{len(elements)}: draw elements with Group.sample or Group.all_elements"
        )
    return table[nearest]


@lru_cache(maxsize=64)
def _finite_table(group: Group, data: str) -> tuple[Tensor, Tensor]:
    """All elements (linear parts) and their images, by walking through the group generator by generator."""
    generators, images = group.feature_elements, image_tensors(data)[1]
    elements = group.linear(group.all_elements())
    found: dict[int, Tensor] = {0: torch.eye(images.shape[-1], dtype=torch.float64)}
    frontier = [0]
    while frontier:
        index = frontier.pop()
        for generator, image in zip(generators, images, strict=True):
            product = generator @ elements[index]
            target = int((elements - product).flatten(1).abs().amax(dim=1).argmin())
            if target not in found:
                found[target] = image @ found[index]
                frontier.append(target)
    return elements, torch.stack([found[index] for index in range(len(elements))])


def _lie_image(group: Group, data: str, g: Tensor) -> Tensor:
    algebra, images = image_tensors(data)
    eye = torch.eye(image_size(data), dtype=torch.float64)
    identity = torch.eye(g.shape[-1], dtype=torch.float64)
    components = [(identity, eye), *zip(group.feature_elements, images, strict=True)]
    for element, image in components:
        coordinates = _log_coordinates(group, g @ torch.linalg.inv(element))
        if coordinates is not None:
            exponent = torch.einsum("a,aij->ij", coordinates, algebra)
            return torch.mm(torch.linalg.matrix_exp(exponent), image)
    raise GroupError(f"expected an element of {group.name}, got a matrix that is not: draw elements with Group.sample")


def _power_image(group: Group, data: str, g: Tensor) -> Tensor:
    """Return rho(e)^n for ``g = e^n``; where a range of scales is cut off, rho(e) has no inverse."""
    element, image = group.feature_elements[0], image_tensors(data)[1][0]
    power = round(math.log(float(g)) / math.log(float(element))) if float(g) > 0 else -1
    if power < 0 or abs(float(element) ** power - float(g)) > SAME_ELEMENT:
        raise GroupError(
            f"expected a power of {float(element):g}, an element of {group.name}, got {float(g):g}: draw elements with "
            "Group.sample"
        )
    result: Tensor = torch.linalg.matrix_power(image, power)
    return result


def _log_coordinates(group: Group, g: Tensor) -> Tensor | None:
    """Coordinates c with exp(sum c_a A_a) = g, or None if g is not in the identity component."""
    if float(torch.linalg.det(g)) <= 0:
        return None
    basis = group.feature_algebra
    if group.rotations and g.shape[-1] == 3:
        rotation = importlib.import_module("scipy.spatial.transform").Rotation
        if float((g @ g.mT - torch.eye(3, dtype=g.dtype)).abs().max()) > SAME_ELEMENT:
            return None
        vector = torch.from_numpy(rotation.from_matrix(g.numpy()).as_rotvec())
        cross = torch.zeros(3, 3, dtype=g.dtype)
        cross[2, 1], cross[0, 2], cross[1, 0] = vector
        logarithm = cross - cross.mT
    elif group.rotations and g.shape[-1] == 2:
        angle = torch.atan2(g[1, 0] - g[0, 1], g[0, 0] + g[1, 1])
        logarithm = angle * torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=g.dtype)
    else:
        raw = torch.from_numpy(importlib.import_module("scipy.linalg").logm(g.numpy()))
        if raw.is_complex() and float(raw.imag.abs().max()) > SAME_ELEMENT:
            return None
        logarithm = raw.real.to(torch.float64)
    coordinates = _coordinates(basis, logarithm[None])[0]
    back = torch.linalg.matrix_exp(torch.einsum("a,aij->ij", coordinates, basis))
    return coordinates if float((back - g).abs().max()) <= SAME_ELEMENT * max(1.0, float(g.abs().max())) else None
