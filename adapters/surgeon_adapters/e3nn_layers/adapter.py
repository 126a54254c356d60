"""Adapter for networks built from e3nn layers (0.4.4 and later): ``o3.Linear`` and weighted ``o3.TensorProduct``.

A tensor product is bilinear; the branch acts on its first argument, the features, while the second (edge or node
attributes) keeps its role.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.matrix_blocks import MatrixBlock
from surgeon.algebra.representations.build import irreps
from surgeon.registry import Adapter, Proposal, Refusal
from surgeon.support.e3nn_compat import import_e3nn


class E3nnAdapter(Adapter):
    """Annotations of e3nn's equivariant linear and bilinear layers."""

    name = "e3nn"
    groups = ("SO3", "O3", "SE3", "E3")

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        """Read the representations off the layer's irreps; None if it is not one of e3nn's layers."""
        if "e3nn" not in sys.modules:
            return None
        o3 = import_e3nn()
        if isinstance(module, o3.Linear):
            return _unsupported_linear(module) or _own_weights(module) or _propose_linear(module, group)
        if isinstance(module, o3.TensorProduct) and module.weight_numel:
            if "y" not in _forward_names(module):
                return Refusal(f"{type(module).__name__} is quadratic in its argument, not linear")
            return _own_weights(module) or _propose_tensor_product(module, group)
        return None

    def blocks(self, module: Any) -> Mapping[str, Sequence[MatrixBlock] | str] | None:
        """Read one matrix off each path of a layer: multiplicity in x multiplicity out."""
        if "e3nn" not in sys.modules:
            return None
        o3 = import_e3nn()
        if not isinstance(module, o3.Linear | o3.TensorProduct) or not module.internal_weights:
            return None
        if module.weight.ndim != 1:
            return {"weight": "it mixes an additional channel axis (f_in, f_out)"}
        found = list(_matrices(module))
        return {"weight": found or "its paths have one weight per channel or pair of channels, and no matrix"}


def _forward_names(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)


def _own_weights(module: Any) -> Refusal | None:
    if not module.internal_weights:
        return Refusal("its weights are supplied from elsewhere at every call", "supplied")
    if not module.weight.requires_grad:
        return Refusal("its weights are frozen", "frozen")
    return None


def _unsupported_linear(module: Any) -> Refusal | None:
    if module.weight.ndim > 1:
        return Refusal("it mixes an additional channel axis (f_in, f_out), which is not supported", "unexplained")
    if not module.weight_numel:
        return Refusal("its input and output share no irrep, so it has no weights")
    return None


def _propose_linear(module: Any, group: Group) -> Proposal:
    rho_in, rho_out = (irreps(group, str(labels)) for labels in (module.irreps_in, module.irreps_out))
    return Proposal(_forward_names(module)[0], "linear", rho_in, rho_out)


def _propose_tensor_product(module: Any, group: Group) -> Proposal:
    first, second = _forward_names(module)[:2]
    rho_1, rho_2, rho_out = (
        irreps(group, str(labels)) for labels in (module.irreps_in1, module.irreps_in2, module.irreps_out)
    )
    return Proposal(first, "tensor product", rho_1, rho_out, {second: rho_2})


def _matrices(module: Any) -> Iterator[MatrixBlock]:
    """Yield the paths in which every channel of the input meets every one of the output."""
    start = 0
    for path in module.instructions:
        linear = hasattr(path, "i_in")
        if path.i_in < 0 if linear else not path.has_weight:  # a bias, or a path without weights
            continue
        shape, size = path.path_shape, math.prod(path.path_shape)
        if size and (linear or path.connection_mode.endswith("w")):
            yield MatrixBlock.run(start, size // shape[-1], shape[-1], _path_label(module, path))
        start += size


def _path_label(module: Any, path: Any) -> str:
    if hasattr(path, "i_in"):
        return f"{module.irreps_in[path.i_in]} -> {module.irreps_out[path.i_out]}"
    first, second = module.irreps_in1[path.i_in1], module.irreps_in2[path.i_in2]
    return f"{first} x {second} -> {module.irreps_out[path.i_out]}"


adapter = E3nnAdapter()
