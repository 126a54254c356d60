"""Write ``model.onnx``, but only after it was shown to do what the model does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from surgeon.certificate import package_versions
from surgeon.errors import CheckFailedError
from surgeon.evaluation import outputs_on
from surgeon.export.checks import check_onnx
from surgeon.export.convert import output_names, to_onnx
from surgeon.export.sample import sample_of
from surgeon.export.signature import compare_signatures, signature, signature_hash
from surgeon.groups import Group
from surgeon.imports import one_line
from surgeon.stripped import Stripped
from surgeon.types import Task
from surgeon.verdict import model_dtype

ONNX_FILE = "model.onnx"

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
"""What has to be installed, and what a certificate records the versions of."""


def export_onnx(
    path: Path,
    stripped: Stripped,
    *,
    opset: int = 18,
    metadata: Mapping[str, str] | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Export a stripped model and prove the file; the caller removes it if this raises.

    Checked are: the file by ``onnx.checker``; its graph against that of the original exported in the same way, node by
    node, constants by value and tensors of the state dict by name; its outputs and its equivariance in ONNX Runtime.

    Args:
        path: the file to write.
        stripped: the model, on the CPU, and what it is compared with; no equivariance check without a group.
        opset: version of the ONNX operator set.
        metadata: what else the file should say about itself.
        announce: told what is being done, since it takes a while.

    Returns:
        JSON-compatible: names, sizes, hashes and what was measured.

    Raises:
        CheckFailedError: if a check fails; it says what differs.
    """
    model, task = stripped.model, stripped.task
    sample = sample_of(task, model_dtype(model))
    announce("converting the model to ONNX")
    converted = to_onnx(model, task, sample, opset)
    names = output_names(task, outputs_on(model, task, [sample.batch])[0], sample.names)
    announce("converting the original in the same way, to compare the graphs")
    digest = _same_graph(stripped, converted, to_onnx(stripped.original, task, sample, opset), names)
    converted.producer_name = "equisurgeon"
    converted.metadata_props.update(
        {"equisurgeon.graph_sha256": digest, **_facts(task, stripped.group), **(metadata or {})}
    )
    _save(converted, path)
    announce("comparing ONNX Runtime with the model")
    report = check_onnx(path, stripped, sample)
    if report.differences:
        raise CheckFailedError(f"{report.differences[0]}; nothing was written")
    graph = converted.graph
    return {
        "opset": opset,
        "nodes": len(list(graph)),
        "graph_sha256": digest,
        "inputs": [value.name for value in graph.inputs],
        "outputs": names,
        "tensors": sum(name in model.state_dict() for name in graph.initializers),
        **{key: value for key, value in dataclasses.asdict(report).items() if key != "differences"},
    }


def _same_graph(stripped: Stripped, converted: Any, before: Any, names: list[str]) -> str:
    """Name the outputs, compare the graphs of result and original, and return the hash of the signature."""
    rows = []
    for each, network in ((before, stripped.original), (converted, stripped.model)):
        for value, name in zip(each.graph.outputs, names, strict=True):
            value.name = name
        rows.append(signature(each, network.state_dict()))
    differences = compare_signatures(rows[0], rows[1])
    if differences:
        raise CheckFailedError(f"the ONNX graph is not that of the original: {differences[0]}; nothing was written")
    return signature_hash(rows[1])


def onnx_extra(
    stripped: Stripped, *, opset: int = 18, announce: Callable[[str], None] = lambda _: None
) -> Callable[[Path], dict[str, Any]]:
    """Return a function that writes ``model.onnx`` into a folder; arguments are those of :func:`export_onnx`."""

    def write(folder: Path) -> dict[str, Any]:
        record = export_onnx(folder / ONNX_FILE, stripped, opset=opset, announce=announce)
        return {**record, "versions": package_versions(PACKAGES)}

    return write


def _facts(task: Task, group: Group | None) -> dict[str, str]:
    units = getattr(task, "units", None) or {}
    found = {f"units.{name}": str(unit) for name, unit in units.items()}
    return {**({"group": group.name} if group is not None else {}), **found}


def _save(model: Any, path: Path) -> None:
    import onnx
    import onnx_ir

    onnx_ir.save(model, str(path))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker has its own exceptions, without a common class
        raise CheckFailedError(f"onnx.checker refuses the file ({one_line(error)}); nothing was written") from error
