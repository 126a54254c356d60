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

AGREEMENT = {torch.bfloat16: 5e-2, torch.float16: 5e-3, torch.float32: 1e-4, torch.float64: 1e-9}
"""Largest relative deviation of the rebuilt model's forces that counts as rounding."""

NEIGHBOURS = 10
"""Of every atom on which a rebuilt model is compared: a potential for all elements has a hundred atoms there."""

_WEIGHTS = ("atomic_energies_fn.atomic_energies", "atomic_numbers", "r_max", "num_interactions")


def version() -> str:
    """Return the version of mace; it is known once mace was imported."""
    return str(getattr(sys.modules.get("mace"), "__version__", "(unknown)"))


def further_inputs(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the inputs that a potential takes besides atoms, such as ``total_charge``."""
    return tuple(getattr(module, "embedding_specs", None) or ())


def needed_file(tensors: Mapping[str, Tensor]) -> str | None:
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


def differing_weights(module: nn.Module, rebuilt: nn.Module) -> list[str]:
    """Return the names in which a pickled model and its rebuilt twin differ, but for constants that only one has."""
    stored, own = module.state_dict(), rebuilt.state_dict()
    learned = dict(rebuilt.named_parameters())
    wrong = [key for key in stored if key not in own or own[key].shape != stored[key].shape]
    return wrong + [key for key in own if key not in stored and key in learned]


def kept_constants(module: nn.Module, rebuilt: nn.Module) -> dict[str, str | None]:
    """Return the constants that a pickled model keeps otherwise than its rebuilt twin, once their weights agree.

    Versions of mace differ in these: a newer one has buffers that an older one lacks, or one in another dtype.

    Returns:
        Name of a buffer to its dtype in the pickled model; None for one that it lacks.

    Raises:
        CheckpointError: if anything else differs.
    """
    wrong = differing_weights(module, rebuilt)
    if wrong:
        raise CheckpointError(f"mace {version()} gives it other weights ({len(wrong)} differ, first {wrong[0]})")
    stored, own = module.state_dict(), rebuilt.state_dict()
    kinds = {
        key: str(value.dtype).removeprefix("torch.")
        for key, value in stored.items()
        if value.dtype != own[key].dtype and not (value.is_floating_point() and own[key].is_floating_point())
    }
    return {**dict.fromkeys(key for key in own if key not in stored), **kinds}


def require_same(rebuilt: nn.Module, expected: Tensor) -> None:
    """Compare the forces of a rebuilt model with those of the pickled one.

    Args:
        rebuilt: with the pickled model's weights.
        expected: :func:`forces_of` of the pickled model.

    Raises:
        CheckpointError: if they differ.
    """
    deviation = relative_difference(forces_of(rebuilt), expected)
    if not deviation <= AGREEMENT[expected.dtype]:
        raise CheckpointError(f"rebuilt from its settings by mace {version()} its forces deviate by {deviation:.1e}")


def forces_of(module: nn.Module) -> Tensor:
    """Return the forces on an atom of every element with a few neighbours at random, for each head in turn.

    Raises:
        CheckpointError: if the model does not run.
    """
    try:
        return _probe(module)
    except Exception as error:
        raise CheckpointError(
            f"this {type(module).__name__} does not run with mace {version()} ({one_line(error)[:300]}): if another "
            "version of mace-torch wrote it, install that one, else save it again"
        ) from error


def _probe(module: Any) -> Tensor:
    dtype, elements = next(module.parameters()).dtype, len(module.atomic_numbers)
    generator = torch.Generator().manual_seed(0)
    species = torch.arange(max(4, elements)) % elements
    count = len(species)
    unit = 0.3 * float(module.r_max) * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    steps = torch.arange(1, min(count, NEIGHBOURS + 1))
    senders = torch.arange(count).repeat_interleave(len(steps))
    edges = torch.stack([senders, (senders + steps.repeat(count)) % count])
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
