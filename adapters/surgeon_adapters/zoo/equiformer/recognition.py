"""Read the settings of an Equiformer off the keys and shapes of its state dict.

Shapes tell sums over degrees: how many channels there are, how many components, how many weights connect them. All of
them together leave one set of multiplicities, or the ambiguity is reported. Checkpoints with odd irreps are compared
with the published networks only, because no key tells the parity.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.errors import CheckpointError
from surgeon_adapters.zoo.equiformer.config import Basis, EquiformerConfig, published, published_names
from surgeon_adapters.zoo.equiformer.radial import cutoff_of_means

SIGNS = ("blocks.0.ga.alpha_dot", "edge_deg_embed.rad.offset", "atom_embed.atom_type_lin.tp.weight")
"""Keys that every Equiformer of the public code has, and no other network."""

ADVICE = (
    "state its settings beside the checkpoint, in CKPT.model.json: "
    '{"factory": "surgeon_adapters.zoo.equiformer:build", "args": {"settings": {...}}}'
)


@dataclass(frozen=True)
class Equation:
    """``sum_l coefficients[l] m_l = total`` for multiplicities m_l."""

    coefficients: Sequence[int]
    total: int


def solved(what: str, equations: Sequence[Equation]) -> tuple[int, ...] | None:
    """Return the multiplicities that satisfy all equations; None if no whole, non-negative numbers do.

    Args:
        what: whose multiplicities they are, for the message.
        equations: at least one.

    Raises:
        CheckpointError: if the equations leave several.

    Example:
        >>> solved("embedding", [Equation((1, 3), 8 + 3 * 4), Equation((1, 1), 12)])
        (8, 4)
    """
    matrix = torch.tensor([list(each.coefficients) for each in equations], dtype=torch.float64)
    totals = torch.tensor([each.total for each in equations], dtype=torch.float64)
    found = [round(value) for value in (torch.linalg.pinv(matrix) @ totals).tolist()]
    if int(torch.linalg.matrix_rank(matrix)) < matrix.shape[1]:
        raise CheckpointError(f"keys and shapes of this Equiformer leave several irreps of its {what} open: {ADVICE}")
    left = [each.total - sum(c * m for c, m in zip(each.coefficients, found, strict=True)) for each in equations]
    return None if any(left) or min(found) < 0 else tuple(found)


def is_equiformer(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether the keys are those of an Equiformer of the public code, of whatever variant."""
    return all(key in tensors for key in SIGNS)


def candidates(tensors: Mapping[str, Tensor]) -> list[EquiformerConfig]:
    """Return settings that keys and shapes may belong to; each has still to be compared by building it.

    Raises:
        CheckpointError: if the keys are an Equiformer's, but not of a variant that this package knows, or if its irreps
            are not told.
    """
    _require_known_variant(tensors)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    size = _total(shapes, "atom_embed.atom_type_lin.tp.output_mask")
    odd = [config for config in map(published, published_names()) if "o" in config.embedding]
    found = [config for config in odd if _dimension(config.embedding) == size] or _even(shapes)
    told = _told_directly(tensors, shapes)
    return list({dataclasses.replace(config, **told): None for config in found})


def _dimension(irreps: str) -> int:
    """Return the number of components of irreps such as ``4x0e+2x1o``."""
    return sum(int(mul) * (2 * int(degree) + 1) for mul, degree in re.findall(r"(\d+)x(\d+)[eo]", irreps))


def _require_known_variant(tensors: Mapping[str, Tensor]) -> None:
    unknown = {
        "proj_drop.": "dropout of features",
        "out_dropout.": "dropout of features",
        "mean_shift": "normalisation over a graph",
        "energy_head.": "noise prediction (DeNS)",
        "force_embed.": "noise prediction (DeNS)",
        "tag_embed.": "catalyst systems (OC20)",
    }
    for part, what in unknown.items():
        key = next((key for key in tensors if part in f"{key}."), None)
        if key is not None:
            raise CheckpointError(
                f"expected an Equiformer for MD17 as in its public code, but {key!r} belongs to a variant with {what}, "
                "which is not supported: give `--model module:function` that builds it"
            )


