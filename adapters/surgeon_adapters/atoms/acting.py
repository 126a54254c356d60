"""How a group acts on batches of atoms and on their labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def act_on_atoms(
    g: Tensor, batch: Mapping[str, Tensor], positions: str, vectors: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Act on a batch of atoms and its labels.

    Args:
        g: shape (3, 3), or (4, 4) with a shift, which only the positions take.
        batch: what turns has the axis of vectors last; everything else stays.
        vectors: names of what else turns, where it is there, apart from forces and stresses.
    """
    matrix = g.to(batch[positions])
    turned = {key: batch[key] @ matrix[:3, :3].T for key in (positions, *vectors) if key in batch}
    if len(matrix) == 4:
        turned[positions] = turned[positions] + matrix[:3, 3]
    return {**act_on_labels(g, batch), **turned}


def act_on_labels(g: Tensor, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn forces (n, 3) and stresses (b, 3, 3), where they are there; everything else is invariant."""
    turned = dict(labels)
    if "forces" in labels:
        turned["forces"] = labels["forces"] @ g[:3, :3].to(labels["forces"]).T
    if "stress" in labels:
        rotation = g[:3, :3].to(labels["stress"])
        turned["stress"] = rotation @ labels["stress"] @ rotation.T
    return turned
