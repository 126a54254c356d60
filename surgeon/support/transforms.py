"""Inside the transforms of torch.func: tensors under grad, vjp, jacrev and vmap stand for others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

_functorch = torch._C._functorch


def outside(tensor: Tensor) -> Tensor:
    """Return what a tensor stands for outside of the transforms, still in the graph of that; any other one is itself.

    Of a tensor under vmap that is all of them, along a first axis.
    """
    while _functorch.is_functorch_wrapped_tensor(tensor):
        axis = _functorch.maybe_get_bdim(tensor)
        tensor = _functorch.get_unwrapped(tensor)
        tensor = tensor if axis < 0 else tensor.movedim(axis, 0)
    return tensor


@contextmanager
def no_transforms() -> Iterator[None]:
    """Run what is in the context as outside of all transforms."""
    with temporarily_clear_interpreter_stack():
        yield


def is_mapped() -> bool:
    """Tell whether this runs under vmap."""
    stack = _functorch.get_interpreter_stack() or ()
    return any(each.key() == _functorch.TransformType.Vmap for each in stack)
