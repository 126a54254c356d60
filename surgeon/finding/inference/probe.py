"""Run a model on transformed copies of its inputs and keep what chosen modules received and returned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.core import Group, GroupElement
from surgeon.recording.calls import Calls, captured_calls
from surgeon.recording.record import Recording, record
from surgeon.support.trees import map_tensors

STEP = 1e-3
"""Size of the small group elements exp(+-STEP A), dimensionless; for float64."""

CHECKS = 2
"""Random elements per component under which a verdict has to hold, see :meth:`Group.test_elements`."""


@dataclass(frozen=True)
class Elements:
    """The group elements under which a model is run.

    Attributes:
        group: the group.
        small: shape (n_generators, 2, k, k): exp(+STEP A), exp(-STEP A) for the generators that act on features.
        components: shape (n, k, k): one element of each further component; generators of a finite group.
        checks: shape (m, k, k): the other test elements of the group, random ones above all.
        names: label and component of each element of ``components``, then of ``checks``.
    """

    group: Group
    small: Tensor
    components: Tensor
    checks: Tensor
    names: tuple[tuple[str, str], ...]

    @classmethod
    def draw(cls, group: Group, generator: torch.Generator) -> Elements:
        """Choose the elements."""
        linear = group.linear(group.algebra)
        algebra = group.algebra[linear.flatten(1).abs().sum(dim=1) > 0]
        small = torch.linalg.matrix_exp(torch.stack([STEP * algebra, -STEP * algebra], dim=1))
        tests = group.test_elements(generator, CHECKS)
        own = [element for element in tests if element.label in group.element_names]
        others = [element for element in tests if element.label not in group.element_names]
        checks = torch.stack([element.g for element in others]) if others else group.elements[:0]
        names = tuple((element.label, element.component) for element in [*own, *others])
        return cls(group, small, group.elements, checks, names)

    def judging(self) -> Elements:
        """Return these without the small ones, by which representations are found."""
        return dataclasses.replace(self, small=self.small[:0])

    def all(self) -> list[Tensor]:
        """Return every element, the identity first."""
        identity = torch.eye(self.group.dimension, dtype=torch.float64)
        return [identity, *self.small.flatten(0, 1), *self.components, *self.checks]

    @property
    def judges(self) -> list[GroupElement]:
        """The last of ``all()``: those by which everything is judged, all generators of a finite group included."""
        matrices = [*self.components, *self.checks]
        return [GroupElement(*names, g) for names, g in zip(self.names, matrices, strict=True)]


@dataclass(frozen=True)
class TensorProbe:
    """One tensor of a model in all the runs.

    Attributes:
        elements: the group elements.
        values: one tensor per element of ``elements.all()``.
    """

    elements: Elements
    values: tuple[Tensor, ...]

    @property
    def base(self) -> Tensor:
        """The tensor on the untransformed inputs."""
        return self.values[0]

    def small(self) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs (y_plus, y_minus), one per generator."""
        count = len(self.elements.small)
        flat = self.values[1 : 1 + 2 * count]
        return list(zip(flat[::2], flat[1::2], strict=True))

    def components(self) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs (g, y_g) of the further components."""
        start = 1 + 2 * len(self.elements.small)
        return list(zip(self.elements.components, self.values[start:], strict=False))

    def checks(self) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs (g, y_g) of the elements that judge."""
        judges = self.elements.judges
        return [(element.g, moved) for element, moved in zip(judges, self.values[-len(judges) :], strict=True)]


@dataclass(frozen=True)
class Probe:
    """All runs of a model.

    Attributes:
        elements: the group elements.
        calls: per module name, one list of calls for each element of ``elements.all()``.
        outputs: what the model returned for each element.
    """

    elements: Elements
    calls: Mapping[str, Sequence[Calls]]
    outputs: Sequence[Any]

    def tensor(self, name: str, read: Callable[[Mapping[str, Any], Any], Tensor], call: int = 0) -> TensorProbe:
        """Follow one tensor of one module: ``read(arguments, result)`` picks it out of a call."""
        return TensorProbe(self.elements, tuple(read(*calls[call]) for calls in self.calls[name]))

    def errors(self, symmetry: Symmetry) -> dict[str, float]:
        """Return the largest relative equivariance error of the outputs per component; nothing if it is unknown."""
        judges = self.elements.judges
        return symmetry.errors(self.outputs[0], zip(judges, self.outputs[-len(judges) :], strict=True))


def make_probe(
    model: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], modules: Sequence[str], elements: Elements
) -> Probe:
    """Run ``model``, in its present mode, on the inputs under every element, and keep the calls of ``modules``.

    Args:
        model: in float64 and deterministic.
        symmetry: how the group acts on the inputs.
        inputs: one sample call.
        modules: qualified names.
        elements: the group elements.
    """
    chosen = {name: model.get_submodule(name) for name in modules}
    collected: dict[str, list[Calls]] = {name: [] for name in modules}
    outputs = []
    for index, g in enumerate(elements.all()):
        with captured_calls(chosen) as calls, torch.random.fork_rng(devices=[]):
            outputs.append(map_tensors(Tensor.detach, symmetry.run(model, inputs, g if index else None)))
        for name in modules:
            collected[name].append(calls[name])
    return Probe(elements, collected, outputs)


def recorded_runs(model: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], elements: Elements) -> list[Recording]:
    """Record a run under every element of ``elements.all()``, with copies of all values."""
    return [
        record(model, *(symmetry.moved(g, inputs) if index else inputs), forward=symmetry.forward, copies=True)
        for index, g in enumerate(elements.all())
    ]
