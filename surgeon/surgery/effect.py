"""Which ops have an influence on the model's output: one backward pass for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.graph.record import fresh_copy, unchanged
from surgeon.modes import default_dtype, set_training
from surgeon.surgery.measurement import Measurement, perturbed
from surgeon.surgery.ops import random_like
from surgeon.trees import map_tensors, tensors_in


def without_effect(measurement: Measurement, names: Sequence[str]) -> set[str]:
    """Return the modules whose output has no influence on the model's, with perturbed weights.

    Each floating tensor that a module returns gets a zero added that requires a gradient; a random projection of the
    model's outputs is differentiated by all of these at once.

    Args:
        measurement: gives the float64 twin and its inputs.
        names: qualified names of modules.
    """
    twin = measurement.twin
    # Models that differentiate in their forward keep the graph of it in training mode only.
    with default_dtype(torch.float64), perturbed(twin), torch.enable_grad():
        for train in (True, False):
            set_training(twin, train)
            try:
                with unchanged(twin):
                    return set(names) - _felt(measurement, names)
            except RuntimeError:
                continue
            finally:
                set_training(twin, False)
    return set()  # without gradients nothing can be told


def _felt(measurement: Measurement, names: Sequence[str]) -> set[str]:
    """Return the modules whose output has a gradient."""
    probes: dict[str, list[Tensor]] = {name: [] for name in names}
    twin, symmetry = measurement.twin, measurement.symmetry
    with ExitStack() as stack:
        for name in names:
            hook = twin.get_submodule(name).register_forward_hook(_adder(probes[name]))
            stack.callback(hook.remove)
        outputs = symmetry.forward(twin, *map_tensors(fresh_copy, measurement.inputs))
    flat = [(name, probe) for name, found in probes.items() for probe in found]
    generator = torch.Generator().manual_seed(0)
    leaves = [leaf for leaf in tensors_in(outputs) if leaf.is_floating_point() and leaf.requires_grad]
    if not flat or not leaves:
        return set(names)
    total = torch.stack([(leaf * random_like(leaf.detach(), generator)).sum() for leaf in leaves]).sum()
    gradients = torch.autograd.grad(total, [probe for _, probe in flat], allow_unused=True)
    return {
        name for (name, _), gradient in zip(flat, gradients, strict=True) if gradient is not None and gradient.any()
    }


def _adder(into: list[Tensor]) -> Any:
    def add(module: nn.Module, args: Any, output: Any) -> Any:
        def with_probe(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            probe = torch.zeros_like(tensor, requires_grad=True)
            into.append(probe)
            return tensor + probe

        return map_tensors(with_probe, output)

    return add
