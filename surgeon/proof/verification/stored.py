"""What follows from the files alone: hashes, and names, shapes, dtypes and bytes of tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from surgeon.errors import CheckpointError
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import CARD_FILE
from surgeon.files.reading import open_checkpoint
from surgeon.files.tensors import forms
from surgeon.plan import grade_of
from surgeon.proof.certificate import FINITE_CHECK, SHOWN, canonical_digest, forms_of, named_as
from surgeon.proof.clean import hashes_of
from surgeon.proof.verification.reading import Form, Recorded
from surgeon.proof.verification.result import Finding, compared, unchecked
from surgeon.support.attributes import tensor_sha256

WEIGHTS = "model.safetensors"
GIVE_ORIGINAL = "give --against"
SAME_FORM = "keys, shapes and dtypes as in the original"


def check_certificate(recorded: Recorded) -> list[Finding]:
    """Compare the certificate with its own digest, and its verdict with its checks."""
    found, said = canonical_digest(recorded.data), recorded.data.get("sha256")
    wrong = [] if found == said else [f"certificate.json was changed: its sha256 is {found}, and it says {said}"]
    failed = [name for name, holds in recorded.checks.items() if not holds]
    sentences = [f"the certificate itself says that the check {name!r} does not hold" for name in failed]
    sentences += [f"the certificate itself lists the difference: {text}" for text in recorded.differences]
    grade = grade_of(recorded.checks)
    if recorded.grade != grade:
        said, follows = (each or "different" for each in (recorded.grade, grade))
        sentences.append(f"the certificate says {said!r}, and from its checks follows {follows!r}")
    elif grade is None:
        sentences.append("the certificate itself says that the architecture is not the original's")
    return [compared("certificate's own sha256", wrong), compared("recorded verdict and checks", sentences)]


def check_files(folder: Path, recorded: Recorded) -> tuple[Finding, list[str]]:
    """Compare every file with its recorded hash; also return the names of files that the certificate does not list."""
    present, sentences = hashes_of(folder), []
    for name, digest in recorded.files.items():
        if name == CARD_FILE:  # older certificates list it, too
            continue
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            sentences.append(f"the certificate lists {name!r}, which is no file of the folder")
        elif name not in present:
            sentences.append(f"the file {name} is missing")
        elif present[name] != digest:
            sentences.append(f"the file {name} was changed: its sha256 is {present[name]}, recorded is {digest}")
    if WEIGHTS not in recorded.files:
        sentences.append(f"the certificate does not list {WEIGHTS}")
    return compared("files", sentences, f"sha256 of {len(recorded.files)} files"), sorted(
        present.keys() - recorded.files
    )


def check_source(original: Checkpoint, recorded: Recorded) -> Finding:
    """Compare the original checkpoint's bytes with the recorded hash."""
    expected, sentences = recorded.original["sha256"], []
    if original.sha256 != expected:
        sentences.append(
            f"{str(original.path)!r} is not the checkpoint that was relaxed: its sha256 is {original.sha256}, "
            f"recorded is {expected} ({recorded.original['file']})"
        )
    return compared("original checkpoint", sentences, "sha256 of the file")


def read_result(folder: Path) -> tuple[Mapping[str, Tensor], Finding]:
    """Open the weights; the tensors are empty if that fails."""
    try:
        checkpoint = open_checkpoint(folder / WEIGHTS)
    except CheckpointError as error:
        return {}, compared("weights", [f"{WEIGHTS} does not open: {error}"])
    # a prefix in the file is the model's own: these are the keys of a state dict
    return checkpoint.in_file, compared("weights", [])


