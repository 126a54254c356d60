"""What is refused of a stranger's files, beyond what every reader of this package refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import torch
from torch import Tensor

from surgeon.checkpoint.relaxed import RelaxedConfig, RelaxedFiles
from surgeon.checkpoint.stored import streamed
from surgeon.errors import CheckpointError, SurgeonError, TrustError


def check_config(config: RelaxedConfig, where: str, trust_remote_code: bool = False) -> None:
    """Refuse a configuration that names code, or files outside its folder.

    Args:
        config: as read.
        where: what the message calls the source.
        trust_remote_code: whether the user allows code that is named inside files.

    Raises:
        TrustError: if the group is code.
        CheckpointError: if the base's file is not a plain name.
    """
    for group in (config.group, config.plan.group):
        if ":" in group and not trust_remote_code:
            raise TrustError(
                f"{where} names {group!r} as its group, which is code: import it with `--trust-remote-code` and a "
                "commit after the @ if you trust it"
            )
    if config.group != config.plan.group:
        raise CheckpointError(
            f"expected one group in {where}, got {config.group!r}, and {config.plan.group!r} in its plan: do not use it"
        )
    name = str(config.base["file"])
    if config.base["repo"] is None and (PurePosixPath(name).name != name or "\\" in name or ":" in name):
        raise CheckpointError(
            f"expected the plain name of the base's file in {where}, got {name!r}, which is a path: do not use it"
        )


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity."""
    return [name for name, value in streamed(tensors) if not _is_finite(value)]


def _is_finite(value: Tensor) -> bool:
    if value.numel() == 0 or not (value.is_floating_point() or value.is_complex()):
        return True
    try:
        smallest, largest = torch.aminmax(value.detach())  # in one pass and without a second tensor; NaN wins
    except (RuntimeError, NotImplementedError):
        return bool(torch.isfinite(value.to(torch.complex64 if value.is_complex() else torch.float32)).all())
    return bool(torch.isfinite(smallest) and torch.isfinite(largest))


def refuse_nonfinite(files: RelaxedFiles, where: str, base: Callable[[], Mapping[str, Tensor]]) -> None:
    """Refuse weights that are not finite where those of the base are.

    Args:
        files: the relaxed model.
        where: what the message calls it.
        base: opens the base's tensors; it is asked only if something is not finite.

    Raises:
        CheckpointError: if there are such weights, or if there may be because the base cannot be had.
    """
    found = nonfinite(files.branches)
    suspect = nonfinite(files.base)
    if suspect:
        try:
            original: Mapping[str, Tensor] = base()
        except SurgeonError:
            original = {}
        found += [name for name in suspect if name not in original or _is_finite(original[name])]
    if found:
        raise CheckpointError(
            f"expected finite weights in {where}, but {found[0]} holds NaN or infinity, which that of the base does "
            f"not ({len(found)} such tensors): the model is broken, do not use it"
        )
