"""Where the checkpoint that was relaxed is now, and what a relaxed model from the Hub must share with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from surgeon.errors import CheckpointError, SurgeonError
from surgeon.files.address import HubPath, is_hub_path
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.relaxed import RelaxedConfig
from surgeon.files.tensors import finite, forms, renamed
from surgeon.opening.loading import named_as
from surgeon.opening.options import OpenOptions
from surgeon.opening.remote.fetch import open_anywhere


def original_source(base: Mapping[str, Any], options: OpenOptions, origin: HubPath | None) -> str | HubPath:
    """Return where the checkpoint that was relaxed is: as the user says, on the Hub, or where it was.

    Args:
        base: of the relaxed folder's configuration.
        origin: where the relaxed folder was downloaded from; what it says of local files holds elsewhere.

    Raises:
        CheckpointError: if only another machine knows.
    """
    if options.original is not None:
        return options.original
    if base["repo"] is not None:
        return HubPath(base["repo"], base["revision"], base["file"])
    if origin is not None:
        raise CheckpointError(
            f"{str(origin)!r} was made from {base['file']!r}, which is not on the Hub: give it as `--original FILE`"
        )
    return str(base["file"])


def is_there(source: str | HubPath) -> bool:
    """Tell whether a file exists; of one on the Hub, only opening it will tell."""
    return isinstance(source, HubPath) or is_hub_path(source) or Path(source).is_file()


def open_original(
    base: Mapping[str, Any],
    options: OpenOptions,
    origin: HubPath | None,
    known: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Open the checkpoint that was relaxed.

    Args:
        base: of the relaxed folder's configuration.
        origin: where the relaxed folder was downloaded from.
        known: what of its tensors is in the model, by names there: another file is refused before it is hashed.

    Raises:
        CheckpointError: if it is not where it was, or has changed since.
    """
    source = original_source(base, options, origin)
    if not is_there(source):
        raise CheckpointError(
            f"expected the original checkpoint at {str(source)!r}, but it is not there: give `--original FILE`"
        )
    checkpoint = open_anywhere(source, trust_pickle=options.trust_pickle, entry=base["entry"])
    stored, wanted = forms(named_as(checkpoint, known or {})), forms(known or {})
    other = next((name for name in wanted if name not in stored or stored[name].shape != wanted[name].shape), None)
    if other is not None:
        raise CheckpointError(
            f"expected the original checkpoint, but {other!r} in {str(source)!r} is missing or of another shape than "
            "in the model: it is another file, give the right one as `--original FILE`"
        )
    if checkpoint.sha256 != base["sha256"]:
        raise CheckpointError(
            f"expected the original checkpoint with sha256 {str(base['sha256'])[:12]}, but {str(source)!r} has "
            f"{checkpoint.sha256[:12]}: it has changed since, give the right one as `--original FILE`"
        )
    return checkpoint


def refuse_nonfinite(
    base: Mapping[str, Tensor],
    branches: Mapping[str, Tensor],
    config: RelaxedConfig,
    origin: HubPath,
    options: OpenOptions | None = None,
) -> None:
    """Refuse a relaxed model from the Hub with weights that are not finite where those of its base are.

    Args:
        base: its base weights.
        branches: weights of its branches.
        config: its configuration, which says where the base is; that is opened only if something is not finite.
        origin: where it was downloaded from.

    Raises:
        CheckpointError: if there are such weights, or if there may be because the base cannot be had.
    """
    found, suspect = _nonfinite(branches), _nonfinite(base)
    known: Mapping[str, Tensor] = {}
    if suspect:
        without_pickle = dataclasses.replace(options or OpenOptions(), trust_pickle=False)
        with suppress(SurgeonError):
            checkpoint = open_original(config.base, without_pickle, origin)
            names = {prefix + key: key for key in checkpoint.tensors for prefix in ("", checkpoint.prefix)}
            known = renamed(checkpoint.tensors, names)
        found += [name for name in suspect if name not in known or finite(known[name]).all()]
    if found:
        raise CheckpointError(
            f"expected finite weights in {origin}, but {found[0]} holds NaN or infinity, which that of the base does "
            f"not ({len(found)} such tensors): the model is broken, do not use it"
        )


def _nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, value in tensors.items() if not finite(value).all()]
