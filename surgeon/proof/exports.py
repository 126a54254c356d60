"""What was written beside the weights: the ONNX file, the torch.export archive and the original container."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import CheckFailedError, CheckpointError, SurgeonError, TrustError, WriteError
from surgeon.export.archive import Archive, compare_archives, read_archive
from surgeon.export.checks import check_onnx, made_up_feed, session_of
from surgeon.export.convert import OPSETS
from surgeon.export.onnx_file import ONNX_FILE, PACKAGES, export_onnx
from surgeon.export.outputs import Selection, output_names
from surgeon.export.ports import axes_of_graph
from surgeon.export.program import OWNER
from surgeon.export.pt2_file import PT2_FILE, describe, export_pt2
from surgeon.export.reopening import USAGE, check_container
from surgeon.export.sample import Sample, sample_for
from surgeon.export.signature import compare_signatures, signature, signature_hash
from surgeon.export.stripped import Stripped
from surgeon.files.atomic import translated
from surgeon.files.clean import CleanFiles
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import same_bytes
from surgeon.opening.clean import GIVE_TASK
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.loading import named_as
from surgeon.opening.workspace import Workspace
from surgeon.proof.records import compare_figures
from surgeon.proof.verdict import Finding, compared, unchecked, unrecorded
from surgeon.support.imports import one_line
from surgeon.support.versions import package_versions


def has_exports(clean: CleanFiles) -> bool:
    """Tell whether there is anything beside the weights."""
    files = any((clean.path / name).is_file() for name in (ONNX_FILE, PT2_FILE))
    return files or any(name in clean.certificate["details"] for name in ("onnx", "pt2", "container"))


def export_findings(
    clean: CleanFiles, workspace: Workspace | None, stripped: Stripped | None, trust_pickle: bool
) -> list[Finding]:
    """Verify every further file; without a model, and without a task, what can be verified.

    Args:
        workspace: the opened original; None without a model.
        stripped: the model with the folder's weights beside the original; None without a task.
        trust_pickle: whether files that run code may be opened.
    """
    if clean.damage:
        return [unchecked("further formats", "the weights do not open")] if has_exports(clean) else []
    details = clean.certificate["details"]
    findings: list[Finding] = []
    for name, key, check in ((ONNX_FILE, "onnx", _onnx), (PT2_FILE, "pt2", _pt2)):
        path, record = clean.path / name, details.get(key)
        if path.is_file():
            findings += check(clean, path, record or {}, stripped)
        elif record is not None:
            findings.append(compared(name, ["the certificate describes it, but it is not there"]))
    if "container" in details:
        findings += _container(clean, details["container"], workspace, stripped, trust_pickle)
    return findings


def _tensors(name: str, clean: CleanFiles, stored: Iterable[str], same: Callable[[str], bool]) -> Finding:
    """Compare the tensors that a file has under their names by value; where it has none, nothing was compared."""
    known = [key for key in stored if key in clean.tensors]
    if not known and clean.tensors:
        return unchecked(f"{name}: tensors", f"it has none of {len(clean.tensors)} under its name: {GIVE_TASK}")
    where, note = name.removeprefix("container "), f"{len(known)} of {len(clean.tensors)} by value"
    wrong = [f"{key} in {where} has not the values of model.safetensors" for key in known if not same(key)]
    return compared(f"{name}: tensors", wrong, note)


def _figures(name: str, record: Mapping[str, Any], figures: Mapping[str, Any], alone: bool = False) -> Finding:
    """Compare what is recorded of a file with what was found; without a task, what there is."""
    if not record:
        return unrecorded(f"{name}: recorded figures")
    if not alone:
        return compare_figures(name, record, figures)
    left = [key.replace("_", " ") for key in record if key not in figures and key != "versions"]
    note = f"{', '.join(figures)}; not {', '.join(left)}: {GIVE_TASK}"
    return compare_figures(name, {key: record.get(key) for key in figures}, figures, note)


def _onnx(clean: CleanFiles, path: Path, record: Mapping[str, Any], stripped: Stripped | None) -> list[Finding]:
    absent = [package for package in PACKAGES if package not in package_versions(PACKAGES)]
    if absent:
        return [unchecked(ONNX_FILE, f"needs the package {absent[0]}: install it with `pip install {absent[0]}`")]
    try:
        model = _loaded(path)
    except CheckFailedError as error:
        return [compared(ONNX_FILE, [str(error)])]
    stored = {name: value.const_value for name, value in model.graph.initializers.items()}
    axes = axes_of_graph(model.graph)
    findings = [
        _tensors(ONNX_FILE, clean, stored, lambda name: _same_as_onnx(clean.tensors[name], stored[name])),
        _onnx_alone(path, axes) if stripped is None else _onnx_run(path, record, stripped),
    ]
    others = _other_versions(clean, record, ("torch", "onnx", "onnxscript"))
    if others:
        return [*findings, unchecked(f"{ONNX_FILE}: graph", f"the exporter's graphs depend on versions ({others})")]
    if stripped is not None:
        return findings + _onnx_again(clean, record, model, stripped)
    names = {*clean.tensors, *record.get("computed_in_eval_mode", ())}
    figures = {
        "nodes": len(list(model.graph)),
        "graph_sha256": signature_hash(signature(model, names)),
        "inputs": [value.name for value in model.graph.inputs],
        "outputs": [value.name for value in model.graph.outputs],
        "axes": axes,
        "tensors": len(stored.keys() & names),
    }
    left = unchecked(f"{ONNX_FILE}: graph, outputs and equivariance", GIVE_TASK)
    return [*findings, left, _figures(ONNX_FILE, record, figures, alone=True)]


def _loaded(path: Path) -> Any:
    import onnx
    import onnx_ir

    try:
        onnx.checker.check_model(str(path), full_check=True)
        return onnx_ir.load(str(path))
    except Exception as error:  # damaged protobuf raises whatever its fields lead to
        raise CheckFailedError(f"{path.name} does not open: {one_line(error)}") from error


def _same_as_onnx(tensor: Tensor, stored: Any) -> bool:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
    return tuple(stored.shape) == tuple(tensor.shape) and bool(stored.tobytes() == content)


@contextmanager
def _for_a_while() -> Iterator[Path]:
    """Make a folder for files that are only compared; a full disk under it says nothing about them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with translated(folder, folder):
            yield folder


