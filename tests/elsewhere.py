"""A pretended second device: tensors that are said to lie on it, and an error where they meet those of the CPU.

All values are on the CPU. A mode of ``__torch_function__`` remembers which storages belong to the device; it answers
``tensor.device`` and carries out moves and factories. Kernels of a real device it does not try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("xpu", 0)
CPU = torch.device("cpu")
MOVES = {Tensor.copy_, Tensor.__getitem__, Tensor.__setitem__, Tensor.index_put_, Tensor.set_, nn.init.normal_}
"""What takes tensors of two devices on real ones, too."""
LIKE = {Tensor.to, Tensor.type_as}
READS = {Tensor.numpy, Tensor.__array__}


class Elsewhere(TorchFunctionMode):
    """Raises a RuntimeError where a tensor of the device and one of the CPU meet, as a real device does."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}

    def holds(self, tensor: Tensor) -> bool:
        known = self.storages.get(StorageWeakRef(tensor.untyped_storage()).cdata)
        return known is not None and not known.expired()

    def claim(self, tensor: Tensor) -> Tensor:
        reference = StorageWeakRef(tensor.untyped_storage())
        self.storages[reference.cdata] = reference
        return tensor

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        given: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(named or {})
        tensors = [each for each in tree_flatten((given, named))[0] if isinstance(each, Tensor)]
        here = [each for each in tensors if self.holds(each)]
        if function == Tensor.device.__get__:  # another object at every access
            return DEVICE if here else CPU
        if function in READS and here:
            raise TypeError(f"{function.__name__} of a tensor on {DEVICE}")
        target = self._target(function, given, named)
        if target is not None:
            given, named = tree_map(lambda each: CPU if isinstance(each, torch.device) else each, (tuple(given), named))
            named |= {"device": CPU} if "device" in named else {}
        elif here and function not in MOVES and any(each.dim() and not self.holds(each) for each in tensors):
            raise RuntimeError(f"{getattr(function, '__name__', function)} of tensors on {DEVICE} and cpu")
        result = function(*given, **named)
        there = bool(here) if target is None else target.type == DEVICE.type
        return tree_map(lambda each: self._placed(each, there, tensors) if isinstance(each, Tensor) else each, result)

    def _target(
        self, function: Callable[..., Any], given: Sequence[Any], named: Mapping[str, Any]
    ) -> torch.device | None:
        """Return where the result of a call is asked to be; None if that follows from its tensors."""
        if function is Tensor.cpu:
            return CPU
        likened = [*given[1:2], *filter(None, [named.get("other")])] if function in LIKE else []
        if likened and isinstance(likened[0], Tensor):
            return DEVICE if self.holds(likened[0]) else CPU
        asked = [each for each in (*given, named.get("device")) if isinstance(each, torch.device)]
        if named.get("device") is not None and not asked:
            asked = [torch.device(named["device"])]
        return asked[0] if asked else None

    def _placed(self, result: Tensor, there: bool, tensors: Sequence[Tensor]) -> Tensor:
        if there == self.holds(result):
            return result
        if not there or any(result.untyped_storage()._cdata == each.untyped_storage()._cdata for each in tensors):
            result = result.clone()  # a move makes another tensor
        return self.claim(result) if there else result


@contextmanager
def elsewhere(model: nn.Module) -> Iterator[Callable[[Any], Any]]:
    """Pretend that a model lies on the device; yield what puts a batch there, too."""
    mode = Elsewhere()
    for tensor in (*model.parameters(), *model.buffers()):
        mode.claim(tensor)
    with mode:
        yield lambda batch: tree_map(lambda each: mode.claim(each) if isinstance(each, Tensor) else each, batch)
