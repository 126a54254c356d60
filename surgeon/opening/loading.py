"""Load named tensors into a model, strictly: every key, every shape, and the file's own dtype."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from surgeon.algebra.equivariance import relative_difference
from surgeon.errors import CheckpointError
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.tensors import forms, renamed, same_bytes, unusable
from surgeon.plan import CHILD
from surgeon.support.modes import drop_computed, in_evaluation_mode

STALE = 1e-3
"""From what relative difference on a tensor was computed of other weights, and not by another machine."""

COPIED_CONSTANT = re.compile(r"(^|\.)_tensor_constant\d+$")
"""What torch.fx adds to a generated module (a tensor product of e3nn) when that is deep-copied, as for an average."""

BY_SETTINGS = "build the model with the settings that it was trained with"
BY_LOADER = (
    "all its parameters are there and only buffers are missing: build it with the versions and global settings of its "
    "library that it was saved with, or give the task a `load_model(path)` that opens the file"
)


def named_as(checkpoint: Checkpoint, like: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Return a checkpoint's tensors under the names of a state dict.

    A prefix (``module.``) can be the model's own; constants that only a deep copy of a generated module has are left
    out unless the state dict has them, too.

    Args:
        like: the state dict, or anything with its keys.
    """
    prefixed = checkpoint.in_file
    tensors = prefixed if prefixed.keys() & like.keys() else checkpoint.tensors
    return renamed(tensors, {key: key for key in tensors if key in like or not COPIED_CONSTANT.search(key)})


def computed_again(model: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Say which of a file's tensors a loaded model computes of its weights in eval mode, and how the two compare.

    Args:
        model: with the weights of the file.
        tensors: what the file holds, by the model's names.

    Returns:
        A sentence without a full stop; empty if there are none.
    """
    names = sorted(drop_computed(model) & tensors.keys())
    if not names:
        return ""
    with torch.no_grad(), in_evaluation_mode(model):
        state = model.state_dict()
        error = max(relative_difference(tensors[name].to(state[name]), state[name]) for name in names)
    stale = ", so that they are not those of its weights, which alone count" if error > STALE else ""
    return (
        f"{_listed(names)} of its tensors are what the model computes of its weights in eval mode: they were left out "
        f"and computed again, and those in the file differ from that by {error:.1g} of its size{stale}"
    )


def with_computed(model: nn.Module, original: Checkpoint) -> dict[str, Tensor]:
    """Return a model's state dict, with what it computes in eval mode as far as its original's file keeps that, too."""
    state = dict(model.state_dict())
    left = (original.tensors.keys() | original.in_file.keys()) - state.keys()
    with torch.no_grad(), in_evaluation_mode(model) if left else nullcontext():
        return state | {key: tensor for key, tensor in model.state_dict().items() if key in left}


def refuse_unusable(model: nn.Module, source: str) -> None:
    """Refuse a network as it was built, if tensors of it could not take the values of a file.

    Raises:
        CheckpointError: if one is sparse, quantized, on the meta device, or of another dtype than files have.
    """
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and not is_lazy(tensor) and (what := unusable(tensor)):
            raise CheckpointError(
                f"{source} built a network whose {name!r} is {what}: build it of dense tensors with values, on the CPU"
            )


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load ``tensors`` into ``model``, which must have exactly these keys and shapes.

    If all floating tensors of the file agree on one dtype that is not the model's, the whole model is converted to it
    first, and if the file mixes dtypes, each tensor takes its own: loading never rounds. An integer takes the width
    that the model has for it. Keys, shapes, ties and kinds of numbers are checked before anything is loaded, and the
    values, bit by bit, afterwards. Constants that only a deep copy of the model has are left out, and so is what the
    model computes of its weights in eval mode; one that does is left in training mode.

    Args:
        model: edited in place.
        tensors: name to tensor, any shape and dtype.
        where: what the message calls the source ("model.pt").

    Raises:
        CheckpointError: if keys, shapes or kinds of numbers differ, tensors that the model ties have different values
            in the file, or the model then holds other values than the file.
    """
    own, tensors = fitting(model, tensors, where)
    state = model.state_dict()
    _check_ties(own, tensors, where)
    _match_dtypes(model, own, forms(tensors))
    if _loads_plainly(model) and len(own) == len(state):
        _copy(model.state_dict(), tensors)  # anew: dtypes may have changed
    else:
        try:
            model.load_state_dict(dict(tensors), strict=len(own) == len(state))  # extra state is kept
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{type(model).__name__} refuses the tensors of {where} ({' '.join(str(error).split())}): "
                "its own loading code changes keys or values, save the checkpoint again with the current version"
            ) from error
    _check_values(type(model).__name__, model.state_dict(), tensors, where)