def check_tensors(
    original: Mapping[str, Tensor] | None, result: Mapping[str, Tensor], recorded: Recorded
) -> list[Finding]:
    """Compare the tensors of both files, or of the result alone, with what is recorded of them."""
    changed = [
        f"the values of {key} are not those that were certified (sha256 of its bytes)"
        for key, digest in recorded.hashes.items()
        if key in result and tensor_sha256(result[key]) != digest
    ]
    name = "recorded forms of the original"
    source = unchecked(name, GIVE_ORIGINAL)
    if original is not None:
        source = compared(name, _differing(recorded.original_forms, _forms(original), "the original"))
    return [
        compared("recorded forms of the result", _differing(recorded.forms, _forms(result), "the result")),
        source,
        compared("tensors", _shortened(changed, "tensors"), f"sha256 of {len(recorded.hashes)} tensors"),
    ]


def check_same_form(original: Checkpoint, result: Mapping[str, Tensor]) -> Finding:
    """Compare keys, shapes and dtypes of the two files; the first differing keys are named."""
    tensors = named_as(original, result)
    missing, added = [key for key in tensors if key not in result], [key for key in result if key not in tensors]
    left, right = _forms(tensors), _forms(result)
    originals, results = forms(tensors), forms(result)
    changed = [
        f"{key} has shape {right[key][0]} and dtype {right[key][1]}, in the original {left[key][0]} and {left[key][1]}"
        for key in tensors
        if key in result and not _same_form(originals[key], results[key])
    ]
    parts = [f"only the original has {', '.join(missing[:3])}"] if missing else []
    parts += [f"only the result has {', '.join(added[:3])}"] if added else []
    parts += changed[:3]
    if not parts:
        return compared(SAME_FORM, [], f"{len(result)} tensors")
    count = len(missing) + len(added) + len(changed)
    told = f"{str(original.path)!r} and {WEIGHTS} have different architectures, {count} keys: {'; '.join(parts)}"
    return compared(SAME_FORM, [told])


def _same_form(original: Tensor, result: Tensor) -> bool:
    # An integer buffer keeps the model's dtype whatever the original file has (a whole state dict cast to half, say).
    floating = original.is_floating_point() and result.is_floating_point()
    return original.shape == result.shape and (original.dtype == result.dtype or not floating)


def check_finite(original: Mapping[str, Tensor], result: Mapping[str, Tensor]) -> Finding:
    """Name the tensors that hold NaN or infinity, unless the original's does."""
    sentences = [
        f"{key} holds NaN or infinity, unlike in the original"
        for key, tensor in result.items()
        if not torch.isfinite(tensor).all() and (key not in original or bool(torch.isfinite(original[key]).all()))
    ]
    return compared(FINITE_CHECK, _shortened(sentences, "tensors"))


def check_finite_alone(result: Mapping[str, Tensor]) -> Finding:
    """Name the tensors that hold NaN or infinity; only the original tells whether they may."""
    names = [key for key, tensor in result.items() if not torch.isfinite(tensor).all()]
    if not names:
        return compared(FINITE_CHECK, [])
    words = f"{', '.join(names[:SHOWN])} hold NaN or infinity, perhaps as in the original: {GIVE_ORIGINAL}"
    return unchecked(FINITE_CHECK, words)


def _forms(tensors: Mapping[str, Tensor]) -> dict[str, Form]:
    return {key: (tuple(shape), dtype) for key, (shape, dtype) in forms_of(tensors).items()}


def _differing(recorded: Mapping[str, Form], found: Mapping[str, Form], where: str) -> list[str]:
    def words(form: Form | None) -> str:
        return "nothing" if form is None else f"{form[0]} {form[1]}"

    sentences = [
        f"{key} of {where}: recorded is {words(recorded.get(key))}, found {words(found.get(key))}"
        for key in dict.fromkeys([*recorded, *found])
        if recorded.get(key) != found.get(key)
    ]
    return _shortened(sentences, "keys")


def _shortened(sentences: Sequence[str], what: str) -> list[str]:
    rest = len(sentences) - SHOWN
    return [*sentences[:SHOWN], *([f"and {rest} further {what} differ in the same way"] if rest > 0 else [])]
