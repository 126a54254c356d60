"""The group: its Lie algebra, one element of each further component, and random elements."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from surgeon.errors import GroupError, ShapeError

FINITE_ORDER_LIMIT = 10_000
"""A finite group with more elements than this is refused."""

SAME_ELEMENT_TOLERANCE = 1e-6
"""Two matrices of a finite group closer than this in every entry are the same element."""

RANDOM_WALK_STEPS = 32

TEST_STEP = 1.0
"""Size of the test elements along single generators: the angle, in radians, if the generator is that of a rotation."""


class GroupElement(NamedTuple):
    """One element by which something is judged.

    Attributes:
        label: which element, in words: "generator 1", "random 2", "inversion", "reflection".
        component: what its error is summarised under: the component's name; in a finite group the generator's, or
            ``OTHER_ELEMENTS``.
        g: shape (k, k), float64.
    """

    label: str
    component: str
    g: Tensor


OTHER_ELEMENTS = "other elements"
"""Component of the test elements of a finite group that are no generators."""


@dataclass(frozen=True, eq=False, repr=False)
class Group:
    """A matrix Lie group with finitely many components, or a finite matrix group.

    Everything is stored in the defining representation, k x k matrices in float64 on the CPU.

    Attributes:
        name: canonical ("SO2", "E3", "SO13", "D6") or the user's name.
        algebra: shape (n_generators, k, k), a basis of the Lie algebra; empty for a finite group.
        elements: shape (n, k, k), one element of each component other than the identity's; for a finite group a
            generating set.
        component_names: one name per component, the identity's first; ``("all elements",)`` for a finite group.
        finite: True if the group has finitely many elements.
        affine: True if elements are homogeneous matrices whose translation column acts trivially on features.
        compact: True if the group is compact.
        rotations: True if the linear part of the identity component is all of SO(d), so that it can be sampled exactly.
        generator_names: of a finite group one name per generator; by default "generator 1", ...

    Example:
        >>> from surgeon.algebra.groups import parse_group
        >>> group = parse_group("O(3)")
        >>> group.component_names, tuple(group.algebra.shape)
        (('identity', 'inversion'), (3, 3, 3))
    """

    name: str
    algebra: Tensor
    elements: Tensor
    component_names: tuple[str, ...]
    finite: bool
    affine: bool
    compact: bool
    rotations: bool = False
    generator_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Show the name only."""
        return f"Group({self.name})"

    @property
    def dimension(self) -> int:
        """Size k of the matrices of the defining representation."""
        return int(self.algebra.shape[-1])

    @property
    def vector_dimension(self) -> int:
        """Size d of the linear part: k - 1 for homogeneous matrices, else k."""
        return self.dimension - 1 if self.affine else self.dimension

    @property
    def rescales(self) -> bool:
        """True for a group of scales: 1 x 1 matrices, which stretch every axis of a grid alike."""
        return self.vector_dimension == 1 and not self.finite

    def linear(self, g: Tensor) -> Tensor:
        """Return the part of elements or generators that acts on features.

        Args:
            g: shape (..., k, k); a linear part of shape (..., d, d) is returned as it is.

        Returns:
            Shape (..., d, d), float64 on the CPU, detached.

        Raises:
            ShapeError: if ``g`` has neither shape.
        """
        g = g.detach().to("cpu", torch.float64)
        size = self.vector_dimension
        if g.ndim < 2 or g.shape[-1] != g.shape[-2] or g.shape[-1] not in (size, self.dimension):
            raise ShapeError(
                f"expected matrices of {self.name} of shape (..., {self.dimension}, {self.dimension}), got shape "
                f"{tuple(g.shape)}: pass elements or generators in the defining representation"
            )
        return g[..., :size, :size]

    @property
    def feature_algebra(self) -> Tensor:
        """Shape (n, d, d): linear parts of the generators that act on features; pure translations are left out."""
        linear = self.linear(self.algebra)
        return linear[linear.flatten(1).abs().sum(dim=1) > 0]

    @property
    def feature_elements(self) -> Tensor:
        """Shape (n, d, d): linear parts of ``elements``."""
        return self.linear(self.elements)

    def all_elements(self) -> Tensor:
        """Return every element of a finite group, the identity first.

        With generators r, s, ... the order is 1, r, r^2, ..., s, r s, r^2 s, ...

        Returns:
            Shape (order, k, k), float64.

        Raises:
            GroupError: if the group is not finite or too large.
        """
        if not self.finite:
            raise GroupError(
                f"expected a finite group, got {self.name}, which has infinitely many elements: "
                "draw some with Group.sample"
            )
        return self._all_elements

    @cached_property
    def _all_elements(self) -> Tensor:
        return _closure(self.name, self.elements)

    @property
    def element_names(self) -> tuple[str, ...]:
        """One name per entry of ``elements``."""
        if not self.finite:
            return self.component_names[1:]
        return self.generator_names or tuple(f"generator {index + 1}" for index in range(len(self.elements)))

    def test_elements(self, generator: torch.Generator, random: int = 2) -> list[GroupElement]:
        """Return the elements by which anything that is said to have this symmetry is judged.

        What holds under a few random elements of a finite group may hold in a subgroup only, so all generators are
        among them. Judge by the *largest* error over all of them, never by a mean or a median, and name the worst:

            ``errors = [(error(element.g), element.label) for element in group.test_elements(generator, random=4)]``
            ``worst, label = max(errors)``; with ``element.component`` as key, one maximum per component.

        Args:
            generator: source of randomness, on the CPU.
            random: how many random elements each component gets; of a finite group, how many elements besides its
                generators, fewer if there are no more.

        Returns:
            Of a Lie group one step along each generator that acts on features, in order, and random elements of the
            identity component; then of every further component its own element and random ones, ``random`` in all.
            Of a finite group every generator, then different random elements that are neither these nor the identity.

        Example:
            >>> from surgeon.algebra.groups import parse_group
            >>> found = parse_group("D3").test_elements(torch.Generator(), random=2)
            >>> [element.component for element in found]
            ['rotation', 'reflection', 'other elements', 'other elements']
        """
        named = zip(self.element_names, self.elements, strict=True)
        if self.finite:
            return [GroupElement(name, name, g) for name, g in named] + self._other_elements(generator, random)
        identity = self.component_names[0]
        found = [GroupElement(f"generator {index + 1}", identity, g) for index, g in enumerate(self._steps())]
        count = random if len(self.algebra) else 1  # without generators each component has one element
        drawn = self.sample(count, generator)
        found += [GroupElement(f"random {index + 1}", identity, g) for index, g in enumerate(drawn)]
        for component, (name, element) in enumerate(named, start=1):
            found.append(GroupElement(name, name, element))
            drawn = self.sample(max(count - 1, 0), generator, component)
            found += [GroupElement(f"random {name} {index + 1}", name, g) for index, g in enumerate(drawn)]
        return found

    def _steps(self) -> Tensor:
        """Steps along the generators that act on features, scaled to the norm sqrt(2) of a rotation's."""
        algebra = self.algebra[self.linear(self.algebra).flatten(1).abs().sum(dim=1) > 0]
        sizes = algebra.flatten(1).norm(dim=1)[:, None, None]
        steps: Tensor = torch.linalg.matrix_exp(TEST_STEP * 2**0.5 * algebra / sizes)
        return steps

    def _other_elements(self, generator: torch.Generator, count: int) -> list[GroupElement]:
        elements = self.all_elements()
        order = torch.randperm(len(elements), generator=generator).tolist()
        others = (index for index in order if index and not _contains(self.elements, elements[index]))
        return [GroupElement(f"element {index}", OTHER_ELEMENTS, elements[index]) for index in islice(others, count)]

    def sample(self, count: int, generator: torch.Generator, component: int = 0) -> Tensor:
        """Draw random elements of one component.

        Rotations are drawn from the Haar measure; SE(3) and E(3) add translations with N(0, 1) coordinates. A finite
        group is drawn uniformly. A user-defined compact group is drawn by a random walk of 32 steps, which is close to
        the Haar measure. In a non-compact group the element is exp(sum_i c_i A_i) with c_i uniform in [-1, 1] and A_i
        scaled to Frobenius norm sqrt(2): for SO(1,3) rapidities and angles of at most 1 about each axis.

        Args:
            generator: source of randomness, on the CPU.
            component: index into ``component_names``.

        Returns:
            Shape (count, k, k), float64.

        Raises:
            GroupError: if the group has no such component.
        """
        if not 0 <= component < len(self.component_names):
            choices = ", ".join(f"{index} ({name})" for index, name in enumerate(self.component_names))
            raise GroupError(f"expected a component of {self.name}, got {component}: choose one of {choices}")
        if self.finite:
            elements = self.all_elements()
            return elements[torch.randint(len(elements), (count,), generator=generator)]
        g = self._sample_identity_component(count, generator)
        return g if component == 0 else g @ self.elements[component - 1]

    def _sample_identity_component(self, count: int, generator: torch.Generator) -> Tensor:
        if self.rotations:
            return self._sample_motions(count, generator)
        directions = self.algebra / self.algebra.flatten(1).norm(dim=1)[:, None, None]
        if not self.compact:
            return _random_exponentials(2**0.5 * directions, count, generator)
        # Unit generators have eigenvalues of order 1/sqrt(k): scaled so, one step goes about once around the group.
        steps = torch.pi * self.dimension**0.5 * directions
        g = torch.eye(self.dimension, dtype=torch.float64)
        for _ in range(RANDOM_WALK_STEPS):
            g = _random_exponentials(steps, count, generator) @ g
        return g

    def _sample_motions(self, count: int, generator: torch.Generator) -> Tensor:
        size = self.vector_dimension
        g = torch.eye(self.dimension, dtype=torch.float64).repeat(count, 1, 1)
        g[:, :size, :size] = _haar_rotations(size, count, generator)
        if self.affine:
            g[:, :size, size] = torch.randn(count, size, dtype=torch.float64, generator=generator)
        return g


