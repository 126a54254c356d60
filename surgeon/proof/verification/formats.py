"""What was written beside the weights: the ONNX file, the torch.export archive and the original container."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import CheckFailedError, CheckpointError, SurgeonError, TrustError
from surgeon.export.archive import Archive, compare_archives, read_archive
from surgeon.export.checks import check_onnx, session_of
from surgeon.export.convert import OPSETS
from surgeon.export.onnx_file import ONNX_FILE, PACKAGES, export_onnx
from surgeon.export.outputs import Selection, output_names
from surgeon.export.program import OWNER
from surgeon.export.pt2_file import PT2_FILE, export_pt2
from surgeon.export.reopening import check_container
from surgeon.export.sample import Sample, sample_of
from surgeon.export.signature import compare_signatures, signature
from surgeon.export.stripped import Stripped
from surgeon.files.content import json_compatible
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import same_bytes
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.workspace import Workspace
from surgeon.proof.certificate import SHOWN, named_as
from surgeon.proof.verification.agreement import differing_figures
from surgeon.proof.verification.reading import Recorded
from surgeon.proof.verification.result import Finding, compared, unchecked, unrecorded
from surgeon.support.imports import one_line
from surgeon.support.modes import model_dtype
from surgeon.support.versions import package_versions

GIVE_TASK = "give --task"
MADE_UP_SIZE = 3


@dataclasses.dataclass(frozen=True)
class Clean:
    """A clean folder and what is known of it.

    Attributes:
        folder: as written by ``surgeon export``.
        tensors: of model.safetensors, by name.
        recorded: the certificate.
        trust_pickle: whether files that run code may be opened.
    """

    folder: Path
    tensors: Mapping[str, Tensor]
    recorded: Recorded
    trust_pickle: bool = False

    @property
    def has_formats(self) -> bool:
        """Whether there is anything beside the weights."""
        files = any((self.folder / name).is_file() for name in (ONNX_FILE, PT2_FILE))
        return files or any(self.record(name) is not None for name in ("onnx", "pt2", "container"))

    def record(self, name: str) -> dict[str, Any] | None:
        """Return what the certificate says of a format; None for nothing."""
        found = self.recorded.data["details"].get(name)
        return found if isinstance(found, dict) else None


def format_findings(clean: Clean, workspace: Workspace | None, stripped: Stripped | None) -> list[Finding]:
    """Verify every further file; without a model, and without a task, what can be verified.

    Args:
        clean: the folder.
        workspace: the opened original; None without a model.
        stripped: the model with the folder's weights beside the original; None without a task.
    """
    return [
        *_onnx(clean, stripped),
        *_pt2(clean, stripped),
        *_container(clean, workspace, stripped),
    ]


def _differing_tensors(found: Mapping[str, bool], where: str) -> list[str]:
    wrong = [name for name, same in found.items() if not same]
    told = [f"{name} in {where} has not the values of model.safetensors" for name in wrong[:SHOWN]]
    return [*told, *([f"and {len(wrong) - SHOWN} further tensors in {where}"] if len(wrong) > SHOWN else [])]


def _tensors(name: str, same: Mapping[str, bool], clean: Clean) -> Finding:
    """Compare the tensors that a file has under their names by value; where it has none, nothing was compared."""
    if not same and clean.tensors:
        return unchecked(f"{name}: tensors", f"it has none of {len(clean.tensors)} under its name: {GIVE_TASK}")
    note = f"{len(same)} of {len(clean.tensors)} by value"
    return compared(f"{name}: tensors", _differing_tensors(same, name.removeprefix("container ")), note)


def _figures(name: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Finding:
    return compared(
        f"{name}: recorded figures", list(differing_figures(name, recorded, json_compatible(found)))[:SHOWN]
    )


def _onnx(clean: Clean, stripped: Stripped | None) -> list[Finding]:
    path, record = clean.folder / ONNX_FILE, clean.record("onnx")
    if not path.is_file():
        return [] if record is None else [compared(ONNX_FILE, ["the certificate describes it, but it is not there"])]
    missing = [package for package in PACKAGES if package not in package_versions(PACKAGES)]
    if missing:
        return [unchecked(ONNX_FILE, f"needs the package {missing[0]}: install it with `pip install {missing[0]}`")]
    try:
        graph = _loaded(path)
    except CheckFailedError as error:
        return [compared(ONNX_FILE, [str(error)])]
    stored = {name: value.const_value for name, value in graph.graph.initializers.items() if name in clean.tensors}
    same = {name: _same_as_onnx(clean.tensors[name], tensor) for name, tensor in stored.items()}
    findings = [_tensors(ONNX_FILE, same, clean)]
    if stripped is None:
        left = unchecked(f"{ONNX_FILE}: graph, outputs and equivariance", GIVE_TASK)
        return [*findings, _onnx_alone(path), left]
    return findings + _onnx_again(clean, path, graph, stripped)


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


def _onnx_again(clean: Clean, path: Path, graph: Any, stripped: Stripped) -> list[Finding]:
    """Export the certified weights once more, and compare the two files; run the one in the folder."""
    record = dict(clean.record("onnx") or {})
    sample = sample_of(stripped.task, model_dtype(stripped.model))
    names = output_names(stripped.task, outputs_on(stripped.model, stripped.task, [sample.batch])[0])
    left = record.get("left_out") or ()
    wanted = Selection(tuple(name for name in names if name not in left) if left else None)
    findings = [_onnx_run(path, stripped, sample, [place for place, name in enumerate(names) if name not in left])]
    others = _other_versions(clean, record, ("torch", "onnx", "onnxscript"))
    if others:
        return [*findings, unchecked(f"{ONNX_FILE}: graph", f"the exporter's graphs depend on versions ({others})")]
    opset = record.get("opset", OPSETS[0])
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / ONNX_FILE
        try:
            figures = export_onnx(again, stripped, opset=opset, selection=wanted)
        except SurgeonError as error:
            return [*findings, compared(f"{ONNX_FILE}: graph", [f"it cannot be exported again: {error}"])]
        expected = _loaded(again)
    rows = [signature(each, stripped.model.state_dict()) for each in (expected, graph)]
    sentences = compare_signatures(rows[0], rows[1])
    facts = [dict(each.metadata_props) for each in (expected, graph)]
    if stripped.group is None:  # then nothing about the group can be told again
        facts = [{key: known.get(key) for key in facts[0]} for known in facts]
        for known in (figures, record):
            known.pop("equivariance", None)
            known.pop("metadata", None)
    if facts[0] != facts[1]:
        sentences.append(f"metadata of {ONNX_FILE}: expected {facts[0]}, got {facts[1]}")
    findings.append(compared(f"{ONNX_FILE}: graph", sentences, f"{len(rows[1])} rows, exported again"))
    others = _other_versions(clean, record, ("onnxruntime",))
    if others:
        findings.append(unchecked(f"{ONNX_FILE}: recorded figures", f"rounding depends on versions ({others})"))
    elif not record:
        findings.append(unrecorded(f"{ONNX_FILE}: recorded figures"))
    else:
        findings.append(_figures(ONNX_FILE, {k: v for k, v in record.items() if k != "versions"}, figures))
    return findings


_KINDS = {"float": "float32", "double": "float64", "float16": "float16", "int64": "int64", "int32": "int32"}


def _onnx_alone(path: Path) -> Finding:
    """Run the file without the task, on made-up inputs: ones, and index 0 everywhere."""
    name = f"{ONNX_FILE}: runs"
    try:
        session = session_of(path)
    except Exception as error:  # ONNX Runtime has its own exceptions, without a common class
        return compared(name, [f"ONNX Runtime cannot open it: {one_line(error)}"])
    feed = {}
    for item in session.get_inputs():
        shape = [size if isinstance(size, int) else MADE_UP_SIZE for size in item.shape]
        kind = getattr(torch, _KINDS.get(item.type.removeprefix("tensor(").removesuffix(")"), "bool"))
        made_up = torch.ones(shape, dtype=kind)
        feed[item.name] = (made_up if kind.is_floating_point else torch.zeros_like(made_up)).numpy()
    try:
        session.run(None, feed)
    except Exception as error:
        return unchecked(name, f"it does not on made-up inputs ({one_line(error)}): {GIVE_TASK}")
    return compared(name, [], "in ONNX Runtime, on made-up inputs")


def _onnx_run(path: Path, stripped: Stripped, sample: Sample, kept: Sequence[int]) -> Finding:
    name = f"{ONNX_FILE}: outputs and equivariance"
    try:
        report = check_onnx(path, stripped, sample, kept=kept)
    except SurgeonError:
        raise
    except Exception as error:  # ONNX Runtime has its own exceptions, without a common class
        return compared(name, [f"ONNX Runtime cannot open it: {one_line(error)}"])
    acted = "" if report.equivariance else "; equivariance needs act, act_output and --group"
    return compared(name, report.differences, f"in ONNX Runtime, at {len(report.sizes)} sizes{acted}")


def _other_versions(clean: Clean, record: Mapping[str, Any], packages: Iterable[str]) -> str:
    """Name the versions that an export depends on and that are others here; empty if there are none."""
    made = {"torch": clean.recorded.versions.get("torch"), **record.get("versions", {})}
    here = package_versions(packages)
    return ", ".join(f"{name} {made.get(name)}, here {here.get(name)}" for name in here if made.get(name) != here[name])


def _pt2(clean: Clean, stripped: Stripped | None) -> list[Finding]:
    path, record = clean.folder / PT2_FILE, clean.record("pt2")
    if not path.is_file():
        return [] if record is None else [compared(PT2_FILE, ["the certificate describes it, but it is not there"])]
    try:
        archive = read_archive(path)
    except CheckFailedError as error:
        return [compared(PT2_FILE, [str(error)])]
    names = {key: key.removeprefix(OWNER) for key in archive.weights}
    known = {key: name for key, name in names.items() if name in clean.tensors}  # others are computed in eval mode
    same = {name: archive.weights[key].equals(clean.tensors[name]) for key, name in known.items()}
    findings = [_tensors(PT2_FILE, same, clean)]
    if stripped is None:
        return [*findings, unchecked(f"{PT2_FILE}: graph, outputs and equivariance", GIVE_TASK)]
    return findings + _pt2_again(clean, archive, stripped)


def _pt2_again(clean: Clean, archive: Archive, stripped: Stripped) -> list[Finding]:
    """Export the certified weights once more; the folder's archive has to be that one, and is never loaded itself."""
    record, name = dict(clean.record("pt2") or {}), f"{PT2_FILE}: graph"
    others = _other_versions(clean, record, ("torch",))
    if others:
        return [unchecked(f"{name}, outputs and equivariance", f"exported graphs depend on versions ({others})")]
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / PT2_FILE
        try:
            figures = export_pt2(again, stripped)
        except SurgeonError as error:
            return [compared(name, [f"it cannot be exported again: {error}"])]
        fresh = read_archive(again)
    sentences = compare_archives(fresh, archive)
    computed = [key for key in fresh.weights if key.removeprefix(OWNER) not in clean.tensors and key in archive.weights]
    other = [key for key in computed if fresh.weights[key].content != archive.weights[key].content]
    sentences += [f"{key} in {PT2_FILE} is not what follows from the weights" for key in other[:SHOWN]]
    if stripped.group is None:
        for known in (figures, record):
            known.pop("equivariance", None)
    note = f"{len(archive.nodes)} nodes; exported again from the weights, which was run"
    told = _figures(PT2_FILE, record, figures) if record else unrecorded(f"{PT2_FILE}: recorded figures")
    return [compared(name, sentences, note), told]


