"""The clean folder: stripped weights with their certificate, as files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Required, TypedDict

from torch import Tensor

from surgeon.editing.adjust import Adjustments
from surgeon.errors import CheckFailedError, CheckpointError, PlanError
from surgeon.files.content import json_compatible, read_json, sha256_of_file
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import RecordedGraph
from surgeon.files.seals import recover
from surgeon.files.tensors import forms
from surgeon.plan import Grade, Split, StripMode

FORMAT_VERSION = 1
"""Of ``certificate.json``; it rises when a reader of the present version would misunderstand the file."""

WEIGHTS_FILE, CERTIFICATE_FILE, WORDS_FILE = "model.safetensors", "certificate.json", "CERTIFICATE.md"
CARD_FILE, STATEMENT_SUFFIX = "README.md", ".model.json"
STATEMENT_FILE = f"{WEIGHTS_FILE}{STATEMENT_SUFFIX}"
ATTESTATION_FILE, SIGNATURE_FILE = "certificate.intoto.json", "model.sig"
HASHING = (CERTIFICATE_FILE, ATTESTATION_FILE, SIGNATURE_FILE)
"""Files that hold the hashes of the others."""
CLEAN = (WEIGHTS_FILE, STATEMENT_FILE, *HASHING, WORDS_FILE, "config.json", "model.onnx", "model.onnx.data")

Number = float | None
"""JSON has null for a number that is not finite."""


class _Source(TypedDict):
    file: str
    sha256: str
    entry: str | None


class _Errors(TypedDict):
    mean: Number
    median: Number
    maximum: Number
    count: int
    worst: str


class _Tensors(TypedDict):
    original: dict[str, tuple[list[int], str]]
    result: dict[str, tuple[list[int], str, str]]
    classes: dict[str, str]


class _Measurement(TypedDict):
    elements: int
    batches: int
    seed: int
    split: Split | None


class _Details(TypedDict, total=False):
    original: Required[_Source]
    versions: dict[str, str]
    graph_sha256: tuple[str, str] | None
    relaxed_graph: RecordedGraph | None
    measurement: _Measurement
    group: str | None
    adjustments: Adjustments
    onnx: dict[str, Any]
    pt2: dict[str, Any]
    container: dict[str, Any]


class _Site(TypedDict):
    name: str
    argument: str
    norm: Number
    folded: Number
    lost: Number
    note: str


class _Certificate(TypedDict):
    passed: bool
    grade: Grade | None
    checks: dict[str, bool]
    differences: list[str]
    buffers_written: dict[str, Number]
    strip_mode: StripMode
    sites: list[_Site]
    equivariance: dict[str, dict[str, dict[str, _Errors]]]
    metrics: dict[str, dict[str, Number]]
    projection_error: Number
    details: _Details
    architecture: _Tensors
    files: dict[str, str]


@dataclass(frozen=True)
class CleanFiles:
    """What a clean folder holds now.

    Attributes:
        digest: its :func:`canonical_digest`.
        tensors: of ``model.safetensors``; empty if it does not open.
        damage: why it does not.
    """

    path: Path
    certificate: Mapping[str, Any]
    digest: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    damage: str = ""

    @cached_property
    def hashes(self) -> dict[str, str]:
        """As from :func:`hashes_of`, taken when they are first asked for: something else may be refused before."""
        return hashes_of(self.path)

    @cached_property
    def adjustments(self) -> Adjustments | None:
        """What the certificate lists as changed in the original before training; None if nothing."""
        import msgspec

        listed = self.certificate["details"].get("adjustments")
        return None if listed is None else msgspec.convert(listed, Adjustments)

    @cached_property
    def forms(self) -> dict[str, list[Any]]:
        """Shape and dtype of every tensor."""
        return forms_of(self.tensors)


def read_clean(path: Path) -> CleanFiles:
    """Read a clean folder; whether its parts belong together is another question.

    Raises:
        CheckpointError: if there is no such folder, or the certificate is of a newer format.
        CheckFailedError: if the certificate is missing or damaged beyond reading.
    """
    recover(path)
    if not path.is_dir():
        raise CheckpointError(f"expected a folder written by `surgeon strip`, but {str(path)!r} is none: name one")
    certificate = read_certificate(path)
    clean = CleanFiles(path, certificate, canonical_digest(certificate))
    try:
        # a prefix in the file is the model's own: these are the keys of a state dict
        return dataclasses.replace(clean, tensors=open_checkpoint(path / WEIGHTS_FILE).in_file)
    except CheckpointError as error:
        return dataclasses.replace(clean, damage=str(error))


def read_certificate(folder: Path) -> dict[str, Any]:
    """Return what ``certificate.json`` of a clean folder holds.

    Raises:
        CheckpointError: if it is of a newer format.
        CheckFailedError: if it is missing or damaged beyond reading.
    """
    import msgspec

    path = folder / CERTIFICATE_FILE
    if not path.is_file():
        raise CheckFailedError(
            f"expected {CERTIFICATE_FILE} in {str(folder)!r}, but it is missing: nothing can be verified, strip again"
        )
    try:
        data: dict[str, Any] = read_json(path)
    except PlanError as error:
        raise CheckFailedError(f"{str(path)!r} is damaged ({error.__cause__ or error}): strip again") from error
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"expected a certificate of format version {FORMAT_VERSION} or older, got {version} in {str(path)!r}: "
            "update equisurgeon to read it"
        )
    try:
        settings = msgspec.convert(data, _Certificate)["details"].get("measurement")
        if settings is not None and min(settings["elements"], settings["batches"]) < 1:
            raise msgspec.ValidationError("a measurement of nothing - at `$.details.measurement`")
    except msgspec.ValidationError as error:
        raise CheckFailedError(
            f"expected a certificate as `surgeon strip` writes it in {str(path)!r}, but a part of it is missing or "
            f"malformed ({error}): it is damaged or was made by an older version, strip again"
        ) from error
    return data


def check_weights(folder: Path) -> dict[str, Any]:
    """Return the certificate of a clean folder whose weights have to be those it was written for.

    Raises:
        CheckpointError: if they are not, or one of them cannot be read.
    """
    try:
        certificate = read_certificate(folder)
    except CheckFailedError as error:
        raise CheckpointError(str(error)) from error
    if certificate["files"].get(WEIGHTS_FILE) != open_checkpoint(folder / WEIGHTS_FILE).sha256:
        raise CheckpointError(
            f"expected {WEIGHTS_FILE} in {str(folder)!r} as its certificate says, but its sha256 is another: "
            "strip again"
        )
    return certificate


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file in a folder, by relative name with slashes.

    Files that hold them, and the model card, to which anybody may add, are left out.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: sha256_of_file(folder / name) for name in names if name not in (*HASHING, CARD_FILE)}


def forms_of(tensors: Mapping[str, Tensor]) -> dict[str, list[Any]]:
    """Return name to ``[shape, dtype]`` as JSON-compatible data, for tensors of any shape and dtype."""
    return {name: [list(form.shape), str(form.dtype)] for name, form in forms(tensors).items()}


def same_form(original: list[Any], result: list[Any]) -> bool:
    """Tell whether a result may have this shape and dtype.

    An integer keeps the model's dtype whatever the original file has (a whole state dict cast to half, say).
    """
    (shape, *dtypes), (other, dtype) = original, result
    floating = all("float" in each for each in (*dtypes, dtype))
    return shape == other and ([dtype] == dtypes or not floating)


def canonical_digest(data: Mapping[str, Any]) -> str:
    """Return the SHA-256 of JSON data in canonical form, its entry ``sha256`` left out, as 64 hex digits.

    Canonical: keys sorted, no white space, UTF-8, non-finite numbers as null.
    """
    content = json_compatible({key: value for key, value in data.items() if key != "sha256"})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def sealed(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data with its own :func:`canonical_digest` as last entry, ``sha256``."""
    content = {key: value for key, value in data.items() if key != "sha256"}
    return {**content, "sha256": canonical_digest(content)}
