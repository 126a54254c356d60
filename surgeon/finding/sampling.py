"""Ops that sample features, on a grid or along directions: what comes of the samples is equivariant only nearly."""

from __future__ import annotations

from torch import fx

from surgeon.recording.candidates import MEETINGS

INTERPOLATING = ("aten._fft_", "aten.grid_sampler", "aten.upsample_")


def samples_features(node: fx.Node) -> str:
    """Say how an op samples features; empty if it does not.

    It does so if it contracts them with a table that is not trained, or is a Fourier transform or an interpolation. A
    component that is picked, a shift, or a function of components is none.
    """
    where = node.meta["owner"] or "the model's own forward"
    if str(node.target).startswith(INTERPOLATING):
        return f"{where} samples its features by {node.target}: equivariant only as far as the samples resolve them"
    if MEETINGS.get(node.target) not in ("contraction", "convolution"):
        return ""
    sources = [part for part in node.meta["sources"] if part.meta["shape"] is not None]
    tables = [part for part in sources if not part.meta["activation"] and not part.meta["parameters"]]
    if len(sources) != 2 or len(tables) != 1:
        return ""
    size = " x ".join(map(str, tables[0].meta["shape"]))
    return f"{where} samples its features by a fixed table, {size}: equivariant only as far as the samples resolve them"
