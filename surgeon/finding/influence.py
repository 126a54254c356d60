"""Which ops and weights have an influence on the model's output: one backward pass for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.finding.measurement import Measurement, perturbed
from surgeon.finding.ops import random_like
from surgeon.plan import Site
from surgeon.recording.record import unchanged
from surgeon.support.modes import default_dtype, set_training
from surgeon.support.transforms import no_transforms
from surgeon.support.trees import Place, as_pairs, equal, map_tensors, tensor_at, tensors_in, with_tensor


def without_effect(measurement: Measurement, sites: Sequence[Site]) -> tuple[list[Site], list[str]]:
    """Return the sites whose result has no influence on the model's output, with perturbed weights.

    Each result, one tensor of what a module returns, gets a zero added that requires a gradient; a random projection of
    the model's outputs is differentiated by all of these at once, and by the weights. An op inside a forward is judged
    by its weights alone.

    Args:
        measurement: gives the float64 twin and its inputs.

    Returns:
        These sites; and the qualified names of all trainable parameters without influence.
    """
    twin = measurement.twin
    # Models that differentiate in their forward keep the graph of it in training mode only.
    with default_dtype(torch.float64), perturbed(twin), torch.enable_grad():
        for train in (True, False):
            set_training(twin, train)
            try:
                with unchanged(twin):
                    return _unfelt(measurement, sites)
            except RuntimeError:
                continue
            finally:
                set_training(twin, False)
    return [], []  # without gradients nothing can be told


def _unfelt(measurement: Measurement, sites: Sequence[Site]) -> tuple[list[Site], list[str]]:
    twin, symmetry = measurement.twin, measurement.symmetry
    probes: list[list[Tensor]] = [[] for _ in sites]
    weights = {name: value for name, value in twin.named_parameters() if value.requires_grad}
    with ExitStack() as stack:
        for site, found in zip(sites, probes, strict=True):
            module = twin.get_submodule(site.name)
            if site.node is None:
                stack.callback(module.register_forward_hook(_adder(site.path_out, found)).remove)
            else:
                found += [module.get_parameter(name) for name in site.parameters]
        outputs = symmetry.run(twin, measurement.inputs)
    generator = torch.Generator().manual_seed(0)
    leaves = [leaf for leaf in map(as_pairs, tensors_in(outputs)) if leaf.is_floating_point() and leaf.requires_grad]
    flat = list({id(t): t for t in (*(t for found in probes for t in found), *weights.values())}.values())
    if not flat or not leaves:
        return [], []
    total = torch.stack([(leaf * random_like(leaf.detach(), generator)).sum() for leaf in leaves]).sum()
    felt: set[int] = set()

    def look(tensor: Tensor) -> None:
        """Keep whether a gradient is 0, and not the gradient: together they are as large as the network."""
        if tensor.grad is not None and tensor.grad.any():
            felt.add(id(tensor))
        tensor.grad = None

    handles = [tensor.register_post_accumulate_grad_hook(look) for tensor in flat]  # type: ignore[no-untyped-call]
    try:
        torch.autograd.backward(total, inputs=flat)
    finally:
        for handle in handles:
            handle.remove()
    silent = [site for site, found in zip(sites, probes, strict=True) if not any(id(t) in felt for t in found)]
    return silent, [name for name, value in weights.items() if id(value) not in felt]


def unmoved(measurement: Measurement, weights: Sequence[str]) -> list[str]:
    """Return which weights can be perturbed, all at once, without any output changing by a bit.

    A model is run as it is and under one element of each component; where that changes something, with half of the
    weights each.

    Args:
        weights: qualified names.
    """
    if not weights:
        return []
    twin, symmetry, own = measurement.twin, measurement.symmetry, measurement.own
    with default_dtype(torch.float64), perturbed(twin, only=weights), unchanged(twin):
        judges, elements = own.elements.judges, own.elements.all()
        last = {judge.component: number - len(judges) for number, judge in enumerate(judges)}
        chosen = [(None, own.outputs[0]), *((elements[n], own.outputs[n]) for n in last.values())]
        runs = ((map_tensors(Tensor.detach, symmetry.run(twin, measurement.inputs, g)), y) for g, y in chosen)
        if all(equal(output, before) for output, before in runs):
            return list(weights)
    half = len(weights) // 2
    return [*unmoved(measurement, weights[:half]), *unmoved(measurement, weights[half:])] if half else []


def _adder(path: Place, into: list[Tensor]) -> Any:
    def add(module: nn.Module, args: Any, output: Any) -> Any:
        result = tensor_at(output, path)
        with no_transforms():
            probe = result.new_zeros(result.shape, requires_grad=True)
        into.append(probe)
        return with_tensor(output, path, result + probe)

    return add
