"""The runs of a float64 twin under a group, with its own and with perturbed weights; what they show, others say."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry, relative_difference
from surgeon.errors import PlanError, PrecisionError, TaskError, first_line
from surgeon.finding.inference.hypotheses import TOLERANCE
from surgeon.finding.inference.probe import HELD, Elements, Probe, Seen, sums
from surgeon.finding.inference.rows import FewRows, few_rows
from surgeon.finding.ops import call_forward, random_like
from surgeon.finding.precision import run_in_double
from surgeon.recording.calls import Calls, captured_calls, captured_results
from surgeon.recording.record import Recording, computed_bytes, differentiates, plain_tensors, record
from surgeon.registry import Refusal
from surgeon.support.copies import cast_to_double, copied
from surgeon.support.modes import default_dtype, renew, set_training
from surgeon.support.modules import named_module
from surgeon.support.trees import as_numbers, as_pairs, map_tensors, tensors_in, to_dtype
from surgeon.support.widened import set_values, values_of

OUTPUT_TOLERANCE = 1e-5
"""Largest relative equivariance error of a float64 model whose measured sites are accepted without an annotation."""

ROUNDING = 1e-9
"""Largest relative difference of float64 features that differ by rounding only."""

OTHER_SEED = 7_919_104_729

NAMED = 3
"""Of the ops that draw random numbers, so many are named."""

SAMPLED, MOST_SAMPLED = 50.0, 0.1
"""How many times the error of its output features inside a model that samples them may deviate, and how far at most.

It only decides what is tried: an op is accepted if it is equivariant on random features to rounding.
"""

PERTURBATION = 0.2
"""Size of the random change of the weights, relative to their root mean square."""


@contextmanager
def perturbed(model: nn.Module, seed: int = 0, inside: str = "", only: Collection[str] = ()) -> Iterator[None]:
    """Change trainable weights at random while the context is open, in place.

    What holds for one set of weights only, such as an orthogonal initialisation, is no property of the architecture.

    Args:
        seed: with the parameter's name it decides the change.
        inside: qualified name of the module whose parameters are changed; default all.
        only: names of those that are changed, within this module; default all.
    """
    part = named_module(model, inside)
    trained = {name: parameter for name, parameter in part.named_parameters() if parameter.requires_grad}
    named = {name: parameter for name, parameter in trained.items() if not only or name in only}
    before = {name: values_of(parameter) for name, parameter in named.items()}
    try:
        with torch.no_grad():
            for name, parameter in named.items():
                real = as_pairs(parameter)
                if real.is_floating_point() and real.numel():
                    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
                    scale = float(real.square().mean().sqrt()) or 1.0
                    change = PERTURBATION * scale * random_like(real, generator)
                    set_values(parameter, parameter + (as_numbers(change) if parameter.is_complex() else change))
            renew(part)
        yield
    finally:
        with torch.no_grad():
            for name, parameter in named.items():
                set_values(parameter, before[name])
            renew(part)


def double_twin(model: nn.Module) -> nn.Module:
    """Return a copy in float64 and eval mode.

    Raises:
        PlanError: if the model cannot be copied.
    """
    # Tensors with a history, such as activations and kernels that a module keeps, refuse to be copied.
    held = (value for module in model.modules() for value in (*vars(module).values(), *module._buffers.values()))
    memo = {id(t): t.detach().clone() for value in held for t in plain_tensors(value) if t.grad_fn is not None}
    try:
        with torch.no_grad():
            twin = cast_to_double(copied(model, memo))
            set_training(twin, True)
            set_training(twin, False)
            return twin
    except Exception as error:
        raise PlanError(
            f"expected a model that can be copied, but copy.deepcopy fails ({first_line(error)}): measure it from its "
            "checkpoint, or rely on annotations"
        ) from error


@dataclass(frozen=True)
class Drawn:
    """What of a model depends on random numbers that its forward draws.

    Attributes:
        modules: names of those that are given or return something else with other numbers.
        ops: what draws them, in words.
    """

    modules: frozenset[str]
    ops: str

    @property
    def refusal(self) -> Refusal:
        """Why a layer gets no branch whose features depend on them although the output does not."""
        return Refusal(f"its features are in a frame chosen at random in the forward: {self.ops}", "bypassed")


@dataclass(frozen=True)
class Measurement:
    """Runs of a float64 twin of a model under the group, with its own weights and with perturbed ones.

    Attributes:
        twin: the float64 model, in eval mode.
        inputs: one sample call, float64.
        own: the runs with the model's weights.
        changed: the runs with perturbed weights.
        errors: component name to the largest relative equivariance error of the model's output, with its own weights,
            or with perturbed ones if its own make the same of every sample; empty if it is unknown.
        drawn: what of the model depends on random numbers; None if it draws none.
        sampled: the op by which the model is equivariant only nearly, by design, in words; empty if there is none.
    """

    twin: nn.Module
    symmetry: Symmetry
    inputs: tuple[Any, ...]
    own: Probe
    changed: Probe
    errors: Mapping[str, float]
    drawn: Drawn | None = None
    sampled: str = ""
    _few: dict[str, FewRows] = field(default_factory=dict)

    def few(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a module's arguments in its first call, under any element; few rows of a module that takes each alone.

        Whether it does is seen on the untransformed inputs.
        """
        if name not in self._few:
            module = self.twin.get_submodule(name)
            with torch.no_grad(), default_dtype(torch.float64):
                self._few[name] = few_rows(lambda given: call_forward(module, given), self.own.first[name][0][0])
        fewer: Mapping[str, Any] = self._few[name].of(arguments)
        return fewer

    @cached_property
    def translated(self) -> Probe:
        """The runs on inputs that are only moved, of a group with translations."""
        elements = Elements.translation(self.symmetry.group)
        return Probe(
            self.twin, self.symmetry, self.inputs, list(self.own.first), elements, held=0, gradients=self.own.gradients
        )

    @property
    def constant(self) -> bool:
        """True if the model makes the same of every sample, so that its output says nothing of a symmetry."""
        return all_rows_equal(self.own.outputs[0]) and all_rows_equal(self.changed.outputs[0])

    @property
    def exact(self) -> bool:
        """True if the model's own output transforms as it should."""
        return bool(self.errors) and max(self.errors.values()) <= OUTPUT_TOLERANCE

    @property
    def trusted(self) -> bool:
        """True if it does so exactly, or nearly by design: then sites without an annotation are accepted."""
        return self.exact or bool(self.sampled)

    @property
    def tolerance(self) -> float:
        """Largest relative deviation of features from their type; behind ops that sample, that of the samples."""
        return min(MOST_SAMPLED, SAMPLED * max(self.errors.values())) if self.sampled else TOLERANCE


