"""Write clean weights: exactly the base's keys, with the certificate beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckFailedError
from surgeon.files.atomic import atomic_folder
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import (
    ATTESTATION_FILE,
    CARD_FILE,
    CERTIFICATE_FILE,
    FORMAT_VERSION,
    STATEMENT_FILE,
    WEIGHTS_FILE,
    WORDS_FILE,
    forms_of,
    hashes_of,
    sealed,
)
from surgeon.files.content import json_compatible, write_json, write_text
from surgeon.files.tensors import write_tensors
from surgeon.opening.allowance import is_registered
from surgeon.opening.loading import named_as, with_computed
from surgeon.plan import Certificate
from surgeon.proof.architecture import classes_of
from surgeon.proof.attestation import attested
from surgeon.proof.usage import clean_card
from surgeon.proof.words import certificate_text
from surgeon.support.attributes import tensor_sha256


def write_clean(
    folder: str | Path,
    model: nn.Module,
    certificate: Certificate,
    original: Checkpoint,
    *,
    extras: Mapping[str, Callable[[Path], Any]] | None = None,
    statement: Mapping[str, Any] | None = None,
    force: bool = False,
) -> list[str]:
    """Write a folder with the stripped model, completely or not at all.

    Args:
        certificate: its certificate; one that has not ``passed`` is refused.
        original: the checkpoint that was relaxed; its metadata, and the ``config.json`` beside it, are kept.
        extras: more formats; each function writes into the folder it is given and returns JSON-compatible data, which
            the certificate keeps in its details under the function's name.
        statement: factory and arguments that build the architecture; kept beside the weights if an installed package
            registers the factory, so that they can be opened without saying more.

    Returns:
        The names of the files written.

    Raises:
        CheckFailedError: if the certificate does not hold; nothing is written.
        WriteError: if the system refuses; nothing half-written is left.
    """
    if not certificate.passed:
        failed = ", ".join(name for name, holds in certificate.checks.items() if not holds)
        shown = "; ".join(certificate.differences[:3])
        raise CheckFailedError(f"the stripped model is not certified ({failed}): {shown}; nothing was written")
    tensors = with_computed(model, original)
    config = original.path.parent / "config.json"
    with atomic_folder(folder, force=force) as temporary:
        write_tensors(temporary / WEIGHTS_FILE, tensors, original.metadata or {"format": "pt"})
        if statement is not None and is_registered(statement.get("factory", "")):
            write_json(temporary / STATEMENT_FILE, dict(statement))
        written = {name: write(temporary) for name, write in (extras or {}).items()}
        if config.is_file():
            (temporary / "config.json").write_bytes(config.read_bytes())
        completed = _completed(certificate, original, {**written, "tensors": len(tensors)})
        _write_certificate(temporary, model, tensors, completed, original)
        return sorted(path.name for path in temporary.iterdir())


def _completed(certificate: Certificate, original: Checkpoint, extras: Mapping[str, Any]) -> Certificate:
    source = {"file": original.path.name, "sha256": original.sha256, "entry": original.entry}
    if original.origin is not None:
        source |= {"repo": original.origin.repo, "revision": original.origin.revision, "file": original.origin.file}
    return dataclasses.replace(certificate, details={**certificate.details, "original": source, **extras})


def _write_certificate(
    folder: Path, model: nn.Module, tensors: Mapping[str, Tensor], certificate: Certificate, original: Checkpoint
) -> None:
    """Write the certificate as JSON, in words and for in-toto, with the hashes of all files that are there already."""
    data = {
        "format_version": FORMAT_VERSION,
        **certificate.to_data(),
        "architecture": {
            "original": forms_of(named_as(original, tensors)),
            "result": {name: [*form, tensor_sha256(tensors[name])] for name, form in forms_of(tensors).items()},
            "classes": classes_of(model),
        },
        "files": hashes_of(folder),
    }
    compatible = json_compatible(data)
    write_text(folder / CARD_FILE, clean_card(compatible))
    write_text(folder / WORDS_FILE, certificate_text(compatible))
    data = sealed({**compatible, "files": hashes_of(folder)})
    write_json(folder / CERTIFICATE_FILE, data)
    write_json(folder / ATTESTATION_FILE, attested(data, folder))
