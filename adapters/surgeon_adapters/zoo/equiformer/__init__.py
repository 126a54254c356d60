"""Equiformer with the names of its public code: build one, and open its checkpoints.

Importing this package imports neither e3nn nor numpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from surgeon.errors import CheckpointError
from surgeon.support.e3nn_compat import e3nn_defaults, unscript_harmonics
from surgeon.support.imports import one_line
from surgeon_adapters.zoo.equiformer.config import EquiformerConfig, from_data, published

__all__ = ["EquiformerConfig", "build", "build_from"]


def build(variant: str | None = None, settings: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an Equiformer from plain data, with random weights, in the default dtype.

    Args:
        variant: name of a published network, ``graph_attention_transformer_nonlinear_exp_l2_md17`` for one; default
            that one.
        settings: attributes of :class:`EquiformerConfig` that differ.

    Raises:
        CheckpointError: if the name or a setting is unknown, or they do not fit together.
    """
    return build_from(from_data(settings or {}, None if variant is None else published(variant)))


def build_from(config: EquiformerConfig) -> nn.Module:
    """Build an Equiformer from its settings.

    Its layers are e3nn's eager ones, which compute the same as scripted ones and have the same keys.

    Raises:
        CheckpointError: if the settings do not fit together.
    """
    try:
        with e3nn_defaults(jit_script_fx=False):
            unscript_harmonics()
            network = importlib.import_module("surgeon_adapters.zoo.equiformer.network")
            module: nn.Module = network.Equiformer(config)
            return module
    except (ValueError, AssertionError, IndexError) as error:
        raise CheckpointError(
            f"expected settings of an Equiformer that fit together, got {config} ({one_line(error)}): correct them"
        ) from error
