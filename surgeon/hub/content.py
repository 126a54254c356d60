"""Which files of a folder belong on the Hub, and what they say there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from surgeon.errors import CheckpointError, UsageError
from surgeon.files.clean import CARD_FILE as CARD
from surgeon.files.clean import CERTIFICATE_FILE, CLEAN, check_weights
from surgeon.files.content import json_text
from surgeon.files.relaxed import (
    BASE_FILE,
    CONFIG_FILE,
    RECORDS,
    RELAXED,
    STATE,
    RelaxedConfig,
    is_relaxed_folder,
    read_relaxed,
)
from surgeon.files.seals import SEAL_FILE, recover
from surgeon.support.plain import parse_json
from surgeon.training.runs import read_record

Kind = Literal["relaxed", "clean"]


@dataclass(frozen=True)
class Content:
    """A folder as it goes to the Hub, without its card.

    Attributes:
        kind: what the folder holds.
        files: name to a file, or to bytes that are not in the folder as they stand.
        left_out: names of the folder's other files.
        records: what the card is written from: ``config``, ``certificate``, ``history``, ``settings``,
            ``best_epoch``; those there are.
        card: the text of the folder's own README.md, or an empty string.
    """

    kind: Kind
    files: Mapping[str, Path | bytes]
    left_out: tuple[str, ...]
    records: Mapping[str, Any]
    card: str = ""


def content_of(folder: str | Path, with_training_state: bool = False) -> Content:
    """Read a folder that ``surgeon`` wrote and choose what belongs on the Hub.

    Args:
        folder: a relaxed folder, a run folder or a clean folder.
        with_training_state: also what a resume needs: optimiser, random states, counters.

    Raises:
        CheckpointError: if it is no such folder, damaged, or links to files outside.
        UsageError: if a training state is wanted and there is none.
    """
    folder = Path(folder)
    recover(folder)
    kind = _kind(folder)
    if with_training_state and not all((folder / name).is_file() for name in STATE):
        raise UsageError(
            f"expected a run folder with a training state, but {str(folder)!r} has none: leave out "
            "--with-training-state, or push the folder that `surgeon finetune` wrote"
        )
    wanted = [*(RELAXED if kind == "relaxed" else CLEAN), *(STATE if with_training_state else ())]
    files: dict[str, Path | bytes] = {name: folder / name for name in wanted if (folder / name).is_file()}
    _check_links(folder, files)
    records: Mapping[str, Any] = (
        _relaxed_records(folder) if kind == "relaxed" else {"certificate": check_weights(folder)}
    )
    if kind == "relaxed":
        files[CONFIG_FILE] = json_text(without_paths(records["config"]).to_data()).encode()
    present = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    card = folder / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return Content(
        kind,
        files,
        tuple(name for name in present if name not in files and name not in (CARD, SEAL_FILE)),
        records,
        text,
    )


def _kind(folder: Path) -> Kind:
    if is_relaxed_folder(folder):
        return "relaxed"
    if (folder / CERTIFICATE_FILE).is_file() and (folder / BASE_FILE).is_file():
        return "clean"
    raise CheckpointError(
        f"expected a folder written by `surgeon relax`, `finetune`, `strip` or `export`, got {str(folder)!r}: name one"
    )


def _check_links(folder: Path, files: Mapping[str, Path | bytes]) -> None:
    root = folder.resolve()
    for name in files:
        if not (folder / name).resolve().is_relative_to(root):
            raise CheckpointError(
                f"expected files inside {str(folder)!r}, but {name} is a link to somewhere else: it is not uploaded, "
                "put the file itself there"
            )


def without_paths(config: RelaxedConfig) -> RelaxedConfig:
    """Return the configuration without paths of this machine: they mean nothing elsewhere and are nobody's business."""
    base = config.base.copy()
    if base["repo"] is None:
        base["file"] = PurePath(base["file"]).name
    return dataclasses.replace(config, base=base, task=None)


def _relaxed_records(folder: Path) -> dict[str, Any]:
    records: dict[str, Any] = {"config": read_relaxed(folder).config}
    state, history = folder / STATE[0], folder / RECORDS[0]
    if state.is_file():
        record = read_record(folder)
        records |= {"settings": record.settings.to_data(), "best_epoch": record.state.best_epoch}
    if history.is_file():
        lines = history.read_text(encoding="utf-8").splitlines()
        records["history"] = [parse_json(line) for line in lines if line.strip()]
    return records
