"""Weights that FSDP has sharded over processes: reading them whole, and writing whole values into them.

A tensor that is not sharded passes through unchanged, so that callers need not know. All processes have to make the
calls that put a sharded tensor together, in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor, distributed, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tell whether this process holds a part of a tensor only."""
    if not distributed.is_available() or type(tensor) in (Tensor, nn.Parameter):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, detached if it was sharded."""
    return tensor.full_tensor().detach() if is_sharded(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """Return the part that this process holds, sharing memory; all of a tensor that is not sharded."""
    return tensor.to_local().detach() if is_sharded(tensor) else tensor.detach()


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor that every process holds whole as ``like`` is, without a message; and move it to its device.

    Args:
        tensor: shaped as ``like``.
        like: a parameter.
    """
    if not is_sharded(like):
        return tensor.to(like.device)
    from torch.distributed.tensor import distribute_tensor

    moved = tensor.to(like.device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's state dict on the CPU, with whole tensors."""
    return {key: whole(value).detach().to("cpu", copy=True) for key, value in model.state_dict().items()}


def load_whole_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors, strictly.

    Raises:
        RuntimeError: if keys or shapes differ.
    """
    own = model.state_dict()
    fitting = {key for key, value in state.items() if key in own and own[key].shape == value.shape}
    model.load_state_dict({key: sharded_like(v, own[key]) if key in fitting else v for key, v in state.items()})


def reshard(model: nn.Module) -> None:
    """Forget whole weights that a forward has left behind, so that the next one sees changes of the parts."""
    if not distributed.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