def measure_model(
    twin: nn.Module,
    symmetry: Symmetry,
    inputs: tuple[Any, ...],
    modules: Sequence[str],
    recording: Recording | None = None,
    judge: Callable[[Mapping[str, float]], None] = lambda _: None,
) -> Measurement:
    """Run a float64 model under the group.

    Args:
        twin: in float64 and eval mode; its weights are perturbed for a while and put back.
        modules: qualified names of the modules whose calls are kept.
        recording: a run of the model, perhaps in another mode; without, features that are 0 get no type.
        judge: given the model's own errors before it is run with other weights, if its output can tell; may raise.

    Raises:
        TaskError: if the action is none, or the sample batch cannot show anything.
        PlanError: if the model does not run in float64, or is not deterministic.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = to_dtype(inputs, torch.float64)
    if all_rows_equal(inputs):
        raise TaskError(
            "expected a sample batch that varies, but all rows of each of its tensors are equal, so that no "
            "representation can be told from another: give a batch of different samples"
        )
    with default_dtype(torch.float64):
        symmetry.check(inputs, generator)
        state = torch.get_rng_state()
        outputs, results = _run_in_double(twin, symmetry, inputs, modules)
        _require_finite(outputs)
        draws = not torch.equal(state, torch.get_rng_state())
        elements = Elements.draw(symmetry.group, generator)
        held = max(HELD, computed_bytes(recording)) if recording is not None else HELD
        gradients = recording is None or differentiates(recording) or (outputs, results)
        # it only has to confirm
        own = Probe(twin, symmetry, inputs, modules, elements.judging(), held=held, gradients=gradients)
        _require_deterministic(outputs, own.outputs[0], lambda: _random_ops(twin, symmetry, inputs))
        if not all_rows_equal(own.outputs[0]):
            judge(own.errors())
        changed = Probe(
            twin, symmetry, inputs, modules, elements, lambda: perturbed(twin), held, recording, own.gradients
        )
        telling = next((probe for probe in (own, changed) if not all_rows_equal(probe.outputs[0])), None)
        # act_output creates constants as act does
        errors = {} if telling is None else telling.errors()
        drawn = _drawn_at_random(twin, symmetry, inputs, own.first) if draws else None
    return Measurement(twin, symmetry, inputs, own, changed, errors, drawn)


def _drawn_at_random(twin: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], first: Mapping[str, Calls]) -> Drawn:
    """Run a model once more with other random numbers; tell what is not as in its first run, and what draws them."""
    with captured_calls({name: twin.get_submodule(name) for name in first}) as again, other_random_numbers():
        ops = _random_ops(twin, symmetry, inputs)
    return Drawn(frozenset(name for name, calls in first.items() if differ(again[name], calls)), ops)


def _random_ops(twin: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...]) -> str:
    """Record a run, and say which ops draw random numbers in it, and where."""
    graph = record(twin, *inputs, forward=symmetry.forward).graph
    random = torch.Tag.nondeterministic_seeded
    nodes = [node for node in graph.nodes if random in getattr(node.target, "tags", ())]
    named = (f"{node.target.overloadpacket} in {node.meta['owner'] or 'its own forward'}" for node in nodes)
    ops = list(dict.fromkeys(named))
    more = [f"{len(ops) - NAMED} more"] if len(ops) > NAMED else []
    return f"random numbers come from {', '.join([*ops[:NAMED], *more])}" if ops else "no op of torch draws the numbers"


@contextmanager
def other_random_numbers() -> Iterator[None]:
    """While the context is open, torch's random numbers are those of a seed that no sample batch was drawn with."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(OTHER_SEED)
        yield