def _told_directly(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Return the settings that single keys tell."""
    widths = [shapes[key] for key in sorted(shapes) if re.fullmatch(r"edge_deg_embed\.rad\.net\.\d+\.weight", key)]
    matrices = [shape for shape in widths if len(shape) == 2]
    basis: Basis = "exp" if "rbf.means" in shapes else "gaussian" if "rbf.mean" in shapes else "bessel"
    told: dict[str, Any] = {
        "layers": len({key.split(".")[1] for key in shapes if key.startswith("blocks.")}),
        "heads": shapes["blocks.0.ga.alpha_dot"][1],
        "basis": basis,
        "num_basis": matrices[0][1],
        "radial": tuple(shape[0] for shape in matrices[:-1]),
        "nonlinear_message": "blocks.0.ga.sep_alpha.tp.weight" in shapes,
        "attention_head": "head.alpha_dot" in shapes,
        "attention_dropout": 0.2 if basis == "gaussian" else 0.0,
        "atom_types": _total(shapes, "atom_embed.atom_type_lin.tp.weight")
        // max(1, _total(shapes, "atom_embed.atom_type_lin.bias.0")),
    }
    if basis == "exp":
        told["cutoff"] = cutoff_of_means(tensors["rbf.means"])
    return told


def _total(shapes: Mapping[str, tuple[int, ...]], key: str) -> int:
    """Return the length of a vector."""
    if key not in shapes:
        raise CheckpointError(f"expected the key {key!r} of an Equiformer's public code, but it is missing: {ADVICE}")
    return shapes[key][0]


def _even(shapes: Mapping[str, tuple[int, ...]]) -> list[EquiformerConfig]:
    """Return the settings with even irreps whose sums over degrees are those of the shapes, if there are any."""
    lmax = _highest_degree(shapes)
    dims = [2 * degree + 1 for degree in range(lmax + 1)]
    paths = _paths(lmax)
    embedding = solved(
        "nodes",
        [
            Equation(dims, _total(shapes, "atom_embed.atom_type_lin.tp.output_mask")),
            Equation([1] * len(dims), _total(shapes, "blocks.0.norm_1.affine_weight")),
            Equation([1] + [0] * lmax, _total(shapes, "atom_embed.atom_type_lin.bias.0")),
            Equation([sum(row) for row in paths], _total(shapes, "edge_deg_embed.rad.offset")),
        ],
    )
    if embedding is None:
        return []
    feature = embedding if "head.alpha_dot" in shapes else (_total(shapes, "norm.affine_weight"),)
    head, middle = _head(shapes, embedding, paths, dims), _middle(shapes, embedding, feature, dims)
    if head is None or middle is None:
        return []
    return [
        EquiformerConfig(
            embedding=_irreps(embedding),
            harmonics=_irreps([1] * (lmax + 1)),
            feature=_irreps(feature),
            head=_irreps(head),
            mlp=_irreps(middle),
        )
    ]


def _highest_degree(shapes: Mapping[str, tuple[int, ...]]) -> int:
    found = [re.search(r"^edge_deg_embed\.dw\..*_w3j_(\d+)_\d+_\d+$", key) for key in shapes]
    return max((int(match[1]) for match in found if match), default=0)


def _paths(lmax: int) -> list[list[int]]:
    """Return how many products of degree i with the harmonics up to lmax have degree k."""
    degrees = range(lmax + 1)
    return [[sum(abs(i - j) <= k <= i + j for j in degrees) for k in degrees] for i in degrees]


def _head(
    shapes: Mapping[str, tuple[int, ...]], embedding: Sequence[int], paths: list[list[int]], dims: list[int]
) -> tuple[int, ...] | None:
    """Return the multiplicities of one attention head."""
    _, count, scores = shapes["blocks.0.ga.alpha_dot"]
    products = [sum(m * row[k] for m, row in zip(embedding, paths, strict=True)) for k in range(len(dims))]
    name = "blocks.0.ga.sep_value.lin" if "blocks.0.ga.sep_value.lin.tp.weight" in shapes else "blocks.0.ga.sep.lin"
    further = 0 if name.endswith("value.lin") else count * scores  # scores and values come from one layer
    return solved(
        "attention heads",
        [
            Equation([1] + [0] * (len(dims) - 1), scores),
            Equation([count * d for d in dims], _total(shapes, f"{name}.tp.output_mask") - further),
            Equation([count * m for m in embedding], _total(shapes, "blocks.0.ga.proj.tp.weight")),
            Equation([count * p for p in products], _total(shapes, f"{name}.tp.weight") - further * products[0]),
        ],
    )


def _middle(
    shapes: Mapping[str, tuple[int, ...]], embedding: Sequence[int], feature: Sequence[int], dims: list[int]
) -> tuple[int, ...] | None:
    """Return the multiplicities between the two layers of a feed-forward network."""
    output = embedding if any(key.startswith("blocks.1.") for key in shapes) else feature
    padded = [*output, *[0] * (len(dims) - len(output))]
    name = "blocks.0.ffn.fctp_1"
    gated = [1] * len(dims)  # scalars, and one gate for each other irrep
    return solved(
        "feed-forward networks",
        [
            Equation(gated, _total(shapes, f"{name}.bias.0")),
            Equation([1, *[1 + d for d in dims[1:]]], _total(shapes, f"{name}.tp.output_mask")),
            Equation([embedding[0], *[embedding[0] + m for m in embedding[1:]]], _total(shapes, f"{name}.tp.weight")),
            Equation(padded, _total(shapes, "blocks.0.ffn.fctp_2.tp.weight")),
        ],
    )


def _irreps(multiplicities: Sequence[int]) -> str:
    return "+".join(f"{mul}x{degree}e" for degree, mul in enumerate(multiplicities) if mul)
