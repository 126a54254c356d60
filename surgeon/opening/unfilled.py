"""Build a network without drawing the random weights that a checkpoint is about to replace."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Built = TypeVar("Built")

_DRAWN = (torch.empty, torch.rand, torch.randn)
"""Functions that make tensors without any value worth keeping."""


def build_unfilled(build: Callable[[], Built]) -> Built:
    """Return ``build()``, with uninitialised memory where it would have drawn random weights.

    Meanwhile ``torch.empty``, ``torch.rand`` and ``torch.randn`` make tensors without storage, so filling them costs
    nothing, and whatever is computed from them has none either, or fails. If such tensors are in the end nothing but
    entries of the state dict, they get memory. If not, or if numbers were drawn in another way (they would not be those
    of a plain call) or the generator was seeded, the network is built once more as usual.

    Args:
        build: may be called twice. Every tensor in the state dict of the module that it returns has to be overwritten.

    Returns:
        What ``build`` returns.
    """
    if torch.get_default_device().type != "cpu":
        return build()
    before = torch.get_rng_state()
    tracker = _WithoutStorage()
    try:
        with tracker:
            built = build()
        unused = torch.equal(before, torch.get_rng_state())
        if unused and _give_memory(tracker.alive(), built):
            return built
    except Exception:  # of whatever kind: the plain call fails in the same way, or does not fail
        pass
    torch.set_rng_state(before)
    return build()


class _WithoutStorage(TorchFunctionMode):
    """Let random tensors be made on the device "meta", and remember what is there."""

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWN and kwargs.get("device") is None and kwargs.keys().isdisjoint({"generator", "out"}):
            kwargs["device"] = "meta"
        result = func(*args, **kwargs)
        several = result if isinstance(result, (tuple, list)) else (result,)
        self._made += [weakref.ref(one) for one in several if isinstance(one, Tensor) and one.is_meta]
        return result

    def alive(self) -> list[Tensor]:
        """Return the tensors without storage that something still refers to, each once."""
        found = [tensor for reference in self._made if (tensor := reference()) is not None]
        self._made.clear()  # a tensor that is referred to weakly cannot be given memory
        return list({id(tensor): tensor for tensor in found}.values())


def _give_memory(tensors: Iterable[Tensor], built: object) -> bool:
    """Give memory to entries of a state dict; False if that is not all, or does not reach the network."""
    if not isinstance(built, nn.Module):
        return False
    loaded = {id(value) for value in built.state_dict(keep_vars=True).values()}
    placed = [tensor for tensor in (*built.parameters(), *built.buffers()) if tensor.is_meta]
    storages = {tensor.untyped_storage()._cdata for tensor in placed}
    all_loaded = all(id(tensor) in loaded and type(tensor) in (Tensor, nn.Parameter) for tensor in (*tensors, *placed))
    if not all_loaded or len(storages) != len(placed):  # or they are views of one tensor
        return False
    for tensor in placed:
        memory = torch.empty_like(tensor, device="cpu", requires_grad=False)
        same = nn.Parameter(memory, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else memory
        torch.utils.swap_tensors(tensor, same)  # type: ignore[no-untyped-call]
    # a scripted module holds its tensors outside of Python, where they are not swapped
    return not any(tensor.is_meta for tensor in (*built.parameters(), *built.buffers()))
