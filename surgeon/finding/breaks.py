"""Find the first tensor of a run at which equivariance fails: a debugger for equivariance bugs."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.finding.inference.hypotheses import TOLERANCE, Verdict, infer_type, residual_of
from surgeon.finding.inference.probe import Elements, TensorProbe, recorded_runs
from surgeon.finding.measurement import OUTPUT_TOLERANCE
from surgeon.finding.resolution import Arguments, at_finer_resolution
from surgeon.finding.sampling import rearranges, samples_features
from surgeon.finding.windows import uneven
from surgeon.recording.record import Recording


@dataclass(frozen=True)
class Break:
    """The first tensor in execution order that does not transform although everything it is made of does.

    Attributes:
        owner: qualified name of the module that was running; the empty string is the model itself.
        op: the aten op that made it.
        call_index: the how manieth call of the owner, from 0.
        error: relative deviation from its input's representation if the shapes agree, else from the best that fits.
        inputs: the tensors that it is made of, in words, with how they transform.
        windows: how the op lies unevenly on a grid, and what sizes would be exact; empty if it does not.
        sampled: that the op samples its features, in words; empty if it does not.
        resolution: whether the error falls with the resolution of these samples, in words; empty without any.
    """

    owner: str
    op: str
    call_index: int
    shape: tuple[int, ...]
    error: float
    inputs: tuple[str, ...]
    windows: str = ""
    sampled: str = ""
    resolution: str = ""


@dataclass(frozen=True)
class Judged:
    """A tensor of the run that the search looked at.

    Attributes:
        owner, op: as those of a break.
        error: relative deviation from the representation that fits it best.
        holds: whether it transforms.
    """

    owner: str
    op: str
    error: float
    holds: bool


@dataclass(frozen=True)
class Breaks:
    """What a search found.

    Attributes:
        first: the first break; None if the output transforms as it should, or if no single op can be named.
        output_error: component name to the largest relative equivariance error of the output.
        judged: these tensors, in the order of execution; empty if the output transforms to rounding.
    """

    first: Break | None
    output_error: Mapping[str, float]
    judged: tuple[Judged, ...] = ()

    @property
    def broken(self) -> bool:
        """True if the output does not transform as it should, or if only little of an op that does not reaches it."""
        return not self._small or (self.first is not None and self.first.error > OUTPUT_TOLERANCE)

    @property
    def _small(self) -> bool:
        return max(self.output_error.values()) <= OUTPUT_TOLERANCE

    def told(self) -> list[str]:
        """Say where equivariance fails first, or that it does not: one sentence, and what the op is made of."""
        worst = ", ".join(f"{error:.1e} under {component}" for component, error in self.output_error.items())
        if not self.broken:
            return [f"no break: the output transforms as it should (largest relative error {worst})"]
        whole = "what breaks hardly reaches the output" if self._small else "the output does not transform as it should"
        said = [f"{whole}: largest relative error {worst}"]
        first = self.first
        if first is None:
            return [*said, "no single op can be named: check act and act_output, which may not fit each other"]
        place = f"in {first.owner}" if first.owner else "in the model's own forward"
        size = "" if first.error == float("inf") else f", relative error {first.error:.1e}"
        call = f"(call {first.call_index + 1}), shape {list(first.shape)}{size}"
        return [
            *said,
            f"equivariance first fails at {first.op} {place} {call}",
            *(f"  {words}" for words in (first.windows, first.sampled, first.resolution) if words),
            *(f"  made of {words}" for words in first.inputs),
        ]


def find_breaks(
    model: nn.Module, symmetry: Symmetry, *inputs: Any, seed: int = 0, made: Mapping[str, Arguments] | None = None
) -> Breaks:
    """Run a model under the group and walk back from its output to the op that breaks the symmetry.

    Args:
        model: in float64, eval mode, deterministic.
        symmetry: the group with its actions on both ends.
        *inputs: one sample call, float64.
        seed: seed of the group elements.
        made: what modules were made with, see :class:`surgeon.finding.resolution.Constructions`: an op that samples
            its features is tried again with finer samples.

    Raises:
        TaskError: if the action is none.
    """
    generator = torch.Generator().manual_seed(seed)
    symmetry.check(inputs, generator)
    elements = Elements.draw(symmetry.group, generator)
    recordings, judges = recorded_runs(model, symmetry, inputs, elements), elements.judges
    moved = (recording.outputs for recording in recordings[-len(judges) :])
    errors = symmetry.errors(recordings[0].outputs, zip(judges, moved, strict=True))
    search = _BreakSearch(recordings, elements)
    if max(errors.values()) <= TOLERANCE:
        return Breaks(None, errors)
    first = search.first()
    if first is not None and first.sampled:
        words = at_finer_resolution(model, symmetry, inputs, first.owner, made or {})
        first = dataclasses.replace(first, resolution=words)
    return Breaks(first, errors, tuple(search.judged()))


class _BreakSearch:
    """The nodes of equal runs, judged when they are asked for."""

    def __init__(self, recordings: list[Recording], elements: Elements) -> None:
        self.recordings, self.elements = recordings, elements
        self.nodes = list(recordings[0].graph.nodes)
        self.position = {node: index for index, node in enumerate(self.nodes)}
        self.others = [list(recording.graph.nodes) for recording in recordings]
        self.verdicts: dict[fx.Node, Verdict] = {}

    def outputs(self) -> list[fx.Node]:
        """Return the nodes of the model's output tensors."""
        return list(self.nodes[-1].meta["sources"])

    def first(self) -> Break | None:
        """Walk back from the outputs through tensors that fail; the first whose inputs all hold is the culprit."""
        diverged = self._first_difference()
        if diverged is not None:
            return diverged
        seen: set[fx.Node] = set()
        stack, culprits = list(self.outputs()), []
        while stack:
            node = stack.pop()
            if node in seen or self._holds(node):
                continue
            seen.add(node)
            inputs = [part for part in node.meta["sources"] if part.meta["activation"]]
            failing = [part for part in inputs if not self._holds(part)]
            stack += failing
            if not failing and node.op == "call_function":
                culprits.append(node)
        return self._describe(min(culprits, key=self.position.__getitem__)) if culprits else None

    def judged(self) -> Iterator[Judged]:
        """Yield what was looked at, in the order of execution."""
        for node in sorted(self.verdicts, key=self.position.__getitem__):
            if node.op == "call_function" and self._probe(node) is not None:
                verdict = self.verdicts[node]
                yield Judged(node.meta["owner"], str(node.target), verdict.residual, self._holds(node))

    def _first_difference(self) -> Break | None:
        """A run that takes another path is a break at the first op that differs."""
        targets = [[str(node.target) for node in nodes] for nodes in self.others]
        for index, node in enumerate(self.nodes):
            if any(index >= len(other) or other[index] != targets[0][index] for other in targets[1:]):
                what = f"{node.target} (the ops that run depend on the group element)"
                if node.op == "output":
                    return Break("", what, 0, (), float("inf"), ())
                meta = node.meta
                return Break(meta["owner"], what, meta["call_index"], tuple(meta["shape"] or ()), float("inf"), ())
        return None

    def _probe(self, node: fx.Node) -> TensorProbe | None:
        index = self.position[node]
        pairs = zip(self.recordings, self.others, strict=True)
        values = [recording.values.get(nodes[index]) for recording, nodes in pairs]
        known = [value for value in values if value is not None]
        return TensorProbe(self.elements, tuple(known)) if len(known) == len(values) else None

    def _holds(self, node: fx.Node) -> bool:
        if not node.meta["activation"]:
            return True
        return self._verdict(node).type is not None or self._is_exempt(node)

    def _is_exempt(self, node: fx.Node) -> bool:
        """Inputs transform as the user says; tensors that no group element changes need no representation."""
        if node.op == "placeholder":
            return True
        parts = node.meta["sources"]
        if rearranges(node):  # points do not go with vectors
            return self._holds(parts[0]) if len(parts) == 1 else all(map(self._is_linear, parts))
        probe = self._probe(node)
        if probe is None:  # an op that returns several tensors: its parts are judged
            return all(map(self._holds, parts))
        return all(torch.equal(value, probe.base) for value in probe.values) or _are_points(probe)

    def _is_linear(self, node: fx.Node) -> bool:
        """Tell whether a representation, or one per part that it was put together of, fits a tensor."""
        if self._verdict(node).type is not None or not node.meta["activation"]:
            return True
        return rearranges(node) and all(map(self._is_linear, node.meta["sources"]))

    def _verdict(self, node: fx.Node) -> Verdict:
        if node not in self.verdicts:
            probe = self._probe(node)
            self.verdicts[node] = Verdict(None, float("inf"), "no tensor") if probe is None else infer_type(probe)
        return self.verdicts[node]

    def _describe(self, node: fx.Node) -> Break:
        probe, error = self._probe(node), self._verdict(node).residual
        words = []
        for part in node.meta["sources"]:
            if not part.meta["activation"]:
                continue
            verdict = self._verdict(part)
            other = "as its parts do" if self._is_linear(part) else "as the input transforms"
            words.append(f"{part.target} {tuple(part.meta['shape'] or ())}: {verdict.type or other}")
            if verdict.type is not None and probe is not None and part.meta["shape"] == node.meta["shape"]:
                error = residual_of(verdict.type, probe)
        shape = tuple(node.meta["shape"] or ())
        made_by = next(iter(node.all_input_nodes), node) if node.target is operator.getitem else node
        owner, op, call = node.meta["owner"], str(made_by.target), node.meta["call_index"]
        return Break(owner, op, call, shape, error, tuple(words), uneven(made_by), samples_features(made_by))


def _are_points(probe: TensorProbe) -> bool:
    """Tell whether a tensor of a group with translations holds points, as its inputs do, along some axis."""
    group, base = probe.elements.group, probe.base
    d = group.vector_dimension
    fitting = [axis for axis in range(-base.ndim, 0) if base.shape[axis] == d]
    for axis in fitting if group.dimension > d and base.is_floating_point() else ():
        x = base.movedim(axis, -1)
        pairs = [
            (x @ group.linear(g).mT + g[:d, d], moved.movedim(axis, -1))
            for g, moved in zip(*probe.checks(), strict=True)
        ]
        if all((expected - moved).norm() <= TOLERANCE * moved.norm() for expected, moved in pairs):
            return True
    return False
