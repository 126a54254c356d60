"""Adapter for networks built from e3nn layers (0.4.4 and later): ``o3.Linear`` and weighted ``o3.TensorProduct``.

A tensor product is bilinear; the branch acts on its first argument, the features, while the second (edge or node
attributes) keeps its role.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.intertwiners import FoldMap, WeightEntries, copy_indices, irrep_label
from surgeon.algebra.representations.build import irreps
from surgeon.algebra.representations.core import Representation
from surgeon.plan import Site
from surgeon.registry import Adapter, Proposal, Refusal
from surgeon.support.e3nn_compat import import_e3nn

CONSTANT_TO = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Relative spread up to which a scalar of the second input counts as constant."""

MOST_WORDS = 4
"""Constant scalars that are listed one by one."""


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

    def fold_data(self, module: nn.Module, calls: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, str]:
        """Linear layers fold as they are; tensor products need a constant scalar in their second input."""
        if "weight" not in module._parameters:
            return None, "not foldable: its weight is computed from other parameters"
        if isinstance(module, import_e3nn().Linear):
            return {"parameter": "weight"}, ""
        if not calls:
            return None, "not known without a sample batch: its second input must contain a constant scalar"
        scalars = _constant_scalars(module, calls)
        if not scalars:
            return None, "not foldable: its second input has no constant scalar"
        return {"parameter": "weight", "scalars": scalars}, ""

    def fold_map(self, module: nn.Module, site: Site, group: Group) -> FoldMap:
        """Collect, per irrep, which weight enters which pair of copies with which coefficient."""
        holds_while = ""
        if isinstance(module, import_e3nn().Linear):
            paths = _linear_paths(module)
        else:
            assert site.fold is not None
            scalars = {int(key): float(value) for key, value in site.fold["scalars"].items()}
            paths, holds_while = _tensor_product_paths(module, scalars), _in_words(module, scalars)
        entries = _entries(module, paths, site.rho_out, site.rho_in)
        return FoldMap("weight", entries, (site.rho_out.dimension, site.rho_in.dimension), holds_while)


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


