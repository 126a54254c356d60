"""Files of NequIP: checkpoints of its training (``.ckpt``) and packages (``.nequip.zip``)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import CheckpointError, TrustError
from surgeon.export.container import save_content
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.content import sha256_of_file
from surgeon.files.reading import read_torch
from surgeon.support.modes import default_dtype
from surgeon_adapters.nequip import packages as nequip_packages
from surgeon_adapters.nequip.models import (
    TARGET,
    build,
    import_nequip,
    installed_version,
    nequip_state,
    require_known,
    statement_of,
)
from surgeon_adapters.recognition import record_in

NETWORK = "model."
AVERAGE = "ema.ema_weight_"
TRAINERS = tuple(f"nequip.train.{name}LightningModule" for name in ("NequIP", "EMA", "ConFIG", "EMAConFIG"))
"""Training modules whose checkpoints hold the weights as they are used, or averages of them beside."""
FROM_PACKAGE, FROM_CHECKPOINT = "nequip.model.ModelFromPackage", "nequip.model.ModelFromCheckpoint"
ADVICE = "give the checkpoint of a training with one model"


@dataclass(frozen=True)
class _Content:
    """What a checkpoint of nequip's training says.

    Attributes:
        state: the state dict of its Lightning module.
        name: of the only model in it.
    """

    state: Mapping[str, Any]
    settings: Mapping[str, Any]
    version: str
    name: str

    @property
    def prefix(self) -> str:
        return f"{NETWORK}{self.name}."

    @property
    def raw(self) -> dict[str, Tensor]:
        """The weights that training goes on from."""
        return {k.removeprefix(self.prefix): v.detach() for k, v in self.state.items() if k.startswith(self.prefix)}

    def averaged(self) -> tuple[str, ...]:
        """Return the names of the parameters of which there are averages, in their order there."""
        count = sum(key.startswith(AVERAGE) for key in self.state)
        if not count:
            return ()
        names = tuple(name for name, _ in build(self.settings, self.version).named_parameters())
        if len(names) != count:
            raise CheckpointError(
                f"expected the averages of {len(names)} parameters in a checkpoint of nequip {self.version}, got "
                f"{count}: open it with that version ({installed_version()} is installed)"
            )
        return names


def open_file(path: Path, trust_pickle: bool) -> Checkpoint | None:
    """Open a file of nequip; None for others.

    Raises:
        TrustError: if it holds code, which is not trusted.
        CheckpointError: if it is of another version, or has none or several models.
    """
    if nequip_packages.is_package(path):
        settings, version = nequip_packages.settings_of(path)
        return nequip_packages.open_package(path, trust_pickle, _resolved(settings, path), version)
    if not _is_checkpoint(path):
        return None
    content, needs_trust = read_torch(path, trust_pickle)
    found = _read(path, content)
    tensors, average = found.raw, found.averaged()
    for number, name in enumerate(average):  # what nequip itself takes for everything but going on with the training
        tensors[name] = found.state[f"{AVERAGE}{number}"].detach()
    _require_keys(path, found, tensors)
    return Checkpoint(
        path,
        tensors,
        "nested",
        extras={key: value for key, value in content.items() if key != "state_dict"},
        metadata=statement_of(found.settings, found.version),
        needs_trust=needs_trust,
        content=lambda: content,
        library="nequip",
    )


def write_file(checkpoint: Checkpoint, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a file of nequip once more with other weights; averages, if there are any, become equal to these."""
    if checkpoint.container == "module":  # which is opened again, with the code in it
        if sha256_of_file(checkpoint.path) != checkpoint.sha256:
            raise CheckpointError(f"{str(checkpoint.path)!r} has changed since it was opened: give the command again")
        nequip_packages.write_package(checkpoint.path, tensors, path)
        return
    content = checkpoint.content()
    found = _read(checkpoint.path, content)
    state = copy.copy(content["state_dict"])
    for key, tensor in tensors.items():
        state[found.prefix + key] = tensor.detach().cpu().clone()
    for number, name in enumerate(found.averaged()):
        state[f"{AVERAGE}{number}"] = tensors[name].detach().cpu().clone()
    save_content({**content, "state_dict": state}, path)


