"""Adapters: what a model family's library knows about its own layers, found through entry points.

An adapter is an object registered in the entry-point group ``surgeon.adapters``. It proposes; the engine verifies every
proposal on the model's real inputs before it is used.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.named import named_group
from surgeon.algebra.matrix_blocks import MatrixBlock
from surgeon.algebra.representations.core import Representation
from surgeon.errors import PlanError
from surgeon.plan import Convolution, Coverage, Task
from surgeon.support.trees import Place

ENTRY_POINTS = "surgeon.adapters"

CUSTOM = "module:function"
"""In an adapter's ``groups``: every group that a user gives as matrices."""


Axes = tuple[int, ...] | Callable[[int], tuple[int, ...]]


@dataclass(frozen=True)
class Proposal:
    """What an adapter says of one op: which argument is linear, and how both ends transform.

    Attributes:
        argument: forward parameter in which the op is linear.
        kind: what the op is, in words.
        rho_in: representation of that argument's feature axes.
        rho_out: representation of the output's feature axes.
        context: representations of the last axes of further arguments, which transform along but get no branch.
        path_in, path_out, convolution: as in :class:`surgeon.plan.Site`.
        axes_in, axes_out: as there; or a function of the tensor's number of axes, which needs a sample batch.
        symmetrised: for an op that is equivariant only approximately, those of its own parameters and buffers, by name,
            that make it exactly so: its representations are verified with these. None for an equivariant op.
        wrap: for an op that takes its features inside an object: makes the argument of them.
    """

    argument: str
    kind: str
    rho_in: Representation
    rho_out: Representation
    context: Mapping[str, Representation] = field(default_factory=dict)
    path_in: Place = ()
    path_out: Place = ()
    axes_in: Axes = (-1,)
    axes_out: Axes = (-1,)
    convolution: Convolution | None = None
    symmetrised: Mapping[str, Tensor] | None = None
    wrap: Callable[[Tensor], Any] | None = None


@dataclass(frozen=True)
class Refusal:
    """Why an op gets no branch, in words, and the class of the audit that its parameters belong to."""

    reason: str
    coverage: Coverage = "not linear"


class Adapter:
    """One model family: subclass it and override what the family has.

    Attributes:
        name: the name it is registered under.
        groups: names of the groups whose representations its annotations speak of; ``CUSTOM`` for users' own.
    """

    name = ""
    groups: tuple[str, ...] = ()

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | Mapping[str, Proposal | Refusal] | None:
        """Return a proposal for ``module``, or why it is left alone; None leaves it to others and to measurement.

        A module that knows how its children are used answers for them: a mapping from their names.
        """
        return None

    def blocks(self, module: nn.Module) -> Mapping[str, Sequence[MatrixBlock] | str] | None:
        """Return the matrices inside a layer's own weights, for optimisers of matrices; None for other layers.

        Returns:
            Name of a parameter of the module itself to the blocks in it, or to why there are none, in words. Blocks of
            one parameter do not overlap.
        """
        return None

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Return the architecture that a state dict belongs to, or None if keys and shapes do not tell."""
        return None

    def recognise(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say what a state dict is and which file or flag its model needs; None if it is not of this family.

        It is asked only for a checkpoint whose model nothing else could build; the answer ends the error message.
        """
        return None

    def describe(self, module: nn.Module) -> Mapping[str, Any] | None:
        """Return ``{"factory": "package.module:function", "args": {...}}`` for a module of this family, else None.

        So a whole module, as its library pickles it, becomes plain data: the factory, called with these JSON-compatible
        arguments, builds the same architecture with any weights, under the default dtype. It should be registered in
        the entry-point group ``surgeon.models``, so that files may name it. A model that the factory has built to try
        that can be returned as ``"built"``, too, so that it need not be built again. A module of this family that
        cannot be rebuilt is used as it is if ``{"note": why}`` is returned.

        Raises:
            CheckpointError: if the module is of this family and cannot be used.
        """
        return None

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task | None:
        """Return the ready task, which ``--task NAME:FILE`` names, on a file in the library's usual data format.

        What it needs of the model it gets by its ``for_model``. None if the family has no ready task.

        Args:
            arguments: what the user gave as ``--task-args``.

        Raises:
            TaskError: if the arguments are unknown or unusable.
        """
        return None

    def data_of(self, module: nn.Module, checkpoint: Path) -> Path | None:
        """Return the data file for the adapter's own task, so that none has to be named; None if there is none.

        Args:
            module: the opened model; of another family there is none either.
            checkpoint: the local file that it was opened from.
        """
        return None

    def reopen(self, path: Path) -> nn.Module | None:
        """Open an exported file as the library does for its users; None if it is not one of this family.

        What comes out is compared. It is called only for files that open without running code, or that the user trusts.
        """
        return None

    def usage(self, module: nn.Module, file: str) -> str | None:
        """Return Python that runs an exported file as the library's users do, for its folder; None for other families.

        Args:
            module: the model that is in the file.
        """
        return None


