"""Adapter for networks built from e3nn layers (0.4.4 and later): ``o3.Linear`` and weighted ``o3.TensorProduct``.

A tensor product is bilinear; the branch acts on its first argument, the features, while the second (edge or node
attributes) keeps its role.

The layers are recognised by what is read off them, not by their class: in an archive of torch.package, or in a package
that carries a copy of e3nn, the same layers are of other classes.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.matrix_blocks import MatrixBlock
from surgeon.algebra.representations.build import irreps
from surgeon.registry import Adapter, Proposal, Refusal

LAYER = {"irreps_out", "instructions", "weight_numel", "internal_weights", "shared_weights"}
LINEAR, PRODUCT = LAYER | {"irreps_in"}, LAYER | {"irreps_in1", "irreps_in2"}
"""What a layer keeps in itself."""

PATH = {"i_out", "path_shape", "path_weight"}
PATH_OF_LINEAR, PATH_OF_PRODUCT = PATH | {"i_in"}, PATH | {"i_in1", "i_in2", "connection_mode", "has_weight"}
"""What each of its instructions says."""


class E3nnAdapter(Adapter):
    """Annotations of e3nn's equivariant linear and bilinear layers."""

    name = "e3nn"
    groups = ("SO3", "O3", "SE3", "E3")

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        """Read the representations off the layer's irreps; None if it is not one of e3nn's layers."""
        if is_linear(module):
            return _unsupported_linear(module) or _own_weights(module) or _propose_linear(module, group)
        if is_product(module) and module.weight_numel:
            if "y" not in _forward_names(module):
                return Refusal(f"{type(module).__name__} is quadratic in its argument, not linear")
            return _own_weights(module) or _propose_tensor_product(module, group)
        return None

    def blocks(self, module: Any) -> Mapping[str, Sequence[MatrixBlock] | str] | None:
        """Read one matrix off each path of a layer: multiplicity in x multiplicity out."""
        if not (is_linear(module) or is_product(module)) or not module.internal_weights:
            return None
        if module.weight.ndim != 1:
            return {"weight": "it mixes an additional channel axis (f_in, f_out)"}
        found = list(_matrices(module))
        return {"weight": found or "its paths have one weight per channel or pair of channels, and no matrix"}


def is_linear(module: Any) -> bool:
    """Tell whether a module is made as ``o3.Linear`` is, wherever its class comes from."""
    return _made_of(module, LINEAR, PATH_OF_LINEAR)


def is_product(module: Any) -> bool:
    """Tell whether a module is made as ``o3.TensorProduct`` is, wherever its class comes from."""
    return _made_of(module, PRODUCT, PATH_OF_PRODUCT)


def _made_of(module: Any, attributes: set[str], entries: set[str]) -> bool:
    """Look for attributes of the instance and entries of its paths; its weight has to have as many as these say."""
    own = vars(module)
    if not attributes <= own.keys() or not isinstance(getattr(module, "weight", None), Tensor):
        return False
    paths = own["instructions"]
    if not all(entries <= set(getattr(path, "_fields", ())) for path in paths):
        return False
    weighted = [path for path in paths if getattr(path, "has_weight", True) and getattr(path, "i_in", 0) >= 0]
    return bool(own["weight_numel"] == sum(math.prod(path.path_shape) for path in weighted))


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