def fitting(
    model: nn.Module, tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
    """Check keys, shapes and kinds of numbers, without reading a value; as :func:`load_into`.

    Returns:
        The model's tensors, and those of the file that it loads.
    """
    computed, state = drop_computed(model), model.state_dict()
    kept = [key for key in tensors if key in state or not (key in computed or COPIED_CONSTANT.search(key))]
    tensors = renamed(tensors, dict(zip(kept, kept, strict=True)))
    own = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    _check_keys(model, own, tensors, where)
    _check_shapes(model, own, forms(tensors), where)
    _check_kinds(own, forms(tensors), where)
    return own, tensors


def load_branches(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load the weights of all branches of a relaxed model.

    Args:
        model: edited in place.
        tensors: weights of the branches by their names in the model.

    Raises:
        CheckpointError: if names or shapes are not those of the branches.
    """
    # a shared module goes by its first name, as in the file
    own = {name: value for name, value in model.named_parameters() if CHILD in name.split(".")}
    unknown = sorted(own.keys() ^ tensors.keys())
    stored = forms(tensors)
    wrong = unknown or sorted(key for key in own if own[key].shape != stored[key].shape)
    if wrong:
        raise CheckpointError(
            f"expected weights for exactly {len(own)} branches, but {wrong[0]} does not fit: "
            "the folder was made with another plan"
        )
    _check_kinds(own, stored, "the branches")
    _copy(own, tensors)
    _check_values("the model", own, tensors, "the branches")


def _check_values(name: str, held: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse a model that holds other values than its file: it would do so after every load."""
    changed = [key for key, value in tensors.items() if not holds(held[key], value)]
    if changed:
        raise CheckpointError(
            f"{name} changes the values of {_listed(changed)} tensors while it loads {where}: "
            "save the checkpoint again with the current version of its library"
        )


def holds(held: Tensor, stored: Tensor) -> bool:
    """Tell whether a tensor has the bits of the stored one, or those of a cast that can be undone."""
    undone = held.dtype == stored.dtype or same_bytes(held.to(stored.dtype), stored)
    return undone and same_bytes(held, stored.to(held.dtype))


def _loads_plainly(model: nn.Module) -> bool:
    """Tell whether loading a state dict of the right keys and shapes only copies values."""
    if type(model).load_state_dict is not nn.Module.load_state_dict:
        return False
    for module in model.modules():
        kind = type(module)
        own_code = kind._load_from_state_dict is not nn.Module._load_from_state_dict
        if own_code and not kind._load_from_state_dict.__module__.startswith("torch.nn.modules."):
            return False
        if module._load_state_dict_pre_hooks or module._load_state_dict_post_hooks:
            return False
        if kind.set_extra_state is not nn.Module.set_extra_state:
            return False
    return not any(is_lazy(value) for value in (*model.parameters(), *model.buffers()))


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy tensor by tensor, so that the file's are not in memory together with the model's."""
    for key, value in tensors.items():
        into[key].copy_(value)


def _listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _check_keys(model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    missing = [key for key in own if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    parts = [f"missing from the file: {_listed(missing)}"] if missing else []
    parts += [f"unknown to the model: {_listed(unexpected)}"] if unexpected else []
    if parts:
        trained = [name for name, _ in model.named_parameters(remove_duplicate=False) if name in own]
        same = all(key in tensors and tensors[key].shape == own[key].shape for key in trained)
        prefix = min(own, default="").removesuffix(min(tensors, default=""))
        wrapped = bool(prefix) and own.keys() == {prefix + key for key in tensors}
        advice = BY_LOADER if same and trained and missing else BY_SETTINGS
        raise CheckpointError(
            f"expected the {len(own)} keys of {type(model).__name__}, got {len(tensors)} keys in {where}; "
            f"{'; '.join(parts)}: {f'return its {prefix[:-1]!r}, the network inside it' if wrapped else advice}"
        )


def _check_shapes(model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    wrong = [
        f"{key} is {tuple(tensors[key].shape)} in the file and {tuple(value.shape)} in the model"
        for key, value in own.items()
        if not is_lazy(value) and value.shape != tensors[key].shape
    ]
    if wrong:
        raise CheckpointError(
            f"expected the shapes of {type(model).__name__}, got {len(wrong)} other ones in {where}: "
            f"{'; '.join(wrong[:3])}: {BY_SETTINGS}"
        )


def _kind(dtype: torch.dtype) -> str:
    if dtype.is_complex:
        return "complex"
    if dtype.is_floating_point:
        return "floating"
    return "boolean" if dtype == torch.bool else "integer"


def _check_kinds(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse to cast between kinds of numbers: it drops imaginary parts, fractions, NaN or all but truth."""
    wrong = next((key for key in own if _kind(own[key].dtype) != _kind(tensors[key].dtype)), None)
    if wrong is not None:
        ours, theirs = own[wrong].dtype, tensors[wrong].dtype
        raise CheckpointError(
            f"expected {_kind(ours)} numbers ({str(ours).removeprefix('torch.')}) for {wrong}, got "
            f"{_kind(theirs)} ones ({str(theirs).removeprefix('torch.')}) in {where}: a cast would change values, "
            "build the model that was saved or correct the file"
        )


def _check_ties(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], where: str) -> None:
    """One tensor under two names can hold one value only; the last one read would silently win."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for key, value in own.items():
        if is_lazy(value) or value.numel() == 0 or value.layout != torch.strided:
            continue
        other = first.setdefault((value.data_ptr(), value.shape, value.stride()), key)
        if other != key and not _same_values(tensors[other], tensors[key]):
            raise CheckpointError(
                f"the model uses one tensor as {other} and {key}, but they differ in {where}: "
                "untie them in the model or correct the file"
            )


def _same_values(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and torch.allclose(left, right, rtol=0, atol=0, equal_nan=True)


def _match_dtypes(model: nn.Module, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    differing = [key for key in own if own[key].dtype != tensors[key].dtype and _kind(own[key].dtype) != "integer"]
    if not differing:
        return
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        dtype = dtypes.pop()
        # Module.to would also make complex tensors real
        convert: Callable[..., nn.Module] = model._apply
        convert(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
        differing = [key for key in differing if own[key].is_complex()]
    parameters, buffers = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    holders = dict(parameters) | dict(buffers)  # a state dict holds detached tensors, which cannot change dtype
    for key in differing:
        holders[key].data = holders[key].data.to(tensors[key].dtype)
