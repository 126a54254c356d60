"""Checkpoint files of SevenNet (``.pth``), in the order of weights that the installed version has."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckpointError
from surgeon.export.container import save_content
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.reading import read_torch
from surgeon.support.imports import one_line
from surgeon_adapters.recognition import record_in
from surgeon_adapters.sevennet.models import build_from, import_sevenn, installed_version, statement_of

WEIGHTS, CONFIG = "model_state_dict", "config"
ACCELERATED = {"use_flash_tp": "FlashTP", "use_oeq": "OpenEquivariance"}


def open_file(path: Path, trust_pickle: bool) -> Checkpoint | None:
    """Open a checkpoint of sevenn's training; None for other files.

    Older versions had other names, another order of weights within some of them, and other signs. The tensors are what
    sevenn's own loader makes of them, and so are the settings.

    Raises:
        TrustError: if it holds objects (arrays of numpy among them), and is not trusted.
        CheckpointError: if it cannot be converted, or is for layers of another library.
    """
    if not _is_checkpoint(path):
        return None
    content, needs_trust = read_torch(path, trust_pickle)
    config = _current(path, content)
    model = build_from(config)
    try:
        tensors = _converted(content[WEIGHTS], config, model)
        model.load_state_dict(tensors)
    except Exception as error:
        raise CheckpointError(
            f"sevenn {installed_version()} cannot load the weights in {str(path)!r}, which sevenn {config['version']} "
            f"wrote ({one_line(error)[:300]}): if that is another version, install it, else save the file again"
        ) from error
    return Checkpoint(
        path,
        tensors,
        "nested",
        extras={key: value for key, value in content.items() if key != WEIGHTS},
        metadata=statement_of(config),
        needs_trust=needs_trust,
        content=lambda: content,
        library="sevennet",
    )


def write_file(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write it once more with other weights, as the installed version would write them, which its loader leaves alone.

    Optimiser and schedule stay as they were: they belong to the weights before.
    """
    content = checkpoint.content()
    config = {**_current(checkpoint.path, content), "version": installed_version()}
    kept = {"use_flash_tp": False, "use_oeq": False}
    new = {key: value.detach().cpu().clone() for key, value in tensors.items()}
    save_content({**content, WEIGHTS: new, CONFIG: {**config, **kept}}, path)


def open_by_sevenn(path: Path) -> nn.Module | None:
    """Open a checkpoint as sevenn's own calculator does; None for other files."""
    if not _is_checkpoint(path):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module: nn.Module = import_sevenn("checkpoint").SevenNetCheckpoint(path).build_model()
    return module.eval()


def _is_checkpoint(path: Path) -> bool:
    """Look for what sevenn keeps, without reading any tensor."""
    text = record_in(path, "data.pkl") or b""
    return all(word in text for word in (b"model_state_dict", b"_number_of_species", b"self_connection_type"))


def _current(path: Path, content: Any) -> dict[str, Any]:
    """Return the configuration as the installed version reads it; ``version`` stays that of the file."""
    try:
        config = copy.deepcopy(content[CONFIG])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = dict(import_sevenn("checkpoint")._config_cp_routine(config))
    except Exception as error:
        raise CheckpointError(
            f"sevenn {installed_version()} cannot read the settings in {str(path)!r} ({one_line(error)[:300]}): "
            "save the file again with a current version"
        ) from error
    other = [name for key, name in ACCELERATED.items() if config.get(key)]
    other += ["cuEquivariance"] if (config.get("cuequivariance_config") or {}).get("use") else []
    if other:
        raise CheckpointError(
            f"expected a SevenNet whose layers are e3nn's in {str(path)!r}, got one for {other[0]}: "
            "train or save it without that accelerator"
        )
    return config


def _converted(state: Mapping[str, Tensor], config: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Let sevenn rename, reorder and turn old weights; the values given are not changed."""
    given = {key: value.clone() for key, value in state.items()}
    made = import_sevenn("scripts.backward_compatibility").patch_state_dict_if_old(given, dict(config), model)
    return {key: made[key].detach() for key in model.state_dict()} if made.keys() == model.state_dict().keys() else made
