"""What others read of a clean folder: an in-toto statement of its checks, and its digest in OpenSSF Model Signing."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from surgeon.errors import PlanError
from surgeon.files.clean import ATTESTATION_FILE, CARD_FILE, CERTIFICATE_FILE, SIGNATURE_FILE
from surgeon.files.content import json_compatible, read_json, sha256_of_file
from surgeon.proof.records import Field
from surgeon.proof.verdict import Finding, compared, unchecked

STATEMENT_TYPE, PREDICATE_TYPE = "https://in-toto.io/Statement/v1", "https://in-toto.io/attestation/test-result/v0.1"
UNSIGNED = (".git", ".gitattributes", ".github", ".gitignore")
"""What model_signing leaves out unless it is told otherwise."""

_DIFFERENCE = Field(f"{ATTESTATION_FILE}{{where}}: {{what}} is {{found}}, from the certificate follows {{recorded}}")


def attested(certificate: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return an in-toto Statement v1 about the files in a clean folder, whose predicate is a Test Result v0.1.

    Its subject are the files whose hashes the certificate holds. The tests are the checks of the certificate, and their
    configuration are the certificate itself, which holds how much was measured, and the original checkpoint.

    Args:
        certificate: what ``certificate.json`` holds.
        folder: with ``certificate.json`` in it.
    """
    original, checks = certificate["details"]["original"], certificate["checks"]
    configuration = {CERTIFICATE_FILE: sha256_of_file(folder / CERTIFICATE_FILE), original["file"]: original["sha256"]}
    predicate = {
        "result": "PASSED" if certificate["passed"] else "FAILED",
        "configuration": [_resource(name, digest) for name, digest in configuration.items()],
        "passedTests": [name for name, holds in checks.items() if holds],
        "failedTests": [name for name, holds in checks.items() if not holds],
    }
    subject = [_resource(name, digest) for name, digest in certificate["files"].items()]
    return {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE, "predicate": predicate}


def _resource(name: str, digest: str) -> dict[str, Any]:
    """Return in-toto's description of a file."""
    return {"name": name, "digest": {"sha256": digest}}


def compare_attestation(certificate: Mapping[str, Any], folder: Path) -> Finding:
    """Compare the statement in a clean folder with what follows from its certificate."""
    name, path = f"{ATTESTATION_FILE} says what certificate.json says", folder / ATTESTATION_FILE
    if not path.is_file():
        return unchecked(name, "it is missing")
    try:
        found = read_json(path)
    except PlanError as error:
        return compared(name, [str(error)])
    expected = json_compatible(attested(certificate, folder))
    return compared(name, list(_DIFFERENCE.differing(expected, found)))


def signing_words(folder: Path) -> str:
    """Say whether a clean folder is signed, which commands sign it and check that, and its digest in model_signing.

    What stands before the first colon is enough for a glance. ``README.md`` is left out, since anybody may add to it
    and an upload writes it anew.
    """
    place, signature = (shlex.quote(str(path)) for path in (folder, folder / SIGNATURE_FILE))
    ignored = f"--ignore-paths {shlex.quote(str(folder / CARD_FILE))}"
    links = " --allow_symlinks" if any(path.is_symlink() for path in folder.rglob("*")) else ""
    check = f"`model_signing verify key {place} --signature {signature} --public_key key.pub{links}`"
    sign = f"`model_signing sign key {place} --signature {signature} --private_key key.priv {ignored}{links}`"
    if (folder / SIGNATURE_FILE).is_file():
        signed = f"{SIGNATURE_FILE} is there and was not checked: {check} does that"
    else:
        signed = f"it is not signed: {sign} does that, and {check} checks it"
    digest = manifest_digest(folder)
    return f"{signed}; OpenSSF Model Signing knows these files, {CARD_FILE} left out, as sha256:{digest}"


def manifest_digest(folder: Path) -> str:
    """Return the SHA-256 of the digests of all files, in the order of their paths, without signature and model card."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    paths = sorted(PurePosixPath(name) for name in names if name not in (SIGNATURE_FILE, CARD_FILE))
    signed = [path for path in paths if path.parts[0] not in UNSIGNED]
    return hashlib.sha256(b"".join(bytes.fromhex(sha256_of_file(folder / path)) for path in signed)).hexdigest()
