"""What is refused of a stranger's files, beyond what every reader of this package refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import torch
from torch import Tensor

from surgeon.errors import CheckpointError, SurgeonError, TrustError
from surgeon.files.relaxed import RelaxedConfig
from surgeon.files.stored import pieces


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
    refuse_code(config, where, trust_remote_code, "`--trust-remote-code` and a commit after the @")
    if config.group != config.plan.group:
        raise CheckpointError(
            f"expected one group in {where}, got {config.group!r}, and {config.plan.group!r} in its plan: do not use it"
        )
    name = str(config.base["file"])
    if config.base["repo"] is None and (PurePosixPath(name).name != name or "\\" in name or ":" in name):
        raise CheckpointError(
            f"expected the plain name of the base's file in {where}, got {name!r}, which is a path: do not use it"
        )


def refuse_code(config: RelaxedConfig, where: str, trust_remote_code: bool, how: str = "`--trust-remote-code`") -> None:
    """Refuse a group that is code, unless the user allows it.

    Args:
        config: as read.
        where: what the message calls the source.
        trust_remote_code: whether the user allows code that is named inside files.
        how: the user can allow it.

    Raises:
        TrustError: if the group is code.
    """
    for group in (config.group, config.plan.group):
        if ":" in group and not trust_remote_code:
            raise TrustError(
                f"{where} names {group!r} as its group, which is code: import it with {how} if you trust it"
            )


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold NaN or infinity."""
    return list(dict.fromkeys(name for name, _, piece in pieces(tensors) if not _is_finite(piece)))


def _is_finite(value: Tensor) -> bool:
    if value.numel() == 0 or not (value.is_floating_point() or value.is_complex()):
        return True
    try:
        smallest, largest = torch.aminmax(value.detach())  # in one pass and without a second tensor; NaN wins
    except (RuntimeError, NotImplementedError):
        return bool(torch.isfinite(value.to(torch.complex64 if value.is_complex() else torch.float32)).all())
    return bool(torch.isfinite(smallest) and torch.isfinite(largest))


def refuse_nonfinite(
    base: Mapping[str, Tensor], branches: Mapping[str, Tensor], where: str, original: Callable[[], Mapping[str, Tensor]]
) -> None:
    """Refuse weights that are not finite where those of the original are.

    Args:
        base: the relaxed model's base weights.
        branches: weights of its branches.
        where: what the message calls it.
        original: opens the tensors of the checkpoint that was relaxed; asked only if something is not finite.

    Raises:
        CheckpointError: if there are such weights, or if there may be because the original cannot be had.
    """
    found, suspect = nonfinite(branches), nonfinite(base)
    if suspect:
        try:
            known: Mapping[str, Tensor] = original()
        except SurgeonError:
            known = {}
        found += [name for name in suspect if name not in known or _is_finite(known[name])]
    if found:
        raise CheckpointError(
            f"expected finite weights in {where}, but {found[0]} holds NaN or infinity, which that of the base does "
            f"not ({len(found)} such tensors): the model is broken, do not use it"
        )
