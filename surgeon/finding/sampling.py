"""Ops that sample features, on a grid or along directions: what comes of the samples is equivariant only nearly."""

from __future__ import annotations

import torch
from torch import fx

from surgeon.recording.candidates import MEETINGS

INTERPOLATING = ("aten._fft_", "aten.grid_sampler", "aten.upsample_")


def samples_features(node: fx.Node) -> str:
    """Say how an op samples features, or is a function of such samples; empty if neither.

    It samples them if it contracts them with a table that is not trained, or is a Fourier transform or an
    interpolation. A component that is picked, a shift, or a function of components is none; a function, entry by
    entry, of what such a table makes is one, if the samples are more than the components.
    """
    if str(node.target).startswith(INTERPOLATING):
        where = node.meta["owner"] or "the model's own forward"
        return f"{where} samples its features by {node.target}: equivariant only as far as the samples resolve them"
    made = node
    while not _contracts(made) and (earlier := _before(made)) is not None:
        made = earlier
    table = _table(made)
    if table is None or (made is not node and not _spreads(made)):
        return ""
    where, size = made.meta["owner"] or "the model's own forward", " x ".join(map(str, table.meta["shape"]))
    return f"{where} samples its features by a fixed table, {size}: equivariant only as far as the samples resolve them"


def rearranges(node: fx.Node) -> bool:
    """Tell whether an op only puts entries in other places, all of them, which breaks no symmetry."""
    return node.target in _REARRANGING


_ATEN = torch.ops.aten
_REARRANGING = {
    *(_ATEN.cat.default, _ATEN.stack.default, _ATEN.clone.default, _ATEN.expand.default, _ATEN.t.default),
    *(_ATEN.view.default, _ATEN._unsafe_view.default, _ATEN.permute.default, _ATEN.transpose.int),
    *(_ATEN.unsqueeze.default, _ATEN.squeeze.dim, _ATEN.squeeze.dims, _ATEN.squeeze.default),
}


def _contracts(node: fx.Node) -> bool:
    return MEETINGS.get(node.target) in ("contraction", "convolution")


def _before(node: fx.Node) -> fx.Node | None:
    """Return the activation that an op takes entry by entry, or rearranges."""
    by_entry = torch.Tag.pointwise in getattr(node.target, "tags", ())
    given = [part for part in node.meta["sources"] if part.meta["activation"]]
    return given[0] if len(given) == 1 and (by_entry or rearranges(node)) else None


def _table(node: fx.Node) -> fx.Node | None:
    """Return what an op contracts features with, if that is not trained."""
    sources = [part for part in node.meta["sources"] if part.meta["shape"] is not None]
    tables = [part for part in sources if not part.meta["activation"] and not part.meta["parameters"]]
    return tables[0] if _contracts(node) and len(sources) == 2 and len(tables) == 1 else None


def _spreads(node: fx.Node) -> bool:
    """Tell whether an op makes more numbers than it is given."""
    given = max((_numel(part) for part in node.meta["sources"] if part.meta["activation"]), default=0)
    return _numel(node) > given


def _numel(node: fx.Node) -> int:
    return int(torch.Size(node.meta["shape"] or ()).numel())
