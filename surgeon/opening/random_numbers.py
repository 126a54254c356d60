"""Drawing batches that are the same for the same seed, in every process, wherever a task takes random numbers from."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, distributed

from surgeon.algebra.moments import processes
from surgeon.errors import TaskError
from surgeon.support.trees import tensors_in


class RandomNumbers:
    """The global generators of Python, numpy and torch in a state of their own, which begins at a seed.

    What is drawn in it neither depends on what others draw meanwhile nor changes it.

    Args:
        seed: of all of them.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed % 2**32  # numpy takes no negative ones
        self._states: dict[str, Any] = {}

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Let the generators go on in this state while the context is open."""
        outside = {}
        for name, (get, put, seed) in _generators().items():
            outside[name] = get()
            if name in self._states:
                put(self._states[name])
            else:
                seed(self._seed)
        try:
            yield
        finally:
            generators = _generators()  # one more if numpy or a GPU came into use
            self._states = {name: get() for name, (get, _, _) in generators.items()}
            for name, state in outside.items():
                generators[name][1](state)


def _generators() -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[int], Any]]]:
    """Return how to read, set and seed each."""
    found: dict[str, Any] = {
        "python": (random.getstate, random.setstate, random.seed),
        "torch": (torch.get_rng_state, torch.set_rng_state, torch.default_generator.manual_seed),
    }
    if "numpy" in sys.modules:
        from numpy.random import MT19937, mtrand

        # Copies of its state would take longer than small batches; all it loses is a normal deviate kept in reserve.
        take, put = mtrand.get_bit_generator, mtrand.set_bit_generator
        found["numpy"] = (take, put, lambda seed: put(MT19937(seed)))
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["cuda"] = (torch.cuda.get_rng_state, torch.cuda.set_rng_state, torch.cuda.manual_seed)
    return found


def shared(batches: Iterator[Any], what: str) -> Iterator[Any]:
    """Return batches, the first of which was compared between the processes of torch.distributed; all have to call it.

    Args:
        batches: at least one; the processes share them out, so they have to draw the same ones.
        what: names them.

    Raises:
        TaskError: in every process, if they differ.
    """
    if processes() == 1:
        return batches
    first = next(batches)
    sizes = [_size(tensor) for tensor in tensors_in(first)]
    everywhere: list[list[Any]] = [[] for _ in range(processes())]
    distributed.all_gather_object(everywhere, sizes)
    if not all(_alike(each, everywhere[0]) for each in everywhere):
        raise TaskError(
            f"expected {what} to be the same in all processes, which share them out, but they differ: draw order and "
            "samples from the seed that batches() gets, or from the global generators of torch, numpy or random"
        )
    return chain([first], batches)


def _size(tensor: Tensor) -> tuple[tuple[int, ...], float]:
    dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
    size = dense.abs() if dense.is_complex() else dense.double().abs()
    return tuple(dense.shape), float(size.double().nan_to_num().sum())


def _alike(one: list[Any], other: list[Any]) -> bool:
    """Compare up to rounding, since processes may run on different processors."""
    return [shape for shape, _ in one] == [shape for shape, _ in other] and all(
        abs(a - b) <= 1e-6 * abs(a) for (_, a), (_, b) in zip(one, other, strict=True)
    )