def _is_checkpoint(path: Path) -> bool:
    """Look for what nequip's Lightning modules keep, without reading any tensor."""
    text = record_in(path, "data.pkl") or b""
    return all(word in text for word in (b"hyper_parameters", b"info_dict", b"training_module", b"nequip"))


def _read(path: Path, content: Any) -> _Content:
    try:
        hyper, state = content["hyper_parameters"], content["state_dict"]
        settings, versions = hyper["model"], hyper["info_dict"]["versions"]
        names = sorted({key.split(".")[1] for key in state if key.startswith(NETWORK)})
        version, trainer = str(versions["nequip"]), hyper["info_dict"]["training_module"][TARGET]
        settings = _resolved(settings, path)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"expected a checkpoint of nequip's training with settings and versions, but {str(path)!r} has no "
            f"{error}: nequip {installed_version()} writes them, write it again with a current version"
        ) from error
    if trainer not in TRAINERS:
        raise CheckpointError(
            f"expected a checkpoint of one of nequip's training modules {', '.join(TRAINERS)}, got one of {trainer!r} "
            f"in {str(path)!r}, which may compute the weights that count when it is opened: package it with "
            "`nequip-package`, and open the package"
        )
    if len(names) != 1:
        raise CheckpointError(
            f"expected one model in {str(path)!r}, found {len(names)} ({', '.join(names) or 'none'}): {ADVICE}"
        )
    return _Content(state, settings, version, names[0])


def _resolved(settings: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """Follow settings that name another file, from which the training started, to those of the architecture."""
    target = settings.get(TARGET)
    names = {FROM_CHECKPOINT: "checkpoint_path", FROM_PACKAGE: "package_path"}
    if target not in names:
        return settings
    source = path.parent / str(settings[names[target]])
    if not source.is_file():
        raise CheckpointError(
            f"{str(path)!r} was trained from {str(source)!r}, which holds the settings of its model and is not there: "
            "put it there, or give `--model module:function`"
        )
    if target == FROM_PACKAGE:
        return _resolved(nequip_packages.settings_of(source)[0], source)
    return _read(source, read_torch(source, False)[0]).settings


def _require_keys(path: Path, found: _Content, tensors: Mapping[str, Tensor]) -> None:
    """Say at once if a file of another version has other keys than the installed one gives its settings."""
    if found.version == installed_version():
        return
    expected = build(found.settings, found.version).state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys()) or sorted(
        key for key in expected if expected[key].shape != tensors[key].shape
    )
    if wrong:
        raise CheckpointError(
            f"{str(path)!r} was written by nequip {found.version}, and with the installed {installed_version()} its "
            f"settings give other keys or shapes ({len(wrong)}, first {wrong[0]}): install that version"
        )


def open_by_nequip(path: Path) -> nn.Module | None:
    """Open a file through the loader of nequip's own commands.

    None for other files, and for those that hold objects, or whose training module, loss or metrics are of another
    package: to open them would call what they name.
    """
    if not nequip_packages.is_package(path) and not _names_only_nequips(path):
        return None
    loader = import_nequip("model.saved_models.load_utils")
    with nequip_state(), default_dtype(torch.float64), torch.random.fork_rng(devices=[]):
        module: nn.Module = loader.load_saved_model(str(path), compile_mode="eager")
    return module.eval()


def _names_only_nequips(path: Path) -> bool:
    """Tell whether everything that opening a checkpoint calls is public in ``nequip.train`` and ``nequip.data``."""
    if not _is_checkpoint(path):
        return False
    try:
        hyper = read_torch(path, False)[0]["hyper_parameters"]
        require_known(hyper["model"])
    except (TrustError, CheckpointError):
        return False
    public = {f"nequip.{part}.{name}" for part in ("train", "data") for name in import_nequip(part).__all__}
    parts = [hyper.get(key) for key in ("loss", "train_metrics", "val_metrics", "test_metrics")]
    return hyper["info_dict"]["training_module"][TARGET] in TRAINERS and public.issuperset(_targets(parts))


def _targets(settings: Any) -> Sequence[Any]:
    if isinstance(settings, Mapping):
        own = [settings[TARGET]] if TARGET in settings else []
        return own + [target for value in settings.values() for target in _targets(value)]
    if isinstance(settings, list | tuple):
        return [target for value in settings for target in _targets(value)]
    return []
