"""Run a model on transformed copies of its inputs and keep what chosen modules received and returned."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.core import Group, GroupElement
from surgeon.finding.inference.alike import Alike, called_alike
from surgeon.finding.inference.sums import KeptSums, silent_results
from surgeon.recording.calls import Calls, captured_calls
from surgeon.recording.record import Recording, record
from surgeon.support.memory import give_back
from surgeon.support.modes import default_dtype
from surgeon.support.shelf import Shelf
from surgeon.support.transforms import no_transforms
from surgeon.support.trees import equal, map_tensors, tensors_in

STEP = 1e-3
"""Size of the small group elements exp(+-STEP A), dimensionless; for float64."""

CHECKS = 2
"""Random elements per component under which a verdict has to hold, see :meth:`Group.test_elements`."""


HELD = 2**26
"""Bytes of calls that a probe holds at least; see :func:`surgeon.recording.record.computed_bytes` for larger models."""


Seen = tuple[Any, Mapping[str, list[list[int]]]]
"""What a run of a model returned, and checksums of what each call of its modules did."""


def sums(tree: Any) -> list[int]:
    """Return of each tensor a number that another one, which differs by a bit, hardly has.

    Nothing else is looked at: some libraries hang descriptions of their groups on every tensor.
    """
    return [_checksum(tensor) for tensor in tensors_in(tree)]


def _checksum(tensor: Tensor) -> int:
    kind = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    with no_transforms(), torch._C.DisableTorchFunction():  # it is no op of the run
        dense = tensor.detach().cpu().to_dense().resolve_conj().resolve_neg().contiguous()
        return zlib.crc32(dense.flatten().view(torch.uint8).numpy().data, kind)


@dataclass(frozen=True)
class Elements:
    """The group elements under which a model is run.

    Attributes:
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

    @classmethod
    def translation(cls, group: Group) -> Elements:
        """Return one of an affine group that turns nothing."""
        g = torch.eye(group.dimension, dtype=torch.float64)
        g[:-1, -1] = 1.0
        none = g[None][:0]
        return cls(group, none[:, None].expand(0, 2, -1, -1), none, g[None], (("translation", "identity"),))

    def judging(self) -> Elements:
        """Return these without the small ones, by which representations are found."""
        return dataclasses.replace(self, small=self.small[:0])

    def all(self) -> list[Tensor]:
        """Return every element, the identity first."""
        identity = torch.eye(self.group.dimension, dtype=torch.float64)
        return [identity, *self.small.flatten(0, 1), *self.components, *self.checks]

    @cached_property
    def judges(self) -> list[GroupElement]:
        """The last of ``all()``: those by which everything is judged, all generators of a finite group included."""
        matrices = [*self.components, *self.checks]
        return [GroupElement(*names, g) for names, g in zip(self.names, matrices, strict=True)]

    @cached_property
    def judging_matrices(self) -> Tensor:
        """Those of the judges; shape (judges, k, k)."""
        return torch.stack([element.g for element in self.judges])


