"""NequIP potentials as plain data: the settings from which each is built, and building it.

The layers inside are e3nn's, whose adapter annotates them.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import nn

from surgeon.errors import CheckpointError
from surgeon.support.e3nn_compat import e3nn_defaults, import_above_e3nn
from surgeon.support.imports import one_line

FACTORY = "surgeon_adapters.nequip.models:build"
TARGET = "_target_"
MODIFY = "nequip.model.modify"
BUILDERS = tuple(f"nequip.model.{name}" for name in ("NequIPGNNModel", "PresetNequIPGNNModel", "FullNequIPGNNModel"))
"""Functions that a file may name to build the network; they are nequip's own, and take plain data."""
PARTS = tuple(f"nequip.nn.pair_potential.{name}" for name in ("ZBL", "LennardJones", "SimpleLennardJones"))
"""Classes that their settings may name."""


def import_nequip(name: str) -> ModuleType:
    """Return ``nequip.<name>``."""
    return import_above_e3nn(f"nequip.{name}")


@contextmanager
def nequip_state() -> Iterator[None]:
    """Give nequip the global state that it builds models in, for as long as the context is open.

    Its own function for this sets seeds, the default dtype and more in the whole process, once and for all: only what
    building depends on is set here, and put back.
    """
    state: Any = import_nequip("utils.global_state")
    initialised, state._GLOBAL_STATE_INITIALIZED = state._GLOBAL_STATE_INITIALIZED, True
    try:
        with e3nn_defaults(jit_mode="eager"):  # it warns of hints for training, and of other versions than a file's
            yield
    finally:
        state._GLOBAL_STATE_INITIALIZED = initialised


def build(settings: Mapping[str, Any], version: str = "") -> nn.Module:
    """Build a NequIP architecture from plain data, with weights of its own.

    Args:
        settings: the ``model`` of a nequip configuration: the name of its builder as ``_target_``, and its arguments.
            Only nequip's own builders are called. Modifiers that only make it faster are left out.
        version: of nequip that wrote them, for messages.

    Returns:
        The network in the dtype that the settings name; under the default dtype float64 in any case in float64.

    Raises:
        CheckpointError: if they name something else, or the installed nequip refuses them.
    """
    require_known(settings)
    models, utils = import_nequip("model"), import_nequip("model.modify_utils")
    chosen = _in_default_dtype(settings)
    name = chosen.pop(TARGET).rpartition(".")[2]
    try:
        with nequip_state(), utils.only_apply_persistent_modifiers(True), models.override_model_compile_mode("eager"):
            module: nn.Module = getattr(models, name)(**chosen)
            return module
    except Exception as error:
        foreign = sorted(_names_of_modifiers(settings) - _modifiers().keys())
        missing = (
            f"what registers the modifier {foreign[0]!r}, which this nequip does not" if foreign else "that version"
        )
        raise CheckpointError(
            f"nequip {installed_version()} refuses the settings of a model that nequip {version or '(unknown)'} wrote "
            f"({one_line(error)[:300]}): install {missing}"
        ) from error


def _modifiers() -> dict[str, bool]:
    """Return whether each modifier of the installed nequip changes what a model computes, by its name."""
    import_nequip("model")
    marks = import_nequip("nn.model_modifier_utils")
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("nequip.nn.")]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    methods = [pair for each in classes for pair in inspect.getmembers(each, inspect.ismethod)]
    return {name: marks.is_persistent_model_modifier(each) for name, each in methods if marks.is_model_modifier(each)}


def _names_of_modifiers(settings: Mapping[str, Any]) -> set[str]:
    if settings.get(TARGET) != MODIFY:
        return set()
    own = settings["modifiers"] if isinstance(settings["modifiers"], list) else []
    return {str(each["modifier"]) for each in own} | _names_of_modifiers(settings["model"])


def as_they_took_effect(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return settings without the modifiers that only make a model faster, by libraries which need not be there.

    Nequip applies them while it trains or compiles, and leaves them out of a model that it builds from a file.
    """
    if settings.get(TARGET) != MODIFY or not isinstance(settings["modifiers"], list):
        return settings
    changing, model = _modifiers(), as_they_took_effect(settings["model"])
    kept = [each for each in settings["modifiers"] if changing.get(each["modifier"], True)]
    return {**settings, "model": model, "modifiers": kept} if kept else model


def installed_version() -> str:
    """Return the version of the installed nequip."""
    return version("nequip")


def require_known(settings: Any) -> None:
    """Check that settings name nothing but nequip's own builders and parts: anything named would be called.

    Raises:
        CheckpointError: naming what is not known.
    """
    if isinstance(settings, Mapping):
        target = settings.get(TARGET)
        if target is not None and target not in (MODIFY, *BUILDERS, *PARTS):
            raise CheckpointError(
                f"expected a model that nequip itself builds ({', '.join(BUILDERS)}), got {str(target)[:200]!r}: it is "
                "a variant of another package; give `--model module:function` that builds it"
            )
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        for value in settings:
            require_known(value)


def _in_default_dtype(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of settings for float64 if that is the default dtype."""
    result = copy.deepcopy(dict(settings))
    inner = result
    while inner.get(TARGET) == MODIFY:
        inner = inner["model"]
    if torch.get_default_dtype() == torch.float64:
        inner["model_dtype"] = "float64"
    return result


def statement_of(settings: Mapping[str, Any], version: str) -> dict[str, str]:
    """Return settings, as they took effect, as the metadata from which a checkpoint's model is built.

    Raises:
        CheckpointError: if they are no plain data.
    """
    try:
        text = json.dumps({"factory": FACTORY, "args": {"settings": as_they_took_effect(settings), "version": version}})
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"expected the settings of a nequip model as plain data, got {one_line(error)}: "
            "give `--model module:function` that builds it"
        ) from error
    return {"format": "pt", "surgeon.model": text}
