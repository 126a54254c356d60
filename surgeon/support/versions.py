"""What results depend on: versions of packages, and the machine."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from surgeon.support.installation import version_of

DECIDING = ("cuequivariance", "cuequivariance-torch", "openequivariance")
"""Packages that change what some libraries build where they are merely installed."""

SETTINGS = ("optimize_einsums", "specialized_code")
"""Defaults of e3nn that decide which operations its layers run; each layer keeps those that it was built with."""


def versions(model: nn.Module | None = None) -> dict[str, str]:
    """Return the versions that results depend on: of Python, of our own libraries, and of those that define a model.

    Args:
        model: the packages in which the classes of its modules are defined count, too, and the settings under which
            its layers were built.
    """
    own = ("equisurgeon", "torch", "e3nn", "accelerate", "safetensors", *DECIDING)
    packages = package_versions([*own, *_packages_of(model)])
    return {"python": platform.python_version(), **packages, **_settings_of(model)}


def differing_versions(made: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Say which of :func:`versions` are others here than those recorded; empty if none is.

    A package that decides what libraries build counts also where it is installed here alone.
    """
    names = [*made, *(name for name in DECIDING if name in here and name not in made)]
    others = [name for name in names if here.get(name) != made.get(name)]
    return ", ".join(f"{name} {made.get(name, 'none')}, here {here.get(name, 'none')}" for name in others)


def package_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {package: _installed(package, tuple(sys.path)) for package in packages}
    return {package: version for package, version in found.items() if version is not None}


@lru_cache
def _installed(package: str, path: tuple[str, ...]) -> str | None:
    """Return the version of a package on ``sys.path``, once: each command asks dozens of times."""
    return version_of(package)


def _settings_of(model: nn.Module | None) -> dict[str, str]:
    """Return the settings that took effect in e3nn's layers; several words where layers differ."""
    found: dict[str, set[str]] = {}
    for module in () if model is None else model.modules():
        for name in SETTINGS:
            if f"_{name}" in vars(module):
                found.setdefault(f"e3nn's {name}", set()).add(str(vars(module)[f"_{name}"]))
    return {name: " and ".join(sorted(values)) for name, values in found.items()}


def _packages_of(model: nn.Module | None) -> list[str]:
    """Return the installed packages to which the classes of a model's modules belong."""
    modules = () if model is None else model.modules()
    roots = {type(module).__module__.partition(".")[0] for module in modules} - {"torch", "builtins"}
    return sorted(owners(frozenset(roots))) if roots else []


@lru_cache
def owners(roots: frozenset[str]) -> frozenset[str]:
    """Return the installed packages with one of these top-level names, as ``packages_distributions`` finds them.

    That makes a path of each file of each package, which takes ten times as long as looking for a few names.
    """
    from importlib.metadata import distributions

    module = re.compile(rf"^(?:{'|'.join(map(re.escape, sorted(roots)))})(?:/.*)?\.py(?:,|$)", re.MULTILINE)
    found = set()
    for package in distributions():
        declared = set((package.read_text("top_level.txt") or "").split())
        listed = package.read_text("RECORD")
        if not declared and listed is None:
            listed = "\n".join(map(str, package.files or ()))
        if declared & roots if declared else module.search(listed or ""):
            found.add(package.metadata["Name"])
    return frozenset(found)


def machine() -> dict[str, Any]:
    """Return what times depend on: processor architecture, cores, torch's threads, accelerator."""
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": accelerator,
    }


def provenance() -> dict[str, Any]:
    """Return what a record says of its making: versions, the machine, and the command."""
    return {"versions": versions(), "machine": machine(), "command": [Path(sys.argv[0]).name, *sys.argv[1:]]}
