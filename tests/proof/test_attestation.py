"""What others read of a clean folder: the in-toto statement, and the digest and signature of OpenSSF Model Signing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from surgeon.files.clean import hashes_of, read_clean
from surgeon.proof.attestation import compare_attestation, manifest_digest, signing_words
from surgeon.proof.clean_folder import write_clean
from tests.proof.test_clean_folder import GOOD, beside, saved


def written(tmp_path: Path) -> Path:
    original, net = saved(tmp_path, "net.ckpt", nn.Linear(2, 3)), nn.Linear(2, 3)
    write_clean(tmp_path / "out", net, GOOD, original, extras=beside(net, original))
    return tmp_path / "out"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_statement_has_the_fields_of_the_published_formats(tmp_path: Path) -> None:
    folder = written(tmp_path)
    statement = json.loads((folder / "certificate.intoto.json").read_text())
    assert statement.keys() == {"_type", "subject", "predicateType", "predicate"}
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    files = {name: sha256(folder / name) for name in ("model.safetensors", "net.ckpt", "config.json", "CERTIFICATE.md")}
    assert {each["name"]: each["digest"] for each in statement["subject"]} == {
        name: {"sha256": digest} for name, digest in files.items()
    }
    configured = {"certificate.json": sha256(folder / "certificate.json"), "net.ckpt": sha256(tmp_path / "in/net.ckpt")}
    assert statement["predicate"] == {
        "result": "PASSED",
        "configuration": [{"name": name, "digest": {"sha256": digest}} for name, digest in configured.items()],
        "passedTests": ["shapes"],
        "failedTests": [],
    }


def test_another_statement_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path)
    certificate, path = read_clean(folder).certificate, folder / "certificate.intoto.json"
    assert compare_attestation(certificate, folder).outcome == "holds"
    path.write_text(path.read_text().replace('"PASSED"', '"WARNED"'))
    (sentence,) = compare_attestation(certificate, folder).differences
    assert sentence == ("certificate.intoto.json, predicate: result is WARNED, from the certificate follows PASSED")
    path.write_text("[" * 50)
    assert "expected JSON in" in compare_attestation(certificate, folder).differences[0]
    path.unlink()
    assert compare_attestation(certificate, folder).outcome == "not checked"


def test_the_digest_is_that_of_model_signing_and_a_signature_no_foreign_file(tmp_path: Path) -> None:
    """The order is that of paths by their parts: of ``a/b`` and ``a.b`` the first one is ``a/b``."""
    folder = written(tmp_path)
    for name in ("a/b", "a.b", ".gitattributes", ".git/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    ordered = ("CERTIFICATE.md", "a/b", "a.b", "certificate.intoto.json", "certificate.json", "config.json")
    digests = [sha256(folder / name) for name in (*ordered, "model.safetensors", "net.ckpt")]
    expected = hashlib.sha256(bytes.fromhex("".join(digests))).hexdigest()
    assert manifest_digest(folder) == expected
    assert signing_words(folder).startswith("it is not signed: `model_signing sign key ")
    assert signing_words(folder).endswith(f"sha256:{expected}")
    before = hashes_of(folder)
    (folder / "model.sig").write_text("{}")
    assert manifest_digest(folder) == expected
    assert signing_words(folder).startswith("model.sig is there and was not checked: `model_signing verify key ")
    assert hashes_of(folder) == before
