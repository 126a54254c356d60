"""Adapter for MACE potentials: from a pickled ``.model`` to plain data and back, and a task on extended-XYZ files.

The layers inside are e3nn's, whose adapter annotates them.
"""

from __future__ import annotations

import functools
import importlib
import io
import sys
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.e3nn_compat import import_e3nn
from surgeon.errors import CheckpointError, TaskError
from surgeon.imports import call_with, one_line, unchanged_environment
from surgeon.measure import relative_difference
from surgeon.registry import BaseAdapter
from surgeon.types import Task

FACTORY = "surgeon_adapters.mace_models:build"
KINDS = ("ScaleShiftMACE",)
"""Classes that MACE itself can take apart into settings and that have energies and forces."""

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest relative deviation of the rebuilt model's forces that counts as rounding."""


def import_mace(name: str = "modules") -> ModuleType:
    """Return ``mace.<name>``, without what importing it prints and changes in the environment of the process."""
    import_e3nn()
    with unchanged_environment(), warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        _unscript_harmonics()
        return importlib.import_module(f"mace.{name}")


def _unscript_harmonics() -> None:
    """Let e3nn before 0.5 run the Python of its spherical harmonics, which it scripts when it is imported.

    TorchScript rewrites a function after its first runs, so that the recorded graph of a model, of which a certificate
    keeps the hash, would depend on how often the function has run in this process.
    """
    holder = sys.modules["e3nn.o3._spherical_harmonics"]
    function = getattr(holder, "_spherical_harmonics", None)
    if isinstance(function, torch.jit.ScriptFunction):
        holder._spherical_harmonics = function._torchdynamo_inline  # type: ignore[attr-defined]


class MaceAdapter(BaseAdapter):
    """MACE from its file to its file."""

    name = "mace"
    groups = ("SO3", "O3", "SE3", "E3")

    def describe(self, module: nn.Module) -> Mapping[str, Any] | None:
        """Return the settings of a MACE potential, having checked that a rebuilt one computes the same.

        Raises:
            CheckpointError: if it runs on cuEquivariance, was written by another version, or cannot be rebuilt.
        """
        kind = type(module).__name__
        if not type(module).__module__.startswith("mace.") or kind not in KINDS:
            return None
        if getattr(getattr(module, "cueq_config", None), "enabled", False):
            raise CheckpointError(
                f"expected a {kind} whose layers are e3nn's, got one for cuEquivariance: convert it with "
                "`mace_cueq_to_e3nn` first"
            )
        arguments = _arguments(module, kind)
        _require_same(module, build(**arguments))
        return {"factory": FACTORY, "args": arguments}

    def reopen(self, path: Path) -> nn.Module | None:
        """Open a ``.model`` as MACE's own calculator does; None for other files."""
        if path.suffix != ".model":
            return None
        import_mace()
        module = torch.load(path, map_location="cpu", weights_only=False)
        return module if type(module).__module__.startswith("mace.") else None

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on an extended-XYZ file."""
        from surgeon_adapters.mace_task import MaceTask

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
            module: nn.Module = getattr(mace, kind)(**{key: _decoded(value) for key, value in settings.items()})
            return module
    except Exception as error:
        raise CheckpointError(
            f"mace {_version()} refuses the settings of a {kind} that mace {version or '(unknown)'} wrote "
            f"({one_line(error)}): install that version"
        ) from error
    finally:
        torch.set_default_dtype(default)
        e3nn.set_optimization_defaults(**before)


def _version() -> str:
    return str(getattr(sys.modules.get("mace"), "__version__", "(unknown)"))


def _arguments(module: nn.Module, kind: str) -> dict[str, Any]:
    scripts = import_mace("tools.scripts_utils")
    try:
        settings = {key: _encoded(key, value) for key, value in scripts.extract_config_mace_model(module).items()}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"mace {_version()} cannot read the settings off this {kind} ({one_line(error)}): "
            "install the version of mace-torch that wrote it"
        ) from error
    dtype = next(module.parameters()).dtype
    return {"kind": kind, "dtype": str(dtype).removeprefix("torch."), "settings": settings, "version": _version()}


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
            f"expected the setting {key} of the MACE potential to be one that mace {_version()} has, got {value!r}: "
            "it is a class or function of somebody's own; give `--model module:function` that builds the model"
        )
    return names[value]


def _decoded(value: Any) -> Any:
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


def _require_same(module: nn.Module, rebuilt: nn.Module) -> None:
    """Compare the energies and forces of a pickled model and its rebuilt twin on a few atoms of every element."""
    kind = type(module).__name__
    try:
        rebuilt.load_state_dict(module.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"this {kind} has other keys or shapes than mace {_version()} gives it ({one_line(error)[:300]}): "
            "install the version of mace-torch that wrote it"
        ) from error
    rebuilt.to(next(module.parameters()).dtype)
    try:
        expected = _probe(module)
    except Exception as error:
        raise CheckpointError(
            f"this {kind} does not run with mace {_version()} ({one_line(error)[:300]}): "
            "install the version of mace-torch that wrote it"
        ) from error
    deviation = relative_difference(_probe(rebuilt), expected)
    if not deviation <= AGREEMENT[expected.dtype]:
        raise CheckpointError(
            f"expected this {kind}, rebuilt from its settings, to compute the same forces, but they deviate by "
            f"{deviation:.1e}: it is a variant that mace {_version()} does not describe, give `--model module:function`"
        )


def _probe(module: Any) -> Tensor:
    """Return the forces on four atoms at random, for each element and head in turn."""
    dtype, elements = next(module.parameters()).dtype, len(module.atomic_numbers)
    generator = torch.Generator().manual_seed(0)
    species = torch.arange(max(4, elements)) % elements
    count = len(species)
    unit = 0.3 * float(module.r_max) * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    edges = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
    edges = edges[:, edges[0] != edges[1]]
    zeros = torch.zeros(edges.shape[1], 3, dtype=dtype)
    results = []
    for head in range(len(getattr(module, "heads", ["default"]))):
        batch = {
            "positions": unit.to(dtype).clone(),
            "node_attrs": nn.functional.one_hot(species, elements).to(dtype),
            "edge_index": edges,
            "shifts": zeros,
            "unit_shifts": zeros,
            "cell": torch.zeros(3, 3, dtype=dtype),
            "batch": torch.zeros(count, dtype=torch.long),
            "ptr": torch.tensor([0, count]),
            "head": torch.tensor([head]),
        }
        results.append(module(batch, training=False, compute_force=True)["forces"].detach())
    return torch.stack(results)


adapter = MaceAdapter()