def moved(measurement: Measurement, but: Collection[str]) -> dict[str, bool]:
    """Tell of modules, of all whose calls are held but some, whether what they are given or make is changed by g."""
    first = measurement.own.first
    return {
        name: any(differ(calls, first[name], OUTPUT_TOLERANCE) for calls in measurement.own.calls(name)[1:])
        for name in first
        if name not in but
    }


def differ(one: Any, other: Any, limit: float = ROUNDING) -> bool:
    """Tell whether two nests of tensors differ by more than rounding in float64, or a relative limit."""
    try:
        return relative_difference(one, other) > limit
    except TaskError:  # in number or shape
        return True


def _run_in_double(twin: nn.Module, symmetry: Symmetry, inputs: tuple[Any, ...], modules: Sequence[str]) -> Seen:
    """Return what is seen of a run of a float64 network, which is changed in place if it needs help."""
    found: list[Seen] = []

    def run() -> Any:
        watched = {name: twin.get_submodule(name) for name in modules}
        with captured_results(watched, sums) as results:
            found.append((map_tensors(Tensor.detach, symmetry.run(twin, inputs)), results))
        return found[-1][0]

    try:
        if run_in_double(twin, run) != "plain":
            run()
            return found[-1]
        return found[0]
    except PrecisionError as error:
        raise PlanError(
            f"expected a model that runs in float64, which measuring representations needs, but {error}: make it "
            "follow the dtype of its inputs, or leave the action out and rely on annotations"
        ) from error


def _require_finite(outputs: Any) -> None:
    finite = [as_pairs(leaf).isfinite() for leaf in tensors_in(outputs)]
    everything, bad = sum(each.numel() for each in finite), sum(int((~each).sum()) for each in finite)
    if bad:
        raise TaskError(
            f"expected finite outputs, but {bad} of {everything} numbers that the model returns for the sample batch "
            "are NaN or infinite, so that nothing can be measured: give a batch on which it is defined, or correct it "
            "(the norm of a vector of length 0 has no gradient)"
        )


def _require_deterministic(first: Any, second: Any, ops: Callable[[], str]) -> None:
    difference = relative_difference(second, first)
    if difference > 1e-12:
        raise PlanError(
            f"expected a deterministic model, but two runs on the same batch in eval mode differ by {difference:.1e} "
            f"(relative), and {ops()}: seed or switch off what is random in its forward"
        )


def all_rows_equal(inputs: Any) -> bool:
    """Tell whether every floating tensor with several rows has equal rows, which shows nothing of a model."""
    real = (leaf for leaf in map(as_pairs, tensors_in(inputs)) if leaf.is_floating_point())
    tensors = [tensor for tensor in real if tensor.ndim and len(tensor) > 1]
    return bool(tensors) and all(bool((tensor == tensor[:1]).all()) for tensor in tensors)
