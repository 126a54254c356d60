"""What an op can be given beside unit features: data that a plan holds, made of the calls of the sample batch."""

from __future__ import annotations

import dataclasses
import inspect
from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.finding.inside_forward import inside_forward
from surgeon.finding.raw_ops import raw_op_at
from surgeon.finding.watched_ops import is_watched
from surgeon.finding.weight_usage import further_arguments, is_nothing
from surgeon.plan import Site
from surgeon.support.trees import Place, as_pairs, plain_place, tensor_at, tensor_leaves, with_tensor

CONSTANT_TO = {torch.float64: 1e-12, torch.float32: 1e-6}
"""Relative spread up to which a number that an op is given counts as constant."""

MOST_WORDS = 4
"""Constants that are listed one by one."""

MOST_ROWS, MOST_NUMBERS, MOST_KINDS = 32, 4096, 512
"""Random rows, numbers, and kinds of one-hot codes, of what else an op is given that a plan holds at most."""


class NotFoldableError(Exception):
    """A branch cannot be folded into its op's weights; the message says why."""


def sample_calls(
    site: Site, op: nn.Module, calls: Sequence[Mapping[str, Any]] | None, wrapped: bool
) -> list[tuple[dict[str, Any], str]]:
    """Return what an op can be given beside unit features, as JSON-compatible data, and what that takes for constant.

    Of arguments with one entry per row there are two choices: all one-hot codes, if every row is one; and what was the
    same in all rows, with random numbers in place of the rest, if so many rows can be held that these span all others;
    else with zeros, of which whoever tries the fold in the calls themselves sees whether they do.

    Args:
        calls: arguments by name of each recorded call; None without a recorded run.
        wrapped: True if the argument is made of the features alone.

    Raises:
        NotFoldableError: if it cannot be known, or is too much for a plan.
    """
    if not calls:
        needed = [
            name
            for name, each in inspect.signature(op.forward).parameters.items()
            if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
        ]
        if needed != [site.argument] or (site.path_in and not wrapped) or len(site.axes_in) > 1:
            raise NotFoldableError("not known without a sample batch: what else it is given decides")
        return [({"shape": [1, site.shape[1]]}, "")]
    if site.node is not None:
        features = as_pairs(inside_forward(op, site.node).operand(raw_op_at(site.node, site.parameters), calls[0]))
        held = {"call": _encoded(calls[0])} if is_watched(site.node) else {}
        return [({"shape": _one_row(site, features), **held}, "")]
    place = () if wrapped else plain_place(site.path_in)
    holds_while = further_arguments(dataclasses.replace(site, path_in=place), calls)
    if site.convolution is not None:
        if holds_while:
            raise NotFoldableError("it is a convolution that is given more than its features")
        return [({}, "")]
    shapes = [tuple(tensor_at(call[site.argument], site.path_in).shape) for call in calls]
    further = [_without_features(site, call, wrapped) for call in calls]
    by_row = _by_row(site, shapes, further)
    if not by_row:
        plain = not any(tensor_leaves(each) for each in further)
        shape = _one_row(site, torch.empty(shapes[0], device="meta")) if plain else list(shapes[0])
        return [({"shape": shape, "given": _encoded(further[0])}, holds_while)]
    values = {place: torch.cat([tensor_leaves(each)[place] for each in further]) for place in by_row}
    if len(next(iter(values.values()))) < 2:  # a single row cannot show what varies
        raise NotFoldableError("what else it is given was seen in a single row")
    others = {str(place[0]) for place in tensor_leaves(further[0]) if place not in by_row}
    choices = []
    for rows, words in (_codes(values), _constants(values)):
        if rows is not None:
            tree = further[0]
            for place, tensor in rows.items():
                tree = with_tensor(tree, place, tensor)
            count = len(next(iter(rows.values())))
            said = holds_while if others else words
            choices.append(({"shape": [count, *shapes[0][1:]], "given": _encoded(tree)}, said))
    if not choices:
        raise NotFoldableError("what else it is given are whole numbers that differ from row to row")
    return choices


def _one_row(site: Site, features: Tensor) -> list[int]:
    """Return the shape of features with a single row."""
    kept = {axis % features.ndim for axis in site.axes_in}
    return [size if axis in kept else 1 for axis, size in enumerate(features.shape)]


def _without_features(site: Site, call: Mapping[str, Any], wrapped: bool) -> dict[str, Any]:
    """Return the arguments of a call, with a single 0 in place of its features; those that are nothing are left out."""
    further = {name: value for name, value in call.items() if name != site.argument and not is_nothing(value)}
    place = plain_place(site.path_in)
    if place and not wrapped:
        further[site.argument] = with_tensor(call[site.argument], place, torch.zeros(()))
    return further


