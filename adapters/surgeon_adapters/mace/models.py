"""MACE potentials as plain data: the settings from which each is built, and building it.

The layers inside are e3nn's, whose adapter annotates them.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn

from surgeon.errors import CheckpointError
from surgeon.support.e3nn_compat import e3nn_defaults, import_above_e3nn, import_e3nn
from surgeon.support.imports import one_line
from surgeon.support.modes import default_dtype
from surgeon_adapters.mace.checks import differing_weights, kept_constants
from surgeon_adapters.mace.checks import version as installed_version

FACTORY = "surgeon_adapters.mace.models:build"
KINDS = ("MACE", "ScaleShiftMACE")
"""Classes with energies and forces that can be taken apart into settings."""

COUPLING = ".symmetric_contractions."
"""In the names of weights whose number depends on the coupling coefficients."""

PARTS = ("atomic_energies_fn", "atomic_numbers", "interactions", "products", "r_max", "readouts")
"""What a potential keeps in itself."""

_OF_THE_SCALE = ("atomic_inter_scale", "atomic_inter_shift")


def import_mace(name: str = "modules") -> ModuleType:
    """Return ``mace.<name>``."""
    return import_above_e3nn(f"mace.{name}")


def is_potential(module: nn.Module) -> bool:
    """Tell whether a module is a MACE with energies and forces, by its name and what it holds.

    Its class is another in an archive of torch.package, and in a package that carries a copy of mace.
    """
    return type(module).__name__ in KINDS and all(hasattr(module, part) for part in PARTS)


def build(
    kind: str,
    dtype: str,
    settings: Mapping[str, Any],
    version: str = "",
    constants: Mapping[str, str | None] | None = None,
    frozen: Sequence[str] = (),
) -> nn.Module:
    """Build a MACE architecture from plain data, with weights of its own.

    The layers are e3nn's eager ones, which compute the same as scripted ones and have the same keys.

    Args:
        dtype: "float32" or "float64"; under the default dtype float64 the model is float64 in any case.
        settings: the constructor's arguments, as :meth:`MaceAdapter.describe` encodes them.
        version: of mace that described it, for messages.
        constants: buffers that the file of another version keeps in another dtype, or, if None, not at all.
        frozen: parameters that are not trained, if it is not all of them.

    Raises:
        CheckpointError: if the installed mace has no such class, or refuses the settings; or if these need
            cuequivariance, which is not installed.
    """
    mace = import_mace()
    if kind not in KINDS:
        raise CheckpointError(f"expected a kind of MACE among {', '.join(KINDS)}, got {kind!r}: correct its settings")
    if settings.get("use_reduced_cg") and not import_mace("modules.wrapper_ops").CUET_AVAILABLE:
        raise CheckpointError(f"this {kind} has the coupling coefficients of cuequivariance: install that package")
    wanted = torch.promote_types(getattr(torch, dtype), torch.get_default_dtype())
    try:
        with e3nn_defaults(jit_script_fx=False), default_dtype(wanted), torch.random.fork_rng(devices=[]):
            module: nn.Module = getattr(mace, kind)(**{key: decoded(value) for key, value in settings.items()})
            complete(module, constants or {}, frozen)
            return module
    except Exception as error:
        other = version not in ("", installed_version())
        raise CheckpointError(
            f"mace {installed_version()} refuses the settings of a {kind}{f' that mace {version} wrote' * other} "
            f"({one_line(error)}): {'install that version' if other else 'correct them'}"
        ) from error


def complete(module: nn.Module, constants: Mapping[str, str | None], frozen: Sequence[str]) -> None:
    """Let a model keep its constants as a file does, and freeze parameters, in place: see :func:`build`."""
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
    for key, dtype in constants.items():
        owner, _, name = key.rpartition(".")
        holder = module.get_submodule(owner)
        if dtype is None:
            holder._non_persistent_buffers_set.add(name)
            continue
        target, buffer = getattr(torch, dtype), holder.get_buffer(name)
        if target.is_floating_point:
            target = torch.promote_types(target, torch.get_default_dtype())
        setattr(holder, name, buffer.to(target))


def arguments_of(module: nn.Module, kind: str) -> tuple[dict[str, Any], nn.Module]:
    """Return the arguments of :func:`build` for a potential, with its settings as they took effect, and what it builds.

    MACE's function reads off what was wished: reduced coupling coefficients, for example, which are had only where
    cuequivariance was installed. What the weights do not agree with is corrected.

    Raises:
        CheckpointError: if the settings cannot be read, or give other weights.
    """
    settings = _settings_of(module, kind)
    wished, settings["use_reduced_cg"] = bool(settings["use_reduced_cg"]), False
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    arguments: dict[str, Any] = {"kind": kind, "dtype": dtype, "settings": settings, "version": installed_version()}
    rebuilt = build(**arguments)
    differing = differing_weights(module, rebuilt)
    if wished and differing and all(COUPLING in name for name in differing):
        settings["use_reduced_cg"] = True
        rebuilt = build(**arguments)
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    frozen = [name for name in trained if any(trained.values()) and not trained[name]]
    constants = kept_constants(module, rebuilt)
    complete(rebuilt, constants, frozen)
    further = {"constants": constants, "frozen": frozen}
    return {**arguments, **{key: value for key, value in further.items() if value}}, rebuilt


def _settings_of(module: nn.Module, kind: str) -> dict[str, Any]:
    """Read the settings off a potential by MACE's own function, and what that leaves out."""
    scripts = import_mace("tools.scripts_utils")
    readable: Any = module  # numpy has no bfloat16
    if next(module.parameters()).dtype == torch.bfloat16:
        readable = copy.deepcopy(module).float()
    try:
        found = scripts.extract_config_mace_model(readable if kind == "ScaleShiftMACE" else _as_scaled(readable))
        left_out = _OF_THE_SCALE if kind == "MACE" else ()
        settings = {key: _encoded(key, value) for key, value in found.items() if key not in left_out}
        if _keeps_last_irreps(module):
            settings["keep_last_layer_irreps"] = True
        orders = [len(product.symmetric_contractions.contractions[0].weights) + 1 for product in readable.products]
        settings["correlation"] = orders if len(set(orders)) > 1 else orders[0]
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"mace {installed_version()} cannot read its settings ({one_line(error)})") from error
    return settings


def _as_scaled(module: nn.Module) -> Any:
    """Show a plain MACE to the library's function, which takes scaled ones only, as one of them."""

    class ScaleShiftMACE:
        scale_shift = SimpleNamespace(scale=torch.ones(()), shift=torch.zeros(()))

        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

    return ScaleShiftMACE()


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
    copies = [name for each, name in names.items() if _is_copy(value, each)]
    found = [names[value]] if value in names else copies
    if len(found) != 1:
        raise CheckpointError(
            f"expected the setting {key} of the MACE potential to be one of mace {installed_version()}, got "
            f"{value!r}, a class or function of somebody's own: give `--model module:function` that builds the model"
        )
    return found[0]


def _is_copy(value: Any, own: Any) -> bool:
    """Tell whether a class is one of mace, out of a copy of it; that it computes the same is seen by running it."""
    both = isinstance(value, type) and isinstance(own, type)
    return both and f"{value.__module__}.{value.__qualname__}".endswith(f".{own.__module__}.{own.__qualname__}")


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
