"""From a module to a ``torch.export`` program that takes and returns named tensors: what every format is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from surgeon.editing.branch import branches_of
from surgeon.errors import CheckFailedError, SurgeonError
from surgeon.export.capture import captured, open_axes, packages_of
from surgeon.export.derivative import Recorded, derived_outputs, record_derivatives
from surgeon.export.outputs import output_names
from surgeon.export.reasons import reason
from surgeon.export.sample import Sample
from surgeon.files.tensors import same_bytes
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.task_calls import task_forward
from surgeon.plan import Task
from surgeon.recording.compare import compare_graphs, constants_of
from surgeon.recording.record import record
from surgeon.support.copies import traced_again
from surgeon.support.modes import in_evaluation_mode
from surgeon.support.trees import tensors_in

OWNER = "model."
"""Stands in front of the names of the state dict in a program."""


class Positional(nn.Module):
    """A model as a function from the tensors of a batch to those of its outputs, or to some of these by position."""

    def __init__(self, model: nn.Module, task: Task, sample: Sample, kept: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model
        self._task, self._sample, self._kept = task, sample, kept

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the chosen outputs for the tensors of a batch, in the order of ``tensors_in``."""
        found = tensors_in(task_forward(self._task, self.model, self._sample.with_tensors(tensors)))
        return tuple(found if self._kept is None else [found[index] for index in self._kept])


class _Named(nn.Module):
    """The same from named tensors to named outputs; inputs that are not given are those of the example."""

    def __init__(self, function: Positional | Recorded, sample: Sample, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = function.model
        # Out of sight of the exporter, which would name the tensors of the model after it.
        self._function = (function,)
        self._example = dict(zip(sample.names, tensors_in(sample.batch), strict=True))
        self._outputs = outputs

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = self._function[0](*{**self._example, **tensors}.values())
        return dict(zip(self._outputs, found, strict=True))


def outputs_by_derivative(model: nn.Module, task: Task, sample: Sample) -> frozenset[int] | None:
    """Return the positions of the outputs that need a derivative inside the forward; None if none is taken."""
    function = Positional(model, task, sample)
    with in_evaluation_mode(function):
        return derived_outputs(function, tensors_in(sample.batch))


def require_same_run(model: nn.Module, original: nn.Module, task: Task, sample: Sample) -> None:
    """Compare what a model and its original do on batches of two sizes: every op in order, every constant by its bits.

    An exporter follows the same Python code, so its graph can only be another one if this is. To export the original
    as well would take as long as all the rest.

    Raises:
        CheckFailedError: if they do not do the same; it says what differs.
    """
    for batch in (sample.batch, *sample.others[:1]):
        differences = _differences(original, model, task, batch)
        if differences:  # code that e3nn generates keeps its constants otherwise once it was copied: copy both
            differences = _differences(traced_again(original), traced_again(model), task, batch)
        if differences:
            raise CheckFailedError(f"the model does not compute as the original: {differences[0]}; nothing was written")


def _differences(original: nn.Module, model: nn.Module, task: Task, batch: Any) -> list[str]:
    (before, known), (after, found) = (_recorded(network, task, batch) for network in (original, model))
    same = (name in found and same_bytes(tensor, found[name]) for name, tensor in known.items())
    changed = [f"{name} has other values" for name, alike in zip(known, same, strict=True) if not alike]
    return compare_graphs(before, after) or changed


def _recorded(network: nn.Module, task: Task, batch: Any) -> tuple[fx.Graph, dict[str, Tensor]]:
    """Return the graph of a run, and by name what it reads that is neither input nor in the state dict."""
    with in_evaluation_mode(network):
        run = record(network, forward=lambda own: task_forward(task, own, batch))
        named = {str(node.target) for node in run.graph.nodes if node.op == "get_attr"} - network.state_dict().keys()
        buffers = {f"the buffer {name}": each for name, each in network.named_buffers() if name in named}
    constants = {f"{name}, which {each.read_by} reads,": each.tensor for name, each in constants_of(run).items()}
    return run.graph, {**buffers, **constants}


def to_program(
    model: nn.Module, task: Task, sample: Sample, inputs: Sequence[str] | None = None, kept: Sequence[int] | None = None
) -> Any:
    """Export a model with torch.export, without the example's data.

    Args:
        model: without branches; it is run in eval mode.
        task: says how to call the model.
        sample: the example batch and its dynamic axes.
        inputs: names of the inputs; default: those that the model reads.
        kept: positions of the outputs that are wanted, all if None; what only the others need is left out.

    Returns:
        ``torch.export.ExportedProgram``, a function of one dict of tensors.

    Raises:
        CheckFailedError: if branches are left in the model, or it cannot be exported.
    """
    left = branches_of(model)
    if left:
        raise CheckFailedError(
            f"expected a model without branches, but {next(iter(left))} has one ({len(left)} in all): "
            "strip it first, with `surgeon export --drop` or `--fold`"
        )
    with in_evaluation_mode(model):
        try:
            function = _by_name(model, task, sample, kept)
            packages = packages_of(model, task)
            program = _traced(function, sample, inputs or sample.names, packages)
            read = _read_by(program, sample.names) if inputs is None else inputs
            if inputs is None and read != list(sample.names):
                program = _traced(function, sample, read, packages)
        except SurgeonError:
            raise
        except Exception as error:
            why = reason(error, model)
            raise CheckFailedError(f"{type(model).__name__} cannot be exported: {why}; nothing was written") from error
    program.example_inputs = None  # data of the task
    return program


def _by_name(model: nn.Module, task: Task, sample: Sample, kept: Sequence[int] | None) -> _Named:
    function: Positional | Recorded = Positional(model, task, sample, kept).eval()
    if outputs_by_derivative(model, task, sample) is not None:
        function = record_derivatives(function, model, sample, packages_of(model, task)).eval()
    names = output_names(task, outputs_on(model, task, [sample.batch])[0])
    return _Named(function, sample, names if kept is None else [names[index] for index in kept]).eval()


def _traced(function: _Named, sample: Sample, inputs: Sequence[str], packages: set[str]) -> Any:
    tensors = dict(zip(sample.names, tensors_in(sample.batch), strict=True))
    axes = dict(zip(sample.names, sample.dynamic, strict=True))
    given = {name: tensors[name] for name in inputs}
    return captured(function, (given,), {name: open_axes(axes[name]) for name in inputs}, packages)


def _read_by(program: Any, names: Sequence[str]) -> list[str]:
    """Return the inputs that some node reads, or that are an output themselves."""
    placed = {node.name: node for node in program.graph.nodes}
    given = [placed[name] for name in program.graph_signature.user_inputs]
    return [name for name, node in zip(names, given, strict=True) if node.users]


def inputs_of(program: Any) -> list[str]:
    """Return the names of a program's inputs."""
    (arguments, _) = program.call_spec.in_spec.unflatten(program.graph_signature.user_inputs)
    return list(arguments[0])
