"""Run an exported program and compare it with the model: outputs at other sizes, equivariance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.equivariance import Symmetry
from surgeon.errors import CheckFailedError
from surgeon.export.deviation import allowed_deviation, largest_deviation, largest_entry
from surgeon.export.ports import made_up
from surgeon.export.sample import Sample
from surgeon.export.stripped import Stripped
from surgeon.finding.annotated_ops import collect_proposals
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.task_calls import can_act, task_symmetry
from surgeon.registry import installed_adapters
from surgeon.support.imports import import_onnxruntime, one_line
from surgeon.support.modes import model_dtype
from surgeon.support.trees import map_tensors, tensors_in, to_dtype

ELEMENTS = 2
"""Random elements per component and batch."""


@dataclass(frozen=True)
class Report:
    """What was compared, and what differs.

    Attributes:
        deviation: largest deviation of the program from the model in units of the allowed one.
        equivariance: component of the group to the same for f(g x) against g f(x), both by the program.
        sizes: the sizes of the dynamic axes of the batches compared.
        differences: one sentence each; empty if the file does what the model does.
    """

    deviation: float
    equivariance: dict[str, float]
    sizes: tuple[tuple[int, ...], ...]
    differences: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """Return what a certificate says of it.

        Raises:
            CheckFailedError: if anything differs.
        """
        if self.differences:
            raise CheckFailedError(f"{self.differences[0]}; nothing was written")
        return {"deviation": self.deviation, "equivariance": self.equivariance, "sizes": self.sizes}


def session_of(path: Path, threads: int = 0) -> Any:
    """Open a file in ONNX Runtime on the CPU; 0 threads are as many as it likes."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def made_up_feed(axes: Mapping[str, str], names: Iterable[str]) -> dict[str, Any]:
    """Return numpy arrays that fit the inputs of a file: ones, and index 0 everywhere.

    Args:
        axes: what :func:`axes_of_graph` says of its inputs.
    """
    feed = {}
    for name in names:
        kind, sizes = made_up(axes[name])
        dtype = getattr(torch, kind)
        feed[name] = (torch.ones if dtype.is_floating_point else torch.zeros)(sizes, dtype=dtype).numpy()
    return feed


def runs_on_made_up_numbers(path: Path, axes: Mapping[str, str]) -> bool:
    """Tell whether ONNX Runtime runs a file on :func:`made_up_feed`, as its folder's README shows."""
    session = session_of(path)
    try:
        session.run(None, made_up_feed(axes, [item.name for item in session.get_inputs()]))
    except Exception:  # ONNX Runtime has its own exceptions, without a common class
        return False
    return True


def onnx_runner(path: Path, sample: Sample) -> Callable[[Any], list[Tensor]]:
    """Return a function from a batch to the outputs of the file in ONNX Runtime, on the CPU."""
    session = session_of(path)
    wanted = {item.name for item in session.get_inputs()}

    def run(batch: Any) -> list[Tensor]:
        named = zip(sample.names, tensors_in(batch), strict=True)
        feed = {name: tensor.detach().cpu().numpy() for name, tensor in named if name in wanted}
        return [torch.from_numpy(array) for array in session.run(None, feed)]

    return run


def check_onnx(path: Path, stripped: Stripped, sample: Sample, kept: Sequence[int] | None = None) -> Report:
    """Compare an ONNX file in ONNX Runtime with the model; arguments as for :func:`check_run`."""
    try:
        run = onnx_runner(path, sample)
    except Exception as error:  # its exceptions have no common class; it lacks ops in some dtypes, such as bfloat16
        return Report(float("inf"), {}, (), (f"ONNX Runtime does not open it: {one_line(error)}",))
    return check_run(run, "ONNX Runtime", stripped, sample, kept)


