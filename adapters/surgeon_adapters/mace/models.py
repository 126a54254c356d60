"""Adapter for MACE potentials: from a pickled ``.model`` to plain data and back, and a task on extended-XYZ files.

The layers inside are e3nn's, whose adapter annotates them.
"""

from __future__ import annotations

import functools
import importlib
import io
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, TaskError
from surgeon.files.reading import scripts_on_the_cpu
from surgeon.plan import Task
from surgeon.registry import BaseAdapter
from surgeon.support.e3nn_compat import import_e3nn, unscript_harmonics
from surgeon.support.imports import call_with, one_line, unchanged_environment
from surgeon_adapters.mace.checks import further_inputs, recognised, require_no_other_layers, require_same
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


class MaceAdapter(BaseAdapter):
    """MACE from its file to its file."""

    name = "mace"
    groups = ("SO3", "O3", "SE3", "E3")

    def describe(self, module: nn.Module) -> Mapping[str, Any] | None:
        """Return the settings of a MACE potential, having checked that a rebuilt one computes the same.

        Other classes of the library, and potentials with inputs besides atoms, are left as the modules that they are.

        Raises:
            CheckpointError: if it has other layers than e3nn's, was written by another version, or cannot be rebuilt.
        """
        kind = type(module).__name__
        if not type(module).__module__.startswith("mace.") or kind not in KINDS or further_inputs(module):
            return None
        require_no_other_layers(module)
        arguments = _arguments(module, kind)
        require_same(module, build(**arguments))
        return {"factory": FACTORY, "args": arguments}

    def recognise(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Say which potential the weights of a training checkpoint belong to, and which file is needed."""
        return recognised(tensors)

    def reopen(self, path: Path) -> nn.Module | None:
        """Open a ``.model`` as MACE's own calculator does; None for other files."""
        if path.suffix != ".model":
            return None
        import_mace()
        with scripts_on_the_cpu():
            module = torch.load(path, map_location="cpu", weights_only=False)
        return module if type(module).__module__.startswith("mace.") else None

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on an extended-XYZ file."""
        from surgeon_adapters.mace.task import MaceTask

        task: Task = call_with(functools.partial(MaceTask, data), arguments, "the task of mace", TaskError)
        return task


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


def _arguments(module: nn.Module, kind: str) -> dict[str, Any]:
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


adapter = MaceAdapter()