@dataclass(frozen=True)
class TensorProbe:
    """One tensor of a model in all the runs.

    Attributes:
        values: one tensor per element of ``elements.all()``.
        alike: those of other modules that may be judged with it, of which this is one; None if there are none.
        number: which.
    """

    elements: Elements
    values: tuple[Tensor, ...]
    alike: Alike[TensorProbe] | None = None
    number: int = 0

    @property
    def base(self) -> Tensor:
        """The tensor on the untransformed inputs."""
        return self.values[0]

    def components(self) -> list[tuple[Tensor, Tensor]]:
        """Return the pairs (g, y_g) of the further components."""
        start = 1 + 2 * len(self.elements.small)
        return list(zip(self.elements.components, self.values[start:], strict=False))

    def checks(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the elements g that judge, shape (judges, k, k), and y_g for each."""
        judges = self.elements.judging_matrices
        return judges, self.values[-len(judges) :]


class Probe:
    """The runs of a model under every element of a group, with the calls of some of its modules.

    They are held of as many modules as fit into a number of bytes; those of the others are put away on the disk.

    Attributes:
        first: per module name, its calls on the untransformed inputs.
        outputs: what the model returned for each element of ``elements.all()``.
        gradients: whether the runs keep what gradients need, which takes a third of their time.
        recording: a run of the model in which the sums are that silent results enter; None if there are none.
        sums: the values of these in all runs; nothing if another element lets other ops run.
    """

    def __init__(
        self,
        model: nn.Module,
        symmetry: Symmetry,
        inputs: tuple[Any, ...],
        modules: Sequence[str],
        elements: Elements,
        weights: Callable[[], AbstractContextManager[None]] = nullcontext,
        held: int = HELD,
        recording: Recording | None = None,
        gradients: bool | Seen = True,
    ) -> None:
        """Run ``model``, in its present mode, on the inputs under every element.

        Args:
            model: in float64 and deterministic.
            symmetry: how the group acts on the inputs.
            modules: qualified names.
            weights: a context in which the model has the weights that it is to be run with.
            held: bytes of calls that are held.
            recording: a run of the model, perhaps in another mode; then the sums are kept that silent results enter.
            gradients: whether the runs keep what gradients need; or what was seen in one that does, to do without if
                the same is seen then.

        Raises:
            WriteError: if calls that do not fit do not fit on the disk either.
        """
        self.elements, self._shelf = elements, Shelf()
        self._model, self._symmetry, self._inputs, self._weights = model, symmetry, inputs, weights
        self._large = held > HELD  # the runs: what smaller ones leave free is used by the next
        self._alike: dict[Hashable, Alike[TensorProbe]] = {}
        self._fetched: dict[str, list[Calls]] = {}
        self.gradients, output, self.first = self._first_run(modules, gradients)
        silent = [] if recording is None else silent_results(self.first)
        kept = KeptSums(model, symmetry, inputs, recording, silent) if recording is not None and silent else None
        if kept is not None:
            self._runs([], [None], kept.run)
        self._away = set(modules) - _that_fit(self.first, held // len(elements.all()))
        run = self._run if kept is None else kept.run
        outputs, self._calls = self._runs(modules, elements.all()[1:], run, self._away)
        self.outputs = [output, *outputs]
        self.recording = None if kept is None else kept.recording
        values = {} if kept is None else kept.values or {}
        self.sums = {node: TensorProbe(elements, tuple(each)) for node, each in values.items()}

    def calls(self, name: str) -> list[Calls]:
        """Return the calls of a module, one list for each element of ``elements.all()``."""
        if name not in self._away:
            return [self.first[name], *self._calls[name]]
        if name not in self._fetched:  # what is asked for is asked for several times
            self._fetched = {name: map_tensors(self._shelf.get, self._calls[name])}
        return [self.first[name], *self._fetched[name]]

    def release(self, but: Collection[str] = ()) -> None:
        """Hold no calls any more, but those of some modules, which are put away."""
        self._away |= set(but)
        self._calls = {name: map_tensors(self._shelf.put, self._calls[name]) for name in but}
        self._alike.clear()
        self._fetched.clear()
        give_back()

    def tensor(
        self,
        name: str,
        read: Callable[[Mapping[str, Any], Any], Tensor],
        call: int = 0,
        place: Hashable = None,
    ) -> TensorProbe:
        """Follow one tensor of one module: ``read(arguments, result)`` picks it out of a call.

        Args:
            place: what ``read`` picks, if it picks the same of every module; those that look alike are judged together.
        """

        def values(module: str) -> tuple[Tensor, ...]:
            return tuple(read(*calls[call]) for calls in self.calls(module))

        if place is None or name in self._away:
            return TensorProbe(self.elements, values(name))
        names, number = self._kin[name]
        key = (names[0], call, place)
        if key not in self._alike:
            alike = Alike(lambda other: TensorProbe(self.elements, values(names[other]), alike, other), len(names))
            self._alike[key] = alike
        return self._alike[key].tensor(number)

    @cached_property
    def _kin(self) -> dict[str, tuple[list[str], int]]:
        """Of the modules whose calls are held, which look alike."""
        return called_alike({name: self.calls(name) for name in self.first if name not in self._away})

    def errors(self) -> dict[str, float]:
        """Return the largest relative equivariance error of the outputs per component; nothing if it is unknown."""
        judges = self.elements.judges
        return self._symmetry.errors(self.outputs[0], zip(judges, self.outputs[-len(judges) :], strict=True))

    def _first_run(self, modules: Sequence[str], gradients: bool | Seen) -> tuple[bool, Any, dict[str, Calls]]:
        """Run on the inputs as they are; return whether the runs keep what gradients need, the outputs, and the calls.

        Some models run other code where they may do without: fused kernels in place of modules, or features in another
        basis that give the same output.
        """
        self.gradients = gradients is True
        try:
            (output,), found = self._runs(modules, [None], self._run)
        except Exception:  # a model that differentiates in its forward
            if isinstance(gradients, bool):
                raise
            return self._first_run(modules, True)
        first = {name: calls for name, (calls,) in found.items()}
        if not isinstance(gradients, bool):
            results = {name: [sums(result) for _, result in calls] for name, calls in first.items()}
            if not equal((output, results), gradients):
                return self._first_run(modules, True)
        return self.gradients, output, first

    def _run(self, g: Tensor | None) -> Any:
        return self._symmetry.run(self._model, self._inputs, g)

    def _runs(
        self,
        names: Sequence[str],
        elements: Sequence[Tensor | None],
        run: Callable[[Any], Any],
        away: Collection[str] = (),
    ) -> tuple[list[Any], dict[str, list[Calls]]]:
        """Return outputs, and the calls of some modules, for each element; those of some of them are put away."""
        outputs, found = [], dict[str, list[Calls]]({name: [] for name in names})
        modules = {name: self._model.get_submodule(name) for name in names}
        put_away = dict.fromkeys(away, self._shelf.put)
        capturing = captured_calls(modules, put_away)
        with default_dtype(torch.float64), torch.set_grad_enabled(self.gradients), self._weights(), capturing as calls:
            for g in elements:
                with torch.random.fork_rng(devices=[]):
                    outputs.append(map_tensors(Tensor.detach, run(g)))
                if self._large:
                    give_back()
                for name, own in calls.items():
                    found[name].append(own.copy())
                    own.clear()
        return outputs, found


def _that_fit(calls: Mapping[str, Calls], limit: int) -> set[str]:
    """Return as many modules, the smallest first, as have calls of no more bytes than a limit."""
    sizes = {
        name: sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(own)) for name, own in calls.items()
    }
    ascending = sorted(sizes, key=sizes.__getitem__)
    totals = accumulate(sizes[name] for name in ascending)
    return {name for name, size in zip(ascending, totals, strict=True) if size <= limit}


def recorded_runs(model: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], elements: Elements) -> list[Recording]:
    """Record a run under every element of ``elements.all()``, with copies of all values."""
    return [
        record(model, *(symmetry.moved(g, inputs) if index else inputs), forward=symmetry.forward, copies=True)
        for index, g in enumerate(elements.all())
    ]