def check_run(
    run: Callable[[Any], list[Tensor]],
    where: str,
    stripped: Stripped,
    sample: Sample,
    kept: Sequence[int] | None = None,
) -> Report:
    """Compare an exported program with the model it was exported from, on batches of other sizes.

    Per output, ``max|run - f32|`` may be ``max(10 max|f32 - f64|, 1e-5 max|f64|)``; the same bound holds for
    ``max|run(g x) - g run(x)|``; of a network that is equivariant only approximately, by design, beyond what the model
    itself, in float64, deviates by.

    Args:
        run: from a batch to the output tensors of the program.
        where: what runs it, in words.
        stripped: the model, its float64 twin as yardstick, how it is called, and how the group acts.
        sample: whose ``others`` are compared.
        kept: positions of the outputs that the file has; None for all.
    """
    model, double, task, group = stripped.model, stripped.double, stripped.task, stripped.group
    batches = list(sample.others)
    eager = [_chosen(tree, kept) for tree in outputs_on(model, task, batches)]
    exact_trees = outputs_on(double, task, [to_dtype(batch, model_dtype(double)) for batch in batches])
    exact = [_chosen(tree, kept) for tree in exact_trees]
    pairs = [list(zip(*pair, strict=True)) for pair in zip(eager, exact, strict=True)]
    bounds = [[allowed_deviation(a, b, stripped.relative) for a, b in pair] for pair in pairs]
    worst, differences = 0.0, list[str]()
    results = list[list[Tensor]]()
    for batch, expected, allowed in zip(batches, eager, bounds, strict=True):
        try:
            found = run(batch)
        except Exception as error:  # every runtime has its own exceptions, without a common class
            differences.append(f"{where} fails at sizes {_sizes(sample, batch)}: {one_line(error)}")
            continue
        results.append(found)
        ratio = largest_deviation(found, expected, allowed)
        worst = max(worst, ratio)
        if not ratio <= 1:
            sizes = _sizes(sample, batch)
            differences.append(f"at sizes {sizes} {where} deviates {ratio:.1f} times as much as allowed")
    equivariance = {}
    if group is not None and can_act(task) and not differences:
        trees = [_like(tree, found, kept) for tree, found in zip(exact_trees, results, strict=True)]
        equivariance = _equivariance(run, stripped, batches, trees, exact_trees, bounds, kept)
        differences += [
            f"in {where} f(g x) and g f(x) differ {ratio:.1f} times as much as allowed under {name}"
            for name, ratio in equivariance.items()
            if not ratio <= 1
        ]
    return Report(worst, equivariance, tuple(_sizes(sample, batch) for batch in batches), tuple(differences))


def _equivariance(
    run: Callable[[Any], list[Tensor]],
    stripped: Stripped,
    batches: Sequence[Any],
    trees: Sequence[Any],
    exact_trees: Sequence[Any],
    bounds: Sequence[Sequence[float]],
    kept: Sequence[int] | None,
) -> dict[str, float]:
    generator, group = torch.Generator().manual_seed(0), stripped.group
    assert group is not None
    symmetry = task_symmetry(stripped.task, group)
    proposals, _, _ = collect_proposals(stripped.model, group, installed_adapters())
    approximate = any(proposal.symmetrised for _, proposal in proposals.values())
    result: dict[str, float] = {}
    for batch, tree, exact, allowed in zip(batches, trees, exact_trees, bounds, strict=True):
        for _, component, g in group.test_elements(generator, ELEMENTS):
            moved = _chosen(symmetry.expected(g, tree), kept)
            # Coordinates that are turned or moved have the size of what they are turned into.
            scaled = [max(a, stripped.relative * largest_entry(t)) for a, t in zip(allowed, moved, strict=True)]
            found = run(*symmetry.moved(g, (batch,)))
            ratio = largest_deviation(found, moved, scaled)
            if ratio > 1 and approximate:
                own = _own_deviation(stripped, symmetry, batch, exact, g, kept)
                ratio = largest_deviation(found, moved, [a + b for a, b in zip(scaled, own, strict=True)])
            result[component] = max(result.get(component, 0.0), ratio)
    return result


def _own_deviation(
    stripped: Stripped, symmetry: Symmetry, batch: Any, exact: Any, g: Tensor, kept: Sequence[int] | None
) -> list[float]:
    """Return ``max|f(g x) - g f(x)|`` of the float64 model, per output."""
    moved = symmetry.moved(g, (to_dtype(batch, model_dtype(stripped.double)),))
    (output,) = outputs_on(stripped.double, stripped.task, moved)
    expected = _chosen(symmetry.expected(g, exact), kept)
    return [float((a - b).abs().max()) for a, b in zip(_chosen(output, kept), expected, strict=True)]


def _chosen(tree: Any, kept: Sequence[int] | None) -> list[Tensor]:
    tensors = tensors_in(tree)
    return tensors if kept is None else [tensors[index] for index in kept]


def _like(tree: Any, found: Sequence[Tensor], kept: Sequence[int] | None) -> Any:
    """Return the tree with the found tensors in it; those that the file does not have stay, for ``act_output``."""
    tensors = tensors_in(tree)
    for index, tensor in zip(range(len(tensors)) if kept is None else kept, found, strict=True):
        tensors[index] = tensor
    remaining = iter(tensors)
    return map_tensors(lambda _: next(remaining), tree)


def _sizes(sample: Sample, batch: Any) -> tuple[int, ...]:
    shapes = zip(tensors_in(batch), sample.dynamic, strict=True)
    return tuple(dict.fromkeys(tensor.shape[axis] for tensor, axes in shapes for axis in axes))