def _by_row(site: Site, shapes: Sequence[tuple[int, ...]], further: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Return where the tensors are that have as many rows as the features, in every call."""
    if any(len(shape) == len(site.axes_in) or -len(shape) in site.axes_in for shape in shapes):
        return []
    leaves = [tensor_leaves(each) for each in further]
    return [
        place
        for place in leaves[0]
        if all(
            place in each and each[place].ndim and len(each[place]) == shape[0]
            for each, shape in zip(leaves, shapes, strict=True)
        )
    ]


def _constants(values: Mapping[Place, Tensor]) -> tuple[dict[Place, Tensor] | None, str]:
    """Return random rows, or one of zeros, in which what is constant, and not 0, has its value, and that in words."""
    rows, said, varying = {}, [], 1
    kept: dict[Place, tuple[Tensor, Tensor]] = {}
    for place, tensor in values.items():
        if not tensor.is_floating_point():
            return None, ""
        flat = tensor.reshape(len(tensor), -1).double().cpu()
        mean, tolerance = flat.mean(0), CONSTANT_TO.get(tensor.dtype, 1e-2)
        constant = (flat.max(0).values - flat.min(0).values <= tolerance * mean.abs()) & (mean != 0)
        mean = torch.where((mean - mean.round()).abs() <= tolerance * mean.abs(), mean.round(), mean)
        kept[place], varying = (mean, constant), varying + int((~constant).sum())
        name = ".".join(map(str, place))
        said += [f"scalar {index} of {name} is {mean[index]:g}" for index in constant.nonzero().flatten()]
    generator, spanning = torch.Generator().manual_seed(0), varying <= MOST_ROWS
    for place, (mean, constant) in kept.items():
        random = torch.randn(varying if spanning else 1, len(mean), generator=generator, dtype=torch.float64) * spanning
        rows[place] = torch.where(constant, mean, random).reshape(-1, *values[place].shape[1:])
    names = ", ".join(str(place[0]) for place in values)
    many = f"the {len(said)} constant scalars of {names} stay as they were"
    return rows, " and ".join(said) if len(said) <= MOST_WORDS else many


def _codes(values: Mapping[Place, Tensor]) -> tuple[dict[Place, Tensor] | None, str]:
    """Return every one-hot code, of kinds that were not seen, too, and that in words; None where rows are no codes.

    A single kind is a constant.
    """
    if len(values) > 1:
        return None, ""
    [(place, tensor)] = values.items()
    flat = tensor.reshape(len(tensor), -1)
    ones, kinds = flat == 1, flat.shape[1]
    if not 1 < kinds <= MOST_KINDS or not (((flat == 0) | ones).all() and (ones.sum(1) == 1).all()):
        return None, ""
    codes = torch.eye(kinds, dtype=torch.float64).reshape(kinds, *tensor.shape[1:])
    return {place: codes}, f"every row of {'.'.join(map(str, place))} is a one-hot code"


def _encoded(tree: Any) -> Any:
    """Return nested plain data and tensors as JSON-compatible data.

    Raises:
        NotFoldableError: if there is anything else in it, or too much.
    """
    if isinstance(tree, Tensor):
        dtype = str(tree.dtype).removeprefix("torch.")
        if tree.layout != torch.strided:
            raise NotFoldableError("it is given a sparse tensor, which a plan cannot hold")
        if _is_identity(tree):
            return {"identity": len(tree), "shape": list(tree.shape), "dtype": dtype}
        if tree.numel() and not tree.any():
            return {"zeros": True, "shape": list(tree.shape), "dtype": dtype}
        if tree.numel() > MOST_NUMBERS:
            raise NotFoldableError(f"it is given a tensor of {tree.numel()} numbers, too many to be kept in a plan")
        return {"tensor": tree.detach().cpu().flatten().tolist(), "shape": list(tree.shape), "dtype": dtype}
    if isinstance(tree, Mapping):
        return {"mapping": {str(key): _encoded(value) for key, value in tree.items()}}
    if names := getattr(tree, "_fields", ()):
        return {"named": {name: _encoded(value) for name, value in zip(names, tree, strict=True)}}
    if isinstance(tree, list | tuple):
        return {"sequence": [_encoded(value) for value in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise NotFoldableError(f"it is given a {type(tree).__name__}, which a plan cannot hold")


def _is_identity(tensor: Tensor) -> bool:
    """Tell whether rows are all one-hot codes in order, of which a plan need not hold the numbers."""
    if not tensor.ndim or tensor.numel() != len(tensor) ** 2:
        return False
    return bool((tensor.detach().cpu().flatten() == torch.eye(len(tensor)).flatten()).all())


def decoded_call(data: Mapping[str, Any]) -> Any:
    """Return what was encoded, with floating-point numbers in float64."""
    if "shape" in data:
        dtype: torch.dtype = getattr(torch, data["dtype"])
        dtype = torch.float64 if dtype.is_floating_point else dtype
        if "zeros" in data:
            return torch.zeros(data["shape"], dtype=dtype)
        tensor = torch.eye(data["identity"]) if "identity" in data else torch.tensor(data["tensor"])
        return tensor.to(dtype).reshape(data["shape"])
    if "mapping" in data:
        return {key: decoded_call(value) for key, value in data["mapping"].items()}
    if "named" in data:  # another class of the same fields: a file names none that is imported
        return namedtuple("Arguments", data["named"])(*map(decoded_call, data["named"].values()))
    if "sequence" in data:
        return tuple(decoded_call(value) for value in data["sequence"])
    return data["value"]