def speaks_of(adapter: Adapter, group: Group) -> bool:
    """Tell whether an adapter reads representations of this group off its layers."""
    return group.name in adapter.groups or (CUSTOM in adapter.groups and named_group(group.name) is None)


def resolved(proposal: Proposal, axes_of_input: int | None, axes_of_output: int | None) -> Proposal:
    """Return a proposal whose axes are positions.

    Args:
        axes_of_input: number of axes of the features that the op received; None if it was not run.
        axes_of_output: number of axes of its result.

    Raises:
        PlanError: if the op was not run and its axes depend on that.
    """
    ends = []
    for axes, count in ((proposal.axes_in, axes_of_input), (proposal.axes_out, axes_of_output)):
        if not callable(axes):
            ends.append(axes)
        elif count is None:
            raise PlanError(
                "expected a sample batch, since the axes of some op depend on what it is given: give --task"
            )
        else:
            ends.append(axes(count))
    return replace(proposal, axes_in=ends[0], axes_out=ends[1])


def proposal_for(model: nn.Module, name: str, adapter: Adapter, group: Group) -> Proposal | Refusal | None:
    """Ask an adapter about a module of a model: by itself, or as a child of the module that holds it."""
    parent, _, child = name.rpartition(".")
    if name:
        answer = adapter.propose(model.get_submodule(parent), group)
        if isinstance(answer, Mapping) and child in answer:
            return answer[child]
    answer = adapter.propose(model.get_submodule(name), group)
    return None if isinstance(answer, Mapping) else answer


def _points() -> tuple[EntryPoint, ...]:
    """Return what is registered, by name."""
    return _points_on(tuple(sys.path))


@functools.cache
def _points_on(path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Read once for every search path, because the metadata of all installed packages are read for it."""
    return tuple(sorted(entry_points(group=ENTRY_POINTS), key=lambda point: point.name))


def installed_adapters() -> dict[str, Adapter]:
    """Return all registered adapters by name, those of third parties included."""
    return {point.name: point.load() for point in _points()}


def adapter_with_task(name: str) -> Adapter | None:
    """Return the adapter of this name if it is installed and has a ready task; no other adapter is imported."""
    found = (point.load() for point in _points() if point.name == name)
    return next((adapter for adapter in found if has_task(adapter)), None)


def has_task(adapter: Adapter) -> bool:
    """Tell whether an adapter has a ready task."""
    return type(adapter).task is not Adapter.task


def adapter_named(name: str, adapters: Mapping[str, Adapter]) -> Adapter:
    """Look an adapter up.

    Raises:
        PlanError: if there is none of this name; the message lists those installed.
    """
    if name not in adapters:
        raise PlanError(
            f"expected the adapter {name!r} that the plan was made with, but only "
            f"{', '.join(adapters) or 'none'} is installed: install the package that provides it"
        )
    return adapters[name]
