"""Write clean weights: exactly the base's keys, with the certificate beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from surgeon.checkpoint import Checkpoint, write_container
from surgeon.errors import CheckFailedError
from surgeon.files import atomic_folder, write_json, write_tensors, write_text
from surgeon.types import Certificate

_CARD = """# Clean weights

`model.safetensors` holds the weights of the original architecture, with the original's keys, shapes and dtypes: load
them with `load_state_dict(..., strict=True)` into the original class; equisurgeon is not needed. `certificate.json`
records the comparison with the original and everything that was measured.
"""


def write_clean(
    folder: str | Path,
    model: nn.Module,
    certificate: Certificate,
    original: Checkpoint,
    *,
    container: bool = False,
    extras: Mapping[str, Callable[[Path], Any]] | None = None,
    force: bool = False,
) -> list[str]:
    """Write a folder with the stripped model, completely or not at all.

    Args:
        folder: where to write.
        model: the stripped model.
        certificate: its certificate; one that is not ``identical`` is refused.
        original: the checkpoint that was relaxed; its metadata, and the ``config.json`` beside it, are kept.
        container: also write the weights into a copy of the original file.
        extras: more formats; each function writes into the folder it is given and returns JSON-compatible data, which
            the certificate keeps in its details under the function's name.
        force: replace an existing folder.

    Returns:
        The names of the files written.

    Raises:
        CheckFailedError: if the certificate does not hold; nothing is written.
        WriteError: if the system refuses; nothing half-written is left.
    """
    if not certificate.identical:
        failed = ", ".join(name for name, holds in certificate.checks.items() if not holds)
        shown = "; ".join(certificate.differences[:3])
        raise CheckFailedError(
            f"the stripped model is not the original architecture ({failed}): {shown}; nothing was written"
        )
    tensors = model.state_dict()
    config = original.path.parent / "config.json"
    with atomic_folder(folder, force=force) as temporary:
        write_tensors(temporary / "model.safetensors", tensors, _metadata(original.metadata))
        written = {name: write(temporary) for name, write in (extras or {}).items()}
        certificate = dataclasses.replace(certificate, details={**certificate.details, **written})
        write_json(temporary / "certificate.json", certificate.to_data())
        write_text(temporary / "README.md", _CARD)
        if config.is_file():
            (temporary / "config.json").write_bytes(config.read_bytes())
        if container:
            unprefixed = {
                key.removeprefix(original.prefix) if key not in original.tensors else key: value
                for key, value in tensors.items()
            }
            name = original.path.name
            taken = (temporary / name).exists()  # an original that is called model.safetensors itself
            write_container(original, unprefixed, temporary / (f"original-{name}" if taken else name))
        return sorted(path.name for path in temporary.iterdir())


def _metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    return metadata or {"format": "pt"}
