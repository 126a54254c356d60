"""What is checked of a MACE potential before its settings are trusted, and what its weights alone tell."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import CheckpointError
from surgeon.support.imports import one_line

AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest relative deviation of the rebuilt model's forces that counts as rounding."""

_WEIGHTS = ("atomic_energies_fn.atomic_energies", "atomic_numbers", "r_max", "num_interactions")


def version() -> str:
    """Return the version of mace; it is known once mace was imported."""
    return str(getattr(sys.modules.get("mace"), "__version__", "(unknown)"))


def further_inputs(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the inputs that a potential takes besides atoms, such as ``total_charge``."""
    return tuple(getattr(module, "embedding_specs", None) or ())


def recognised(tensors: Mapping[str, Tensor]) -> str | None:
    """Say which MACE potential a state dict belongs to and what its architecture is missing; None if to none."""
    if not all(key in tensors for key in _WEIGHTS):
        return None
    elements = _symbols(tensors["atomic_numbers"])
    layers, cutoff = int(tensors["num_interactions"]), float(tensors["r_max"])
    return (
        f"these are the weights of a MACE potential ({elements}; {layers} interactions; cutoff {cutoff:g}), as MACE "
        "keeps them in its folder checkpoints/, without the settings of its architecture: give the .model file that "
        "the same training wrote, with `--trust-pickle`, or put the settings beside it as CKPT.model.json, which "
        "`surgeon export` writes beside model.safetensors for a .model of the same settings"
    )


def _symbols(numbers: Tensor) -> str:
    try:
        from ase.data import chemical_symbols
    except ImportError:
        return "atomic numbers " + ", ".join(str(int(number)) for number in numbers)
    return ", ".join(chemical_symbols[int(number)] for number in numbers)


def require_no_other_layers(module: nn.Module) -> None:
    """Refuse a potential whose layers were replaced by those of a library or method that settings do not describe.

    Raises:
        CheckpointError: if it runs on cuEquivariance or has low-rank (LoRA) layers.
    """
    kind = type(module).__name__
    if getattr(getattr(module, "cueq_config", None), "enabled", False):
        raise CheckpointError(
            f"expected a {kind} whose layers are e3nn's, got one for cuEquivariance: convert it with "
            "`mace_cueq_to_e3nn` first"
        )
    low_rank = [name for name, part in module.named_modules() if type(part).__name__.startswith("LoRA")]
    if low_rank:
        raise CheckpointError(
            f"expected a {kind} with its own layers, got one with low-rank (LoRA) layers ({low_rank[0]}): merge them "
            "into the weights with mace.modules.lora.merge_lora_weights and save it again"
        )


def require_same(module: nn.Module, rebuilt: nn.Module) -> None:
    """Compare the forces of a pickled model and its rebuilt twin on a few atoms of every element, for each head.

    Raises:
        CheckpointError: if keys, shapes or forces differ, or the pickled model does not run.
    """
    kind = type(module).__name__
    try:
        rebuilt.load_state_dict(module.state_dict())
    except RuntimeError as error:
        raise CheckpointError(
            f"this {kind} has other keys or shapes than mace {version()} gives it ({one_line(error)[:300]}): "
            "install the version of mace-torch that wrote it"
        ) from error
    rebuilt.to(next(module.parameters()).dtype)
    try:
        expected = _probe(module)
    except Exception as error:
        raise CheckpointError(
            f"this {kind} does not run with mace {version()} ({one_line(error)[:300]}): "
            "install the version of mace-torch that wrote it"
        ) from error
    deviation = relative_difference(_probe(rebuilt), expected)
    if not deviation <= AGREEMENT[expected.dtype]:
        raise CheckpointError(
            f"expected this {kind}, rebuilt from its settings, to compute the same forces, but they deviate by "
            f"{deviation:.1e}: it is a variant that mace {version()} does not describe, give `--model module:function`"
        )


def _probe(module: Any) -> Tensor:
    """Return the forces on four atoms at random, for each element and head in turn."""
    dtype, elements = next(module.parameters()).dtype, len(module.atomic_numbers)
    generator = torch.Generator().manual_seed(0)
    species = torch.arange(max(4, elements)) % elements
    count = len(species)
    unit = 0.3 * float(module.r_max) * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    edges = torch.cartesian_prod(torch.arange(count), torch.arange(count)).T
    edges = edges[:, edges[0] != edges[1]]
    zeros = torch.zeros(edges.shape[1], 3, dtype=dtype)
    results = []
    for head in range(len(getattr(module, "heads", ["default"]))):
        batch = {
            "positions": unit.to(dtype).clone(),
            "node_attrs": nn.functional.one_hot(species, elements).to(dtype),
            "edge_index": edges,
            "shifts": zeros,
            "unit_shifts": zeros,
            "cell": torch.zeros(3, 3, dtype=dtype),
            "batch": torch.zeros(count, dtype=torch.long),
            "ptr": torch.tensor([0, count]),
            "head": torch.tensor([head]),
        }
        results.append(module(batch, training=False, compute_force=True)["forces"].detach())
    return torch.stack(results)