def _constant_scalars(module: Any, calls: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the flat indices of the scalars of the second input that never vary, with their values."""
    second = _forward_names(module)[1]
    values = torch.cat([call[second].reshape(-1, module.irreps_in2.dim) for call in calls])
    if len(values) < 2:  # a single row cannot show what varies
        return {}
    tolerance = CONSTANT_TO.get(values.dtype, 1e-2)
    found: dict[str, float] = {}
    for (_, irrep), section in zip(module.irreps_in2, module.irreps_in2.slices(), strict=True):
        if irrep.l != 0 or irrep.p != 1:
            continue
        for index in range(section.start, section.stop):
            column = values[:, index].double()
            spread, value = float(column.max() - column.min()), float(column.mean())
            if value != 0 and spread <= tolerance * abs(value):
                found[str(index)] = round(value) if abs(value - round(value)) <= tolerance * abs(value) else value
    return found


def _in_words(module: Any, scalars: Mapping[int, float]) -> str:
    """Return what a fold takes for constant: "scalar 0 of y is 1 and scalar 1 of y is 0.7"."""
    second = _forward_names(module)[1]
    if len(scalars) > MOST_WORDS:
        return f"the {len(scalars)} constant scalars of {second} stay as they were"
    return " and ".join(f"scalar {index} of {second} is {value:g}" for index, value in scalars.items())


@dataclass(frozen=True)
class _Path:
    """The weights of one path, each connecting a copy of its input block to a copy of its output block.

    Attributes:
        i_in: input block.
        i_out: output block.
        position: shape (k,), long: positions in the flattened weight.
        u: shape (k,), long: copies within the input block.
        v: shape (k,), long: copies within the output block.
        coefficient: shape (k,), float64.
    """

    i_in: int
    i_out: int
    position: Tensor
    u: Tensor
    v: Tensor
    coefficient: Tensor


def _grid(shape: Sequence[int]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the row-major positions 0, 1, ... in an array of this shape, and the index along each of its axes."""
    flat = torch.arange(math.prod(shape))
    return flat, torch.unravel_index(flat, tuple(shape))


def _linear_paths(module: Any) -> Iterator[_Path]:
    """``out[v] += path_weight * w[u, v] * x[u]`` for every instruction that is not a bias."""
    first = 0
    for path in module.instructions:
        if path.i_in < 0:
            continue
        flat, (u, v) = _grid(path.path_shape)
        coefficient = torch.full(flat.shape, float(path.path_weight), dtype=torch.float64)
        yield _Path(path.i_in, path.i_out, first + flat, u, v, coefficient)
        first += len(flat)


def _tensor_product_paths(module: Any, scalars: Mapping[int, float]) -> Iterator[_Path]:
    """The paths of the product with the constant scalars of the second input: ``l x 0 -> l``.

    The Wigner 3j symbol of such a path is the identity over ``sqrt(2l + 1)``.
    """
    constants = torch.zeros(module.irreps_in2.dim, dtype=torch.float64)
    for index, value in scalars.items():
        constants[index] = value
    starts = [section.start for section in module.irreps_in2.slices()]
    first = 0
    for path in module.instructions:
        if not path.has_weight:
            continue
        flat, indices = _grid(path.path_shape)
        position, first = first + flat, first + len(flat)
        mul_2, irrep_2 = module.irreps_in2[path.i_in2]
        irrep_out = module.irreps_out[path.i_out].ir
        copies = _copies_of(path.connection_mode, indices, mul_2)
        if copies is None or irrep_2.l != 0 or module.irreps_in1[path.i_in1].ir.l != irrep_out.l:
            continue
        u, v, w = copies
        y = constants[starts[path.i_in2] + v]
        coefficient = y * float(path.path_weight) / math.sqrt(irrep_out.dim)
        kept = y != 0
        yield _Path(path.i_in1, path.i_out, position[kept], u[kept], w[kept], coefficient[kept])


def _copies_of(mode: str, indices: Sequence[Tensor], mul_2: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the copies (u of the first input, v of the second, w of the output) that the weights connect."""
    match mode:
        case "uvw":
            return indices[0], indices[1], indices[2]
        case "uvu":
            return indices[0], indices[1], indices[0]
        case "uvv":
            return indices[0], indices[1], indices[1]
        case "uuw":
            return indices[0], indices[0], indices[1]
        case "uuu":
            return indices[0], indices[0], indices[0]
        case "uvuv":
            return indices[0], indices[1], indices[0] * mul_2 + indices[1]
        case _:  # antisymmetric modes of tensor squares
            return None


def _copy_offsets(labels: Any, rho: Representation) -> list[tuple[str, int]]:
    """Return, per block of an e3nn Irreps, its label and how many equivalent copies stand before it."""
    counts: dict[str, int] = {}
    offsets = []
    for mul, irrep in labels:
        label = irrep_label(rho, str(irrep))
        offsets.append((label, counts.get(label, 0)))
        counts[label] = counts.get(label, 0) + mul
    return offsets


def _entries(
    module: Any, paths: Iterator[_Path], rho_out: Representation, rho_in: Representation
) -> dict[str, WeightEntries]:
    in1 = module.irreps_in if hasattr(module, "irreps_in") else module.irreps_in1
    blocks_in, blocks_out = _copy_offsets(in1, rho_in), _copy_offsets(module.irreps_out, rho_out)
    collected: dict[str, list[tuple[Tensor, ...]]] = {}
    for path in paths:
        (label, first_in), (label_out, first_out) = blocks_in[path.i_in], blocks_out[path.i_out]
        if label == label_out and len(path.position):  # a block of multiplicity 0 has no copies
            entry = (path.position, first_out + path.v, first_in + path.u, path.coefficient)
            collected.setdefault(label, []).append(entry)
    rows, columns = copy_indices(rho_out), copy_indices(rho_in)
    result = {}
    for label, entries in collected.items():
        weight, out_copy, in_copy, coefficient = (torch.cat(parts) for parts in zip(*entries, strict=True))
        result[label] = WeightEntries(rows[label], columns[label], weight, out_copy, in_copy, coefficient)
    return result


adapter = E3nnAdapter()