def _haar_rotations(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Orthogonal factor of Gaussian matrices; the signs make it unique, hence Haar, and the determinant +1."""
    q, r = torch.linalg.qr(torch.randn(count, size, size, dtype=torch.float64, generator=generator))
    q = q * torch.diagonal(r, dim1=-2, dim2=-1).sign()[:, None, :]
    signs = torch.ones(count, 1, size, dtype=torch.float64)
    signs[:, 0, 0] = torch.linalg.det(q).sign()
    return torch.mul(q, signs)


def _random_exponentials(directions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    coefficients = 2 * torch.rand(count, len(directions), dtype=torch.float64, generator=generator) - 1
    exponentials: Tensor = torch.linalg.matrix_exp(torch.einsum("na,aij->nij", coefficients, directions))
    return exponentials


def _closure(name: str, generators: Tensor) -> Tensor:
    """All products of ``generators``, coset by coset (Dimino's algorithm), so that the order is predictable."""
    size = generators.shape[-1]
    # Entries first, elements last in memory: the search through all elements is then several times faster.
    found = torch.empty(size, size, FINITE_ORDER_LIMIT, dtype=torch.float64).movedim(-1, 0)
    found[0] = torch.eye(size, dtype=torch.float64)
    count = 1
    for used in range(1, len(generators) + 1):
        subgroup, representatives = found[:count].clone(), [found[0].clone()]
        for representative in representatives:
            for generator in generators[:used]:
                product = representative @ generator
                if _contains(found[:count], product):
                    continue
                if count + len(subgroup) > FINITE_ORDER_LIMIT:
                    raise GroupError(
                        f"expected the elements of {name} to generate a finite group, got more than "
                        f"{FINITE_ORDER_LIMIT} products: give a Lie algebra, or correct the elements"
                    )
                found[count : count + len(subgroup)] = subgroup @ product
                count += len(subgroup)
                representatives.append(product)
    return found[:count].contiguous()


def _contains(found: Tensor, product: Tensor) -> bool:
    entries = found.movedim(0, -1).flatten(0, 1)
    return bool(((entries - product.reshape(-1, 1)).abs_().amax(dim=0) < SAME_ELEMENT_TOLERANCE).any())
