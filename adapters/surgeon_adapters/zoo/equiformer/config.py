"""Settings of an Equiformer for MD17, and those that were published, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from surgeon.errors import CheckpointError

Basis = Literal["gaussian", "bessel", "exp"]


@dataclass(frozen=True)
class EquiformerConfig:
    """What an Equiformer is built from. Irreps are written as e3nn writes them, ``128x0e+64x1e``, even scalars first.

    Attributes:
        embedding: irreps of the nodes' features.
        harmonics: irreps of the spherical harmonics of an edge, one of each degree.
        feature: irreps that the last block puts out.
        head: irreps of one attention head.
        mlp: irreps between the two layers of a feed-forward network.
        layers: number of blocks.
        heads: number of attention heads.
        basis: functions of an edge's length.
        num_basis: how many of them.
        radial: widths of the hidden layers of the networks that make weights from an edge's length.
        cutoff: longest edge, in Angstrom.
        nonlinear_message: messages pass a gate and a second tensor product.
        attention_head: the energy comes from a last attention layer instead of two linear ones.
        attention_dropout: probability that an attention weight is dropped in training.
        atom_types: number of atomic numbers that are told apart, counted from 0.
    """

    embedding: str = "128x0e+64x1e+32x2e"
    harmonics: str = "1x0e+1x1e+1x2e"
    feature: str = "512x0e"
    head: str = "32x0e+16x1e+8x2e"
    mlp: str = "384x0e+192x1e+96x2e"
    layers: int = 6
    heads: int = 4
    basis: Basis = "exp"
    num_basis: int = 32
    radial: tuple[int, ...] = (64, 64)
    cutoff: float = 5.0
    nonlinear_message: bool = True
    attention_head: bool = False
    attention_dropout: float = 0.0
    atom_types: int = 64


_L2 = EquiformerConfig()
_L3 = EquiformerConfig(
    embedding="128x0e+64x1e+64x2e+32x3e",
    harmonics="1x0e+1x1e+1x2e+1x3e",
    head="32x0e+16x1e+16x2e+8x3e",
    mlp="384x0e+192x1e+192x2e+96x3e",
)
_L2_E3 = EquiformerConfig(
    embedding="128x0e+32x0o+32x1e+32x1o+16x2e+16x2o",
    harmonics="1x0e+1x1o+1x2e",
    head="32x0e+8x0o+8x1e+8x1o+4x2e+4x2o",
    mlp="384x0e+96x0o+96x1e+96x1o+48x2e+48x2o",
)
_L3_E3 = EquiformerConfig(
    embedding="128x0e+64x0o+32x1e+32x1o+32x2e+32x2o+16x3e+16x3o",
    harmonics="1x0e+1x1o+1x2e+1x3o",
    head="32x0e+16x0o+8x1e+8x1o+8x2e+8x2o+4x3e+4x3o",
    mlp="384x0e+192x0o+96x1e+96x1o+96x2e+96x2o+48x3e+48x3o",
)
_GAUSSIAN: dict[str, Any] = {"basis": "gaussian", "num_basis": 128, "attention_dropout": 0.2}


def published(name: str) -> EquiformerConfig:
    """Return the settings of a published network for MD17, by the name that its training script gives it.

    The number of radial functions is that of the scripts for networks with exponential functions (32), and the default
    of the training program otherwise (128); the cutoff is the default there, 5 Angstrom.

    Raises:
        CheckpointError: if no network has this name.

    Example:
        >>> published("graph_attention_transformer_nonlinear_exp_l3_md17").harmonics
        '1x0e+1x1e+1x2e+1x3e'
    """
    found = _published()
    if name not in found:
        raise CheckpointError(f"expected the name of a published Equiformer, one of {', '.join(found)}, got {name!r}")
    return found[name]


def _published() -> dict[str, EquiformerConfig]:
    bessel: dict[str, Any] = {"basis": "bessel", "num_basis": 128}
    whole = dataclasses.replace(_L3, feature=_L3.embedding, attention_head=True)
    named = {
        "l2": dataclasses.replace(_L2, **_GAUSSIAN, nonlinear_message=False),
        "nonlinear_l2": dataclasses.replace(_L2, **_GAUSSIAN),
        "nonlinear_l2_e3": dataclasses.replace(_L2_E3, **_GAUSSIAN),
        "nonlinear_bessel_l2": dataclasses.replace(_L2, **bessel),
        "nonlinear_exp_l2": _L2,
        "nonlinear_exp_l3": _L3,
        "nonlinear_attn_exp_l3": whole,
        "nonlinear_exp_l3_e3": _L3_E3,
        "nonlinear_bessel_l3": dataclasses.replace(_L3, **bessel),
        "nonlinear_bessel_l3_e3": dataclasses.replace(_L3_E3, **bessel),
    }
    return {f"graph_attention_transformer_{name}_md17": config for name, config in named.items()}


def published_names() -> tuple[str, ...]:
    """Return the names of the published networks."""
    return tuple(_published())


def from_data(settings: Mapping[str, Any], base: EquiformerConfig | None = None) -> EquiformerConfig:
    """Return settings from JSON-compatible data.

    Args:
        settings: names of attributes of :class:`EquiformerConfig` to values.
        base: where the others come from; default the defaults.

    Raises:
        CheckpointError: if a name is unknown, or a value is of the wrong kind.
    """
    defaults = base or EquiformerConfig()
    known = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(EquiformerConfig)}
    values = dict(settings)
    for name, value in values.items():
        if name not in known:
            raise CheckpointError(
                f"expected settings of an Equiformer among {', '.join(known)}, got {name!r}: correct it"
            )
        values[name] = _checked(name, value, known[name])
    return dataclasses.replace(defaults, **values)


def _checked(name: str, value: Any, example: Any) -> Any:
    """Return a value of the kind of an example."""
    if isinstance(example, tuple) and isinstance(value, list | tuple) and all(type(width) is int for width in value):
        return tuple(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number if isinstance(example, float) else type(value) is type(example)
    if not fits or (name == "basis" and value not in get_args(Basis)) or (number and value < 0):
        raise CheckpointError(f"expected the setting {name} of an Equiformer as {example!r} is, got {value!r}")
    return value
