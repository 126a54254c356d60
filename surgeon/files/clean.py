"""The clean folder: stripped weights with their certificate, as files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from surgeon.errors import CheckpointError, PlanError
from surgeon.files.content import read_json
from surgeon.files.reading import open_checkpoint

STATEMENT_SUFFIX = ".model.json"


WEIGHTS_FILE = "model.safetensors"


CERTIFICATE_FILE, WORDS_FILE, CARD_FILE = "certificate.json", "CERTIFICATE.md", "README.md"


STATEMENT_FILE = f"{WEIGHTS_FILE}{STATEMENT_SUFFIX}"


CLEAN = (WEIGHTS_FILE, STATEMENT_FILE, CERTIFICATE_FILE, WORDS_FILE, "config.json", "model.onnx", "model.onnx.data")


def read_clean(folder: Path) -> dict[str, Any]:
    """Return the certificate of a clean folder, whose weights have to be those it was written for.

    Raises:
        CheckpointError: if they are not, or the weights cannot be read.
    """
    try:
        certificate = read_json(folder / CERTIFICATE_FILE)
    except PlanError as error:
        path = str(folder / CERTIFICATE_FILE)
        raise CheckpointError(f"{path!r} is damaged ({error.__cause__ or error}): strip again") from error
    recorded = certificate.get("files", {}).get(WEIGHTS_FILE) if isinstance(certificate, Mapping) else None
    if recorded != open_checkpoint(folder / WEIGHTS_FILE).sha256:
        raise CheckpointError(
            f"expected {WEIGHTS_FILE} in {str(folder)!r} as its certificate says, but its sha256 is another: "
            "strip again"
        )
    return {"certificate": certificate}
