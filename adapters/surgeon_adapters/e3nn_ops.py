"""Adapter for networks built from e3nn layers (0.4.4 and later): ``o3.Linear`` and weighted ``o3.TensorProduct``.

A tensor product is bilinear; the branch acts on its first argument, the features, while the second (edge or node
attributes) keeps its role.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.e3nn_compat import import_e3nn
from surgeon.groups import Group
from surgeon.intertwiners import FoldMap, WeightEntries, copy_indices, irrep_label
from surgeon.registry import Proposal, Refusal
from surgeon.representations import Representation, irreps
from surgeon.types import Site

CONSTANT_TO = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Relative spread up to which a scalar of the second input counts as constant."""


class E3nnAdapter:
    """Annotations of e3nn's equivariant linear and bilinear layers."""

    name = "e3nn"
    groups = ("SO3", "O3", "SE3", "E3")

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        """Read the representations off the layer's irreps; None if it is not one of e3nn's layers."""
        if "e3nn" not in sys.modules:
            return None
        o3 = import_e3nn()
        if isinstance(module, o3.Linear):
            return _own_weights(module) or _propose_linear(module, group)
        if isinstance(module, o3.TensorProduct) and module.weight_numel:
            if "y" not in _forward_names(module):
                return Refusal(f"{type(module).__name__} is quadratic in its argument, not linear")
            return _own_weights(module) or _propose_tensor_product(module, group)
        return None

    def fold_data(self, module: nn.Module, calls: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any] | None, str]:
        """Linear layers fold as they are; tensor products need a constant scalar in their second input."""
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
        rho_in = Representation.from_data(group, site.rho_in)
        rho_out = Representation.from_data(group, site.rho_out)
        if isinstance(module, import_e3nn().Linear):
            paths = _linear_paths(module)
        else:
            assert site.fold is not None
            paths = _tensor_product_paths(module, {int(key): value for key, value in site.fold["scalars"].items()})
        return FoldMap("weight", _entries(module, paths, rho_out, rho_in), site.shape)

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Return None: the keys of an e3nn state dict do not tell its irreps."""
        return None


def _forward_names(module: nn.Module) -> tuple[str, ...]:
    code = type(module).forward.__code__
    return code.co_varnames[1 : code.co_argcount]


def _own_weights(module: Any) -> Refusal | None:
    if not module.internal_weights:
        return Refusal("its weights are supplied from elsewhere at every call")
    if not module.weight.requires_grad:
        return Refusal("its weights are frozen")
    return None


def _propose_linear(module: Any, group: Group) -> Proposal | Refusal:
    if any(getattr(module, name, None) is not None for name in ("f_in", "f_out")):
        return Refusal("it mixes an additional channel axis (f_in, f_out), which is not supported")
    if not module.weight_numel:
        return Refusal("its input and output share no irrep, so it has no weights")
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
    if not len(values):
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
                found[str(index)] = round(value) if abs(value - round(value)) <= tolerance else value
    return found


_Path = tuple[int, int, int, int, int, float]
"""Position of a weight, input block and copy, output block and copy, coefficient."""


def _linear_paths(module: Any) -> Iterator[_Path]:
    """``out[v] += path_weight * w[u, v] * x[u]`` for every instruction that is not a bias."""
    position = 0
    for path in module.instructions:
        if path.i_in < 0:
            continue
        for u, v in itertools.product(*map(range, path.path_shape)):
            yield position, path.i_in, u, path.i_out, v, path.path_weight
            position += 1


def _tensor_product_paths(module: Any, scalars: Mapping[int, float]) -> Iterator[_Path]:
    """The paths of the product with the constant scalars of the second input: ``l x 0 -> l``.

    The Wigner 3j symbol of such a path is the identity over ``sqrt(2l + 1)``.
    """
    position = 0
    starts = [section.start for section in module.irreps_in2.slices()]
    for path in module.instructions:
        if not path.has_weight:
            continue
        first, position = position, position + math.prod(path.path_shape)
        mul_2, irrep_2 = module.irreps_in2[path.i_in2]
        irrep_out = module.irreps_out[path.i_out].ir
        if irrep_2.l != 0 or module.irreps_in1[path.i_in1].ir.l != irrep_out.l:
            continue
        scale = path.path_weight / math.sqrt(irrep_out.dim)
        for offset, indices in enumerate(itertools.product(*map(range, path.path_shape))):
            u, v, w = _copies_of(path.connection_mode, indices, mul_2)
            y = scalars.get(starts[path.i_in2] + v, 0.0)
            if w >= 0 and y:
                yield first + offset, path.i_in1, u, path.i_out, w, scale * y


def _copies_of(mode: str, indices: tuple[int, ...], mul_2: int) -> tuple[int, int, int]:
    """Return the copies (u of the first input, v of the second, w of the output) that a weight connects."""
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
            return 0, 0, -1


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
    collected: dict[str, list[tuple[int, int, int, float]]] = {}
    for position, i_in, u, i_out, v, coefficient in paths:
        (label, first_in), (label_out, first_out) = blocks_in[i_in], blocks_out[i_out]
        if label == label_out:
            collected.setdefault(label, []).append((position, first_out + v, first_in + u, coefficient))
    rows, columns = copy_indices(rho_out), copy_indices(rho_in)
    result = {}
    for label, entries in collected.items():
        table = torch.tensor(entries, dtype=torch.float64).T
        weight, out_copy, in_copy = table[:3].long()
        result[label] = WeightEntries(rows[label], columns[label], weight, out_copy, in_copy, table[3])
    return result


adapter = E3nnAdapter()