def _container(clean: Clean, workspace: Workspace | None, stripped: Stripped | None) -> list[Finding]:
    record = clean.record("container")
    if record is None:
        return []
    name = str(record.get("file"))
    path, what = clean.folder / name, f"container {name}"
    if Path(name).name != name or not path.is_file():
        return [compared(what, ["the certificate describes it, but it is no file of the folder"])]
    try:
        opened = open_checkpoint(path, trust_pickle=clean.trust_pickle, entry=clean.recorded.original["entry"])
    except TrustError:
        return [unchecked(what, "it runs code when it is opened: give --trust-pickle")]
    except CheckpointError as error:
        return [compared(what, [f"it does not open: {error}"])]
    tensors = named_as(opened, clean.tensors)
    same = {key: key in tensors and same_bytes(tensors[key], value) for key, value in clean.tensors.items()}
    findings = [_tensors(what, same, clean)]
    if workspace is None or stripped is None:
        return [*findings, unchecked(f"{what}: outputs of its model", GIVE_TASK)]
    try:
        again = check_container(path, workspace, stripped.model, stripped)
    except CheckFailedError as error:
        return [*findings, compared(f"{what}: outputs of its model", [str(error)])]
    findings.append(compared(f"{what}: outputs of its model", [], f"opened by {again.opened_by}"))
    return [*findings, _figures(what, record, dataclasses.asdict(again))]
