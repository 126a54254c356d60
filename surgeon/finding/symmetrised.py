"""Networks that are equivariant only approximately, by design: the exactly equivariant one beside them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from surgeon.algebra.groups.core import Group
from surgeon.finding.annotated_ops import collect_proposals
from surgeon.registry import Adapter, Proposal, installed_adapters
from surgeon.support.copies import copied


def symmetrised_copy(model: nn.Module, group: Group, adapters: Mapping[str, Adapter] | None = None) -> nn.Module | None:
    """Return a copy in which every approximately equivariant op has weights that make it exactly equivariant.

    What such a network breaks of the symmetry is its own; whether the group is the right one, and the actions on its
    inputs and outputs are, can be seen on the copy.

    Args:
        model: the network.
        group: the group.
        adapters: adapters by name; default all installed ones.

    Returns:
        The copy; None if no adapter knows such an op in the model.
    """
    proposals, _, _ = collect_proposals(model, group, installed_adapters() if adapters is None else adapters)
    return symmetrised_by(model, proposals)


def symmetrised_by(model: nn.Module, proposals: Mapping[str, tuple[str, Proposal]]) -> nn.Module | None:
    """Do the same for proposals at hand, by name of their module."""
    changes: dict[str, Tensor] = {
        f"{name}.{own}".lstrip("."): value
        for name, (_, proposal) in proposals.items()
        for own, value in (proposal.symmetrised or {}).items()
    }
    if not changes:
        return None
    result = copied(model)
    own = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    with torch.no_grad():
        for name, value in changes.items():
            own[name].copy_(value)
    return result
