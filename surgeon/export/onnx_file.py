"""Write ``model.onnx``, but only after it was shown to do what the model does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.errors import CheckFailedError, PrecisionError
from surgeon.export.checks import check_onnx, runs_on_made_up_numbers
from surgeon.export.convert import to_onnx
from surgeon.export.facts import Named, facts
from surgeon.export.outputs import ALL_OUTPUTS, Selection, apart_from, output_names
from surgeon.export.ports import axes_of_graph, name_sizes
from surgeon.export.program import outputs_by_derivative, require_same_run
from surgeon.export.sample import Sample, sample_for, with_free_axes
from surgeon.export.signature import signature, signature_hash
from surgeon.export.stripped import Stripped
from surgeon.export.unscript import eager
from surgeon.opening.evaluation import outputs_on
from surgeon.support.imports import one_line
from surgeon.support.modes import in_evaluation_mode, model_dtype, names_in_evaluation, set_training
from surgeon.support.trees import to_dtype
from surgeon.support.versions import package_versions

ONNX_FILE = "model.onnx"

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What has to be installed, and what a certificate records the versions of."""


def export_onnx(
    path: Path,
    stripped: Stripped,
    *,
    opset: int = 18,
    selection: Selection = ALL_OUTPUTS,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Export a stripped model and prove the file; the caller removes it if this raises.

    Checked are: a run of the model against one of the original, see :func:`require_same_run`; the file by
    ``onnx.checker``; its outputs and its equivariance in ONNX Runtime.

    Args:
        stripped: the model, on the CPU, and what it is compared with; no equivariance check without a group.
        opset: version of the ONNX operator set.
        announce: told what is being done, since it takes a while.

    Returns:
        JSON-compatible: names, sizes, hashes and what was measured.

    Raises:
        CheckFailedError: if a check fails; it says what differs.
        SurgeonError: if the selected outputs do not exist, or the model is in bfloat16.
    """
    task = stripped.task
    _require_usable_dtype(stripped.model)
    sample = sample_for(stripped)
    stripped = eager(stripped, sample.batch)
    model = stripped.model
    every = output_names(task, outputs_on(model, task, [sample.batch])[0])
    derived = outputs_by_derivative(model, task, sample)
    kept = selection.positions(every, derived)
    announce("converting the model to ONNX")
    require_same_run(model, stripped.original, task, sample)
    wanted = {index: every[index] for index in kept}
    record, one_size = with_free_axes(
        sample, lambda own: _checked_file(path, stripped, own, wanted, opset=opset, announce=announce)
    )
    return {
        "opset": opset,
        **record,
        "one_size": one_size,
        "selection": list(wanted.values()),
        "left_out": [name for index, name in enumerate(every) if index not in kept],
        "derivatives": [every[index] for index in sorted(derived or ())],
        "versions": package_versions(PACKAGES),
    }


def _checked_file(
    path: Path,
    stripped: Stripped,
    sample: Sample,
    wanted: Mapping[int, str],
    *,
    opset: int,
    announce: Callable[[str], None],
) -> dict[str, Any]:
    """Convert a model, write the file and check it; the outputs are wanted by position, with their names."""
    model, kept = stripped.model, tuple(wanted)
    converted = to_onnx(model, stripped.task, sample, opset, kept)
    graph = converted.graph
    names = _name_outputs(graph, list(wanted.values()))
    name_sizes(graph, sample.titles())
    inputs, axes = [value.name for value in graph.inputs], axes_of_graph(graph)
    digest = signature_hash(signature(converted, names_in_evaluation(model)))
    about = _facts(stripped, sample, inputs, dict(zip(kept, names, strict=True)))
    converted.producer_name = "equisurgeon"
    own = {"equisurgeon.graph_sha256": digest, **{f"axes.{name}": words for name, words in axes.items()}}
    converted.metadata_props.update({**own, **about})
    _save(converted, path)
    announce("comparing ONNX Runtime with the model")
    figures = check_onnx(path, stripped, sample, kept).figures()
    return {
        "nodes": len(list(graph)),
        "graph_sha256": digest,
        "inputs": inputs,
        "outputs": names,
        "axes": axes,
        "runs_on_made_up_numbers": runs_on_made_up_numbers(path, axes),
        **_tensors(model, graph),
        "metadata": about,
        **figures,
    }


def _name_outputs(graph: Any, wanted: Sequence[str]) -> list[str]:
    """Give the outputs of a graph their names, apart from those of its inputs, and return these."""
    names = apart_from(wanted, [value.name for value in graph.inputs])
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name
    return names


def _facts(stripped: Stripped, sample: Sample, inputs: Sequence[str], outputs: Mapping[int, str]) -> dict[str, str]:
    """Return the metadata, measured in float64 on the example and its outputs."""
    task, batch = stripped.task, to_dtype(sample.batch, model_dtype(stripped.double))
    given: Named = (batch, {index: name for index, name in enumerate(sample.names) if name in inputs})
    return facts(task, stripped.group, given, (outputs_on(stripped.double, task, [batch])[0], outputs))


def _tensors(model: nn.Module, graph: Any) -> dict[str, Any]:
    """Count the tensors of the state dict, and list those that some libraries compute from parameters in eval mode."""
    state = names_in_evaluation(model)
    names = [name for name in graph.initializers if name in state]
    with in_evaluation_mode(model):  # which puts the modes back
        set_training(model, True)
        kept = model.state_dict()
    return {"tensors": len(names), "computed_in_eval_mode": [name for name in names if name not in kept]}


def _require_usable_dtype(model: nn.Module) -> None:
    if model_dtype(model) == torch.bfloat16:
        raise PrecisionError(
            "expected a model in a dtype that ONNX Runtime computes in on a CPU, where the file is checked, got "
            "bfloat16: relax and train a float32 copy of the checkpoint; nothing was written"
        )


def _save(model: Any, path: Path) -> None:
    import onnx
    import onnx_ir

    onnx_ir.save(model, str(path))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker has its own exceptions, without a common class
        raise CheckFailedError(f"onnx.checker refuses the file ({one_line(error)}); nothing was written") from error
