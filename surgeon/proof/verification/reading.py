"""Read ``certificate.json`` of a clean folder into typed data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from surgeon.algebra.equivariance import ErrorSummary
from surgeon.errors import CheckFailedError, CheckpointError, PlanError
from surgeon.files.clean import CERTIFICATE_FILE
from surgeon.files.content import read_json
from surgeon.files.seals import recover
from surgeon.plan import Grade, Split
from surgeon.proof.certificate import FORMAT_VERSION
from surgeon.proof.verdict import MeasureSettings
from surgeon.proof.verification.result import Equivariance

Form = tuple[tuple[int, ...], str]
"""Shape and dtype of a tensor."""


@dataclass(frozen=True)
class Recorded:
    """What a certificate says.

    Attributes:
        data: the whole file.
        grade: how much it says was shown; None if it says that a check fails.
        checks: name of a check to its verdict.
        differences: sentences; none in a certificate that holds.
        files: relative name to sha256.
        original: file name, sha256 and entry of the original checkpoint.
        original_forms: name of a tensor to shape and dtype.
        forms: the same for the result.
        hashes: name of a tensor of the result to the sha256 of its bytes.
        classes: qualified name of a module to its class.
        buffers_written: buffers that training writes, to their largest change.
        equivariance: model to dtype to component to error summary.
        metrics: model to metric to value.
        versions: package to version.
        graphs: hashes of the recorded graphs of original and result; None without a task.
        relaxed_graph: what was recorded of the original when it was relaxed; None without a task.
        settings: elements, batches and seed of the measurement; None if nothing was measured.
        split: of the metrics; None for none.
        group: name of the group; None if the certificate does not name it.
    """

    data: Mapping[str, Any] = field(repr=False)
    grade: Grade | None
    checks: Mapping[str, bool]
    differences: tuple[str, ...]
    files: Mapping[str, str]
    original: Mapping[str, str | None]
    original_forms: Mapping[str, Form]
    forms: Mapping[str, Form]
    hashes: Mapping[str, str]
    classes: Mapping[str, str]
    buffers_written: Mapping[str, float]
    equivariance: Equivariance
    metrics: Mapping[str, Mapping[str, float]]
    versions: Mapping[str, str]
    graphs: tuple[str, str] | None
    relaxed_graph: Mapping[str, Any] | None
    settings: MeasureSettings | None
    split: Split | None
    group: str | None


def read_certificate(folder: Path) -> Recorded:
    """Read the certificate of a clean folder.

    Raises:
        CheckpointError: if there is no such folder, or the certificate is of a newer format.
        CheckFailedError: if the certificate is missing or damaged beyond reading.
    """
    recover(folder)
    path = folder / CERTIFICATE_FILE
    if not folder.is_dir():
        raise CheckpointError(f"expected a folder written by `surgeon strip`, but {str(folder)!r} is none: name one")
    if not path.is_file():
        raise CheckFailedError(
            f"expected {CERTIFICATE_FILE} in {str(folder)!r}, but it is missing: nothing can be verified, strip again"
        )
    try:
        data = read_json(path)
    except (PlanError, ValueError, RecursionError) as error:
        raise CheckFailedError(f"{str(path)!r} is damaged ({error.__cause__ or error}): strip again") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"expected a certificate of format version {FORMAT_VERSION} or older, got {version} in {str(path)!r}: "
            "update equisurgeon to read it"
        )
    try:
        return _parsed(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckFailedError(
            f"expected a certificate as `surgeon strip` writes it in {str(path)!r}, but a part of it is missing or "
            f"malformed ({type(error).__name__}: {error}): it is damaged or was made by an older version, strip again"
        ) from error


def _parsed(data: Mapping[str, Any]) -> Recorded:
    details, architecture = data["details"], data["architecture"]
    measurement, source = details.get("measurement"), details["original"]
    graphs, relaxed = details.get("graph_sha256"), details.get("relaxed_graph")
    return Recorded(
        data=data,
        grade=_grade(data),
        checks={str(name): holds is True for name, holds in data["checks"].items()},
        differences=tuple(data["differences"]),
        files={str(name): str(digest) for name, digest in data["files"].items()},
        original={"file": str(source["file"]), "sha256": str(source["sha256"]), "entry": source["entry"]},
        original_forms={key: _form(value) for key, value in architecture["original"].items()},
        forms={key: _form(value) for key, value in architecture["result"].items()},
        hashes={key: str(value[2]) for key, value in architecture["result"].items()},
        classes={str(name): str(text) for name, text in architecture["classes"].items()},
        buffers_written={str(name): _number(value) for name, value in data["buffers_written"].items()},
        equivariance={
            model: {dtype: {name: _summary(e) for name, e in parts.items()} for dtype, parts in dtypes.items()}
            for model, dtypes in data["equivariance"].items()
        },
        metrics={model: {k: _number(v) for k, v in values.items()} for model, values in data["metrics"].items()},
        versions={str(name): str(text) for name, text in details.get("versions", {}).items()},
        graphs=None if graphs is None else (str(graphs[0]), str(graphs[1])),
        relaxed_graph=None if relaxed is None else {name: relaxed[name] for name in ("sha256", "batch", "versions")},
        settings=None if measurement is None else _settings(measurement),
        split=None if measurement is None else _split(measurement["split"]),
        group=None if details.get("group") is None else str(details["group"]),
    )


def _grade(data: Mapping[str, Any]) -> Grade | None:
    grade = data["grade"] if data["passed"] is True else None
    if grade is not None and grade not in get_args(Grade):
        raise ValueError(f"grade {grade!r}")
    return grade


def _form(value: Any) -> Form:
    return tuple(int(size) for size in value[0]), str(value[1])


def _number(value: Any) -> float:
    """JSON has null for a number that is not finite."""
    return math.nan if value is None else float(value)


def _summary(error: Mapping[str, Any]) -> ErrorSummary:
    mean, median, maximum = (_number(error[key]) for key in ("mean", "median", "maximum"))
    return ErrorSummary(mean, median, maximum, int(error["count"]), str(error["worst"]))


def _settings(data: Mapping[str, Any]) -> MeasureSettings:
    elements, batches, seed = (int(data[key]) for key in ("elements", "batches", "seed"))
    if elements < 1 or batches < 1:
        raise ValueError(f"measurement with {elements} elements on {batches} batches")
    return MeasureSettings(elements, batches, seed)


def _split(value: Any) -> Split | None:
    if value is not None and value not in get_args(Split):
        raise ValueError(f"split {value!r}")
    return value  # type: ignore[no-any-return]