def _onnx_again(clean: CleanFiles, record: Mapping[str, Any], model: Any, stripped: Stripped) -> list[Finding]:
    """Export the certified weights once more, and compare the two files."""
    name, left, sample = f"{ONNX_FILE}: graph", record.get("left_out"), sample_for(stripped)
    wanted = Selection(tuple(each for each in _output_names(stripped, sample) if each not in left) if left else None)
    with _for_a_while() as folder:
        again = folder / ONNX_FILE
        try:
            figures = export_onnx(again, stripped, opset=record.get("opset", OPSETS[0]), selection=wanted)
        except WriteError:
            raise
        except SurgeonError as error:
            return [compared(name, [f"it cannot be exported again: {error}"])]
        expected = _loaded(again)
    rows = [signature(each, stripped.model.state_dict()) for each in (expected, model)]
    sentences = compare_signatures(rows[0], rows[1])
    facts = [dict(each.metadata_props) for each in (expected, model)]
    if stripped.group is None:  # then nothing about the group can be told again
        facts = [{key: known.get(key) for key in facts[0]} for known in facts]
    if facts[0] != facts[1]:
        sentences.append(f"metadata of {ONNX_FILE}: expected {facts[0]}, got {facts[1]}")
    found = compared(name, sentences, f"{len(rows[1])} rows, exported again")
    others = _other_versions(clean, record, ("onnxruntime",))
    if others:
        return [found, unchecked(f"{ONNX_FILE}: recorded figures", f"rounding depends on versions ({others})")]
    unknown = {"versions", *(("equivariance", "metadata") if stripped.group is None else ())}
    return [found, _figures(ONNX_FILE, _without(record, unknown), _without(figures, unknown))]


def _without(figures: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key not in names}


def _output_names(stripped: Stripped, sample: Sample) -> list[str]:
    return output_names(stripped.task, outputs_on(stripped.model, stripped.task, [sample.batch])[0])


def _onnx_alone(path: Path, axes: Mapping[str, str]) -> Finding:
    """Run the file without the task, on made-up inputs: ones, and index 0 everywhere."""
    name = f"{ONNX_FILE}: runs"
    try:
        session = session_of(path)
    except Exception as error:  # ONNX Runtime has its own exceptions, without a common class
        return compared(name, [f"ONNX Runtime cannot open it: {one_line(error)}"])
    try:
        session.run(None, made_up_feed(axes, [item.name for item in session.get_inputs()]))
    except Exception as error:
        return unchecked(name, f"it does not on made-up inputs ({one_line(error)}): {GIVE_TASK}")
    return compared(name, [], "in ONNX Runtime, on made-up inputs")


