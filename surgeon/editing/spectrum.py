"""What is in W: its singular values from irrep to irrep, and how much of it commutes with the group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surgeon.algebra.intertwiners import copy_indices, frobenius, norm_of_average
from surgeon.algebra.representations.core import Representation
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import GroupError
from surgeon.finding.forms import row_representations

VALUES, LARGEST = 10_000, 1024
"""Singular values, at most, that are kept of all branches, and the smaller side of a block that they are taken of."""

DIGITS = 4
"""That are kept."""


@dataclass(frozen=True)
class BranchContent:
    """What is in the W of one site.

    Attributes:
        site: its key.
        norm: Frobenius norm of W.
        equivariant: ``|P(W)|^2 / |W|^2``, P the projection on the intertwiners; None where W = 0.
        random: its mean over random W, ``dim Hom / dim``: the dimensions of the intertwiners and of all W.
        spectrum: "1o -> 0e" to the largest singular values of the block of W from all copies of one irrep to those of
            another, in descending order; without blocks that are 0 or larger than 1024 both ways.
    """

    site: str
    norm: float
    equivariant: float | None
    random: float
    spectrum: dict[str, list[float]]


@torch.no_grad()
def branch_contents(relaxation: Relaxation) -> list[BranchContent]:
    """Return what is in every W between sums of irreps, in the order of the plan; others are left out."""
    found = []
    for site in relaxation.plan.sites:
        branch = relaxation.branches[site.key]
        rho_out, rho_in = row_representations(site)
        weight = branch.matrix.cpu()
        mask = torch.ones(()) if branch.mask is None else branch.mask.cpu()
        try:
            found.append(_content(site.key, weight, mask.expand(branch.shape).flatten(1), rho_out, rho_in))
        except GroupError:  # no sum of irreps
            continue
    most = max(1, VALUES // max(1, sum(len(each.spectrum) for each in found)))
    for each in found:
        for values in each.spectrum.values():
            del values[most:]
    return found


def _content(key: str, weight: Tensor, mask: Tensor, rho_out: Representation, rho_in: Representation) -> BranchContent:
    rows_of, columns_of = copy_indices(rho_out), copy_indices(rho_in)
    norm = frobenius(weight)
    share = (norm_of_average(weight, rho_out, rho_in) / norm) ** 2 if norm else None
    pairs = [(rows[:, :1], columns_of[label][:, 0]) for label, rows in rows_of.items() if label in columns_of]
    intertwiners = sum(float(mask[pair].sum()) for pair in pairs)
    spectrum: dict[str, list[float]] = {}
    for label_in, columns in columns_of.items():
        for label_out, rows in rows_of.items():
            block = weight[rows.reshape(-1, 1), columns.reshape(-1)].double()
            if min(block.shape) <= LARGEST and block.any():
                spectrum[f"{label_in} -> {label_out}"] = [_short(v) for v in torch.linalg.svdvals(block).tolist()]
    own = None if share is None else _short(share)
    return BranchContent(key, _short(norm), own, _short(intertwiners / float(mask.sum())), spectrum)


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
