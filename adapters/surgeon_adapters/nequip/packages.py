"""Packages of NequIP (``nequip-package``): archives of torch.package with code, weights and settings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.package.importer import sys_importer
from torch.package.package_exporter import PackageExporter
from torch.package.package_importer import PackageImporter

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import CheckpointError, TrustError
from surgeon.files.checkpoint import Checkpoint
from surgeon.opening.loading import load_into
from surgeon.support.imports import one_line
from surgeon.support.modes import default_dtype
from surgeon_adapters.nequip.models import build, import_nequip, nequip_state, statement_of
from surgeon_adapters.recognition import record_in

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest relative deviation of the rebuilt model's energies and forces that counts as rounding."""

METADATA, CONFIG, EXAMPLE = "package_metadata.txt", "config.yaml", "example_data.pkl"
OUTPUTS = ("total_energy", "forces")


def is_package(path: Path) -> bool:
    """Tell whether a file is an archive that ``nequip-package`` wrote."""
    return record_in(path, f"model/{METADATA}") is not None


def settings_of(path: Path) -> tuple[dict[str, Any], str]:
    """Return the settings of a package's model, which are text, and the version of nequip that wrote it.

    Raises:
        CheckpointError: if it has none.
    """
    import yaml

    try:
        config, metadata = (yaml.safe_load(record_in(path, f"model/{name}") or b"") for name in (CONFIG, METADATA))
        return dict(config["training_module"]["model"]), str(metadata["versions"]["nequip"])
    except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"expected the settings of the model as text in the package {str(path)!r}, found none ({one_line(error)}): "
            "package the model again with a current nequip"
        ) from error


@contextmanager
def _trusted(path: Path, version: str) -> Iterator[Any]:
    """Give the importer of a package; what its code raises becomes one sentence."""
    package = import_nequip("model.saved_models.package")
    try:
        with nequip_state(), package._cpu_deserialize_always(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield PackageImporter(path)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"could not open the package {str(path)!r} of nequip {version} ({one_line(error)[:300]}): "
            "it is damaged, or needs another version of nequip or torch"
        ) from error


def _models(importer: Any, kind: str) -> nn.ModuleDict:
    models: nn.ModuleDict = importer.load_pickle("model", f"{kind}_model.pkl", map_location="cpu")
    return models


def open_package(path: Path, trust_pickle: bool, settings: Mapping[str, Any], version: str) -> Checkpoint:
    """Open a package, and check that its settings build a model that computes the same.

    Raises:
        TrustError: if it is not trusted: a package is code.
        CheckpointError: if it cannot be opened, has several models, or its settings do not give its model.
    """
    if not trust_pickle:
        raise TrustError(
            f"{str(path)!r} is a package of nequip, which can only be opened by running the code inside it: for files "
            "that you trust, and only for them, allow it with `--trust-pickle`"
        )
    with _trusted(path, version) as importer:
        models, data = _models(importer, "eager"), importer.load_pickle("model", EXAMPLE)
        if len(models) != 1:
            raise CheckpointError(
                f"expected one model in the package {str(path)!r}, found {len(models)} ({', '.join(models)}): "
                "package one by itself"
            )
        module = next(iter(models.values())).eval()
        tensors = {key: value.detach() for key, value in module.state_dict().items()}
        _require_same(path, version, module, build(settings, version), data)
    metadata = statement_of(settings, version)
    return Checkpoint(path, tensors, "module", metadata=metadata, needs_trust=True, library="nequip")


def _require_same(path: Path, version: str, module: nn.Module, rebuilt: nn.Module, data: Mapping[str, Tensor]) -> None:
    """Compare energies and forces on the package's own example: it holds code that need not be that installed here."""
    load_into(rebuilt, module.state_dict(), str(path))
    found = []
    for model in (module, rebuilt.eval()):
        outputs = model({key: value.clone() for key, value in data.items()})
        found.append([outputs[name].detach() for name in OUTPUTS if name in outputs])
    deviation = relative_difference(found[1], found[0])
    if not deviation <= AGREEMENT[next(module.parameters()).dtype]:
        raise CheckpointError(
            f"expected the model of {str(path)!r} (nequip {version}), rebuilt from its settings, to compute the same, "
            f"but it deviates by {deviation:.1e}: install the nequip that packaged it"
        )


def write_package(original: Path, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a package once more with other weights in each of its models; code and everything else is kept."""
    import yaml

    scripts = import_nequip("scripts._package_utils")
    with _trusted(original, settings_of(original)[1]) as importer, default_dtype(torch.float64):
        metadata = importer.load_text("model", METADATA)
        importers = (importer, sys_importer)
        with open(path, "wb") as handle, PackageExporter(handle, importer=importers) as exporter:
            exporter.mock([f"{name}.**" for name in scripts._MOCK_MODULES])
            exporter.extern([f"{name}.**" for name in scripts._EXTERNAL_MODULES])
            exporter.intern([f"{name}.**" for name in scripts._INTERNAL_MODULES])
            exporter.save_pickle("model", EXAMPLE, importer.load_pickle("model", EXAMPLE))
            for name in (CONFIG, METADATA):
                exporter.save_text("model", name, importer.load_text("model", name))
            for kind in yaml.safe_load(metadata)["available_models"]:
                models = _models(importer, kind)
                load_into(next(iter(models.values())), tensors, f"the new weights ({kind})")
                exporter.save_pickle("model", f"{kind}_model.pkl", models)