def _onnx_run(path: Path, record: Mapping[str, Any], stripped: Stripped) -> Finding:
    """Run the file in the folder on the task's batches."""
    name, left = f"{ONNX_FILE}: outputs and equivariance", record.get("left_out") or ()
    sample = sample_for(stripped)
    if (record.get("one_size") or {}).get("free") is False:
        sample = sample.without_tried() or sample
    kept = [place for place, output in enumerate(_output_names(stripped, sample)) if output not in left]
    try:
        report = check_onnx(path, stripped, sample, kept=kept)
    except SurgeonError:
        raise
    except Exception as error:  # ONNX Runtime has its own exceptions, without a common class
        return compared(name, [f"ONNX Runtime cannot open it: {one_line(error)}"])
    acted = "" if report.equivariance else "; equivariance needs act, act_output and --group"
    return compared(name, report.differences, f"in ONNX Runtime, at {len(report.sizes)} sizes{acted}")


def _other_versions(clean: CleanFiles, record: Mapping[str, Any], packages: Iterable[str]) -> str:
    """Name the versions that an export depends on and that are others here; empty if there are none."""
    made = {**clean.certificate["details"].get("versions", {}), **record.get("versions", {})}
    here = package_versions(packages)
    return ", ".join(f"{name} {made.get(name)}, here {here.get(name)}" for name in here if made.get(name) != here[name])


def _pt2(clean: CleanFiles, path: Path, record: Mapping[str, Any], stripped: Stripped | None) -> list[Finding]:
    try:
        archive = read_archive(path)
    except CheckFailedError as error:
        return [compared(PT2_FILE, [str(error)])]
    stored = {key.removeprefix(OWNER): weight for key, weight in archive.weights.items()}  # some computed in eval mode
    tensors = _tensors(PT2_FILE, clean, stored, lambda name: stored[name].equals(clean.tensors[name]))
    if stripped is not None:
        return [tensors, *_pt2_again(clean, record, archive, stripped)]
    figures = _without(describe(archive, ()), ("inputs",))
    left = unchecked(f"{PT2_FILE}: graph, outputs and equivariance", GIVE_TASK)
    return [tensors, left, _figures(PT2_FILE, record, figures, alone=True)]


def _pt2_again(clean: CleanFiles, record: Mapping[str, Any], archive: Archive, stripped: Stripped) -> list[Finding]:
    """Export the certified weights once more; the folder's archive has to be that one, and is never loaded itself."""
    name, others = f"{PT2_FILE}: graph", _other_versions(clean, record, ("torch",))
    if others:
        return [unchecked(f"{name}, outputs and equivariance", f"exported graphs depend on versions ({others})")]
    with _for_a_while() as folder:
        again = folder / PT2_FILE
        try:
            figures = export_pt2(again, stripped)
        except WriteError:
            raise
        except SurgeonError as error:
            return [compared(name, [f"it cannot be exported again: {error}"])]
        fresh = read_archive(again)
    sentences = compare_archives(fresh, archive)
    computed = [key for key in fresh.weights if key.removeprefix(OWNER) not in clean.tensors and key in archive.weights]
    other = [key for key in computed if fresh.weights[key].content != archive.weights[key].content]
    sentences += [f"{key} in {PT2_FILE} is not what follows from the weights" for key in other]
    note = f"{len(archive.nodes)} nodes; exported again from the weights, which was run"
    unknown = ("equivariance",) if stripped.group is None else ()
    told = _figures(PT2_FILE, _without(record, unknown), _without(figures, unknown))
    return [compared(name, sentences, note), told]


def _container(
    clean: CleanFiles,
    record: Mapping[str, Any],
    workspace: Workspace | None,
    stripped: Stripped | None,
    trust_pickle: bool,
) -> list[Finding]:
    name = str(record.get("file"))
    path, what = clean.path / name, f"container {name}"
    if Path(name).name != name or not path.is_file():
        return [compared(what, ["the certificate describes it, but it is no file of the folder"])]
    try:
        entry = clean.certificate["details"]["original"]["entry"]
        opened = open_checkpoint(path, trust_pickle=trust_pickle, entry=entry)
    except TrustError:
        return [unchecked(what, "it runs code when it is opened: give --trust-pickle")]
    except CheckpointError as error:
        return [compared(what, [f"it does not open: {error}"])]
    found = named_as(opened, clean.tensors)
    same = lambda key: key in found and same_bytes(found[key], clean.tensors[key])  # noqa: E731
    tensors, outputs = _tensors(what, clean, clean.tensors, same), f"{what}: outputs of its model"
    if workspace is None or stripped is None:
        return [tensors, *(unchecked(each, GIVE_TASK) for each in (outputs, f"{what}: recorded figures"))]
    try:
        again = check_container(path, workspace, stripped.model, stripped)
    except CheckFailedError as error:
        return [tensors, compared(outputs, [str(error)])]
    figures = compare_figures(what, _without(record, (USAGE,)), dataclasses.asdict(again))
    return [tensors, compared(outputs, [], f"opened by {again.opened_by}"), figures]
