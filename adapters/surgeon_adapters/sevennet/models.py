"""SevenNet potentials as plain data: the settings from which each is built, and building it.

The layers inside are those of e3nn, whose adapter annotates them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version as version_of
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError
from surgeon.support.e3nn_compat import e3nn_defaults, import_above_e3nn
from surgeon.support.imports import one_line

FACTORY = "surgeon_adapters.sevennet.models:build"
PAIRS = "pairs"
"""A mapping whose keys are no strings, in JSON: ``{"pairs": [[key, value], ...]}``."""

_FURTHER = (
    *("version", "shift", "scale", "_type_map", "_number_of_species", "chemical_species", "_model_type"),
    *("_chemical_species_by_atomic_number", "use_species_wise_shift_scale", "use_modality", "_modal_map"),
    *("_number_of_modalities", "use_modal_wise_shift", "use_modal_wise_scale", "dtype"),
)
"""What the architecture depends on, besides the settings of the model."""


def import_sevenn(name: str) -> ModuleType:
    """Return ``sevenn.<name>``."""
    return import_above_e3nn(f"sevenn.{name}")


def installed_version() -> str:
    """Return the version of the installed sevenn."""
    return version_of("sevenn")


def build(settings: Mapping[str, Any]) -> nn.Module:
    """Build a SevenNet architecture from plain data, with weights of its own.

    The layers are e3nn's eager ones, which compute the same as scripted ones and have the same keys.

    Args:
        settings: as :func:`statement_of` encodes them.

    Raises:
        CheckpointError: if the installed sevenn refuses the settings.
    """
    return build_from(decoded(settings))


def build_from(config: Mapping[str, Any]) -> nn.Module:
    """Build a SevenNet architecture from the configuration of a checkpoint.

    Raises:
        CheckpointError: if the installed sevenn refuses it.
    """
    made = import_sevenn("model_build")
    try:
        with e3nn_defaults(jit_script_fx=False, jit_mode="eager"), torch.random.fork_rng(devices=[]):
            module: nn.Module = made.build_E3_equivariant_model(dict(config))
            return module
    except Exception as error:
        written = config.get("version", "(unknown)")
        advice = "correct them" if written == installed_version() else "install that version"
        raise CheckpointError(
            f"sevenn {installed_version()} refuses the settings of a model that sevenn {written} wrote "
            f"({one_line(error)[:300]}): {advice}"
        ) from error


def statement_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return a configuration as the metadata from which a checkpoint's model is built."""
    known = {*import_sevenn("_const").DEFAULT_E3_EQUIVARIANT_MODEL_CONFIG, *_FURTHER}
    settings = {key: _encoded(value) for key, value in config.items() if key in known}
    text = json.dumps({"factory": FACTORY, "args": {"settings": settings}})
    return {"format": "pt", "surgeon.model": text}


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _encoded(each) for key, each in value.items()}
        return {PAIRS: [[_encoded(key), _encoded(each)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_encoded(each) for each in value]
    return value.tolist() if isinstance(value, Tensor) or hasattr(value, "tolist") else value


def decoded(value: Any) -> Any:
    """Return settings from what :func:`statement_of` made of them."""
    if isinstance(value, Mapping):
        if value.keys() == {PAIRS}:
            return {key: decoded(each) for key, each in value[PAIRS]}
        return {key: decoded(each) for key, each in value.items()}
    return [decoded(each) for each in value] if isinstance(value, list) else value
