"""MACE potentials as plain data: the settings from which each is built, and building it.

The layers inside are e3nn's, whose adapter annotates them.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from surgeon.errors import CheckpointError
from surgeon.support.e3nn_compat import import_e3nn, unscript_harmonics
from surgeon.support.imports import one_line, unchanged_environment
from surgeon_adapters.mace.checks import version as installed_version

FACTORY = "surgeon_adapters.mace.models:build"
KINDS = ("MACE", "ScaleShiftMACE")
"""Classes with energies and forces that can be taken apart into settings."""

_OF_THE_SCALE = ("atomic_inter_scale", "atomic_inter_shift")


def import_mace(name: str = "modules") -> ModuleType:
    """Return ``mace.<name>``, without what importing it prints and changes in the environment of the process."""
    import_e3nn()
    with unchanged_environment(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        unscript_harmonics()
        return importlib.import_module(f"mace.{name}")


def build(kind: str, dtype: str, settings: Mapping[str, Any], version: str = "") -> nn.Module:
    """Build a MACE architecture from plain data, with weights of its own.

    The layers are e3nn's eager ones, which compute the same as scripted ones and have the same keys.

    Args:
        kind: name of the class.
        dtype: "float32" or "float64"; under the default dtype float64 the model is float64 in any case.
        settings: the constructor's arguments, as :meth:`MaceAdapter.describe` encodes them.
        version: of mace that described it, for messages.

    Raises:
        CheckpointError: if the installed mace has no such class, or refuses the settings.
    """
    mace = import_mace()
    if kind not in KINDS:
        raise CheckpointError(f"expected a kind of MACE among {', '.join(KINDS)}, got {kind!r}: correct its settings")
    import e3nn

    before, default = e3nn.get_optimization_defaults(), torch.get_default_dtype()
    e3nn.set_optimization_defaults(**{**before, "jit_script_fx": False})
    torch.set_default_dtype(torch.promote_types(getattr(torch, dtype), default))
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            module: nn.Module = getattr(mace, kind)(**{key: decoded(value) for key, value in settings.items()})
            return module
    except Exception as error:
        raise CheckpointError(
            f"mace {installed_version()} refuses the settings of a {kind} that mace {version or '(unknown)'} wrote "
            f"({one_line(error)}): install that version"
        ) from error
    finally:
        torch.set_default_dtype(default)
        e3nn.set_optimization_defaults(**before)


def arguments_of(module: nn.Module, kind: str) -> dict[str, Any]:
    """Read the settings off a potential by MACE's own function, and what that leaves out."""
    scripts = import_mace("tools.scripts_utils")
    try:
        found = scripts.extract_config_mace_model(module if kind == "ScaleShiftMACE" else _as_scaled(module))
        settings = {key: _encoded(key, value) for key, value in found.items() if not _left_out(kind, key)}
        if _keeps_last_irreps(module):
            settings["keep_last_layer_irreps"] = True
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"mace {installed_version()} cannot read the settings off this {kind} ({one_line(error)}): "
            "install the version of mace-torch that wrote it"
        ) from error
    dtype = next(module.parameters()).dtype
    return {
        "kind": kind,
        "dtype": str(dtype).removeprefix("torch."),
        "settings": settings,
        "version": installed_version(),
    }


def _as_scaled(module: nn.Module) -> Any:
    """Show a plain MACE to the library's function, which takes scaled ones only, as one of them."""

    class ScaleShiftMACE:
        scale_shift = SimpleNamespace(scale=torch.ones(()), shift=torch.zeros(()))

        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

    return ScaleShiftMACE()


def _left_out(kind: str, key: str) -> bool:
    return kind == "MACE" and key in _OF_THE_SCALE


def _keeps_last_irreps(module: Any) -> bool:
    """Tell whether the last layer has the irreps of the others: MACE's function does not look."""
    first, last = (str(module.products[index].linear.irreps_out) for index in (0, -1))
    return len(module.products) > 1 and first == last and last != str(import_e3nn().Irreps(first)[0])


def _encoded(key: str, value: Any) -> Any:
    """Return a setting as JSON-compatible data; arrays, classes, functions and irreps as one-entry objects."""
    mace, o3 = import_mace(), import_e3nn()
    if isinstance(value, o3.Irreps):
        return {"irreps": str(value)}
    if key == "cueq_config":
        return None
    if key == "gate":
        named = {function: name for name, function in mace.gate_dict.items()}
        return {"gate": _looked_up(named, value, key)}
    if isinstance(value, type):
        classes = {**mace.interaction_classes, **mace.readout_classes}
        return {"class": _looked_up({each: name for name, each in classes.items()}, value, key)}
    if hasattr(value, "tolist"):
        return {"array": value.tolist()}
    return value


def _looked_up(names: Mapping[Any, str], value: Any, key: str) -> str:
    if value not in names:
        raise CheckpointError(
            f"expected the setting {key} of the MACE potential to be one of mace {installed_version()}, got "
            f"{value!r}, a class or function of somebody's own: give `--model module:function` that builds the model"
        )
    return names[value]


def decoded(value: Any) -> Any:
    """Return a setting from what :func:`_encoded` made of it."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return value
    (what, name), mace = next(iter(value.items())), import_mace()
    match what:
        case "irreps":
            return import_e3nn().Irreps(name)
        case "array":
            return importlib.import_module("numpy").asarray(name)
        case "gate":
            return mace.gate_dict[name]
        case "class":
            return {**mace.interaction_classes, **mace.readout_classes}[name]
        case _:
            return value
