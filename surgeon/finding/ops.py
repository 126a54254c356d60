"""An op as a function of one tensor: which argument it is linear in, and which axes it mixes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.errors import first_line
from surgeon.registry import Refusal
from surgeon.support.modules import forward_signature, named_module, positions
from surgeon.support.trees import Place, real_leaves, tensor_at, with_tensor

LINEARITY = 1e-8
"""Largest relative deviation from additivity in float64."""


Change = Callable[[Tensor, Tensor], Tensor]
"""Given the features of an op and its result, returns what to go on with instead of the result."""


def call_forward(module: nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Call a module's forward, without hooks, with arguments by name as ``inspect.signature(...).bind`` gives them."""
    if positions(module)[: len(arguments)] == tuple(arguments):
        return module.forward(*arguments.values())
    bound = inspect.BoundArguments(forward_signature(module), dict(arguments))
    return module.forward(*bound.args, **bound.kwargs)


@dataclass(frozen=True)
class Op:
    """A module of a model as a function of one of the tensors that it is given.

    ``arguments`` are those of one of its calls, by name.

    Attributes:
        module: qualified name of the module; of an op inside its forward, of the module that holds it.
        argument: forward parameter, or raw parameter for an op inside a forward.
        path_in: where the features are inside the argument.
        path_out: where the result is inside the output.
        node: name of the op in the traced forward; None if it is the module itself.
        parameters: of an op inside a forward, the parameters that it contracts with, relative to the module.
    """

    module: str
    argument: str
    path_in: Place = ()
    path_out: Place = ()
    node: str | None = None
    parameters: tuple[str, ...] = ()

    def run(self, model: nn.Module, arguments: Mapping[str, Any], x: Tensor) -> Tensor:
        """Return the result with the features replaced by x."""
        given = {**arguments, self.argument: with_tensor(arguments[self.argument], self.path_in, x)}
        return tensor_at(call_forward(named_module(model, self.module), given), self.path_out)

    def read_in(self, model: nn.Module, arguments: Mapping[str, Any]) -> Tensor:
        """Return the features that a call received."""
        return tensor_at(arguments[self.argument], self.path_in)

    def read_out(self, model: nn.Module, arguments: Mapping[str, Any], result: Any) -> Tensor:
        """Return what the op made of them."""
        return tensor_at(result, self.path_out)

    def changing(self, model: nn.Module, change: Change) -> AbstractContextManager[None]:
        """Let the model go on with changed results while the context is open."""
        return self._changing(model, change)

    @contextmanager
    def _changing(self, model: nn.Module, change: Change) -> Iterator[None]:
        module = model.get_submodule(self.module)
        signature = forward_signature(module)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            x = self.read_in(model, signature.bind(*args, **kwargs).arguments)
            return with_tensor(output, self.path_out, change(x, tensor_at(output, self.path_out)))

        handle = module.register_forward_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()


@dataclass(frozen=True)
class Structure:
    """Which axes of its input and output an op mixes; the others are rows that it treats one by one.

    Attributes:
        rows: pairs of negative positions (input axis, output axis), in the input's order.
        mixed_in: negative positions of the input's other axes.
        mixed_out: negative positions of the output's other axes.
    """

    rows: tuple[tuple[int, int], ...]
    mixed_in: tuple[int, ...]
    mixed_out: tuple[int, ...]


def random_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return normal random numbers with the shape, dtype and device of ``x``."""
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)


def linear_pairs(
    model: nn.Module, name: str, arguments: Mapping[str, Any], generator: torch.Generator
) -> list[tuple[str, Place, Place]] | Refusal:
    """Find in which of its arguments' tensors a module is linear, and which tensors of its output these feed.

    Args:
        model: the model, in float64.
        arguments: one call, by name.
        generator: source of the random features.

    Returns:
        Triples (argument, path in, path out), the first output tensor for each input tensor; or, if there is none, why.
    """
    module = model.get_submodule(name)
    skipped = {
        key
        for key, parameter in forward_signature(module).parameters.items()
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    found = []
    complaint = Refusal("it takes no tensor of features", "not linear")
    for argument, value in arguments.items():
        if argument in skipped:
            complaint = Refusal(f"its features come in as *{argument}, which a branch cannot address", "unexplained")
            continue
        for path, real in real_leaves(value).items():
            if not real.ndim or not real.numel():
                continue
            try:
                paths_out, why = _linear_in(module, arguments, argument, path, real, generator)
            except Exception as error:  # the op is foreign code
                complaint = Refusal(f"it could not be run on random features ({first_line(error)})", "unexplained")
                continue
            if paths_out:
                found.append((argument, path, paths_out[0]))
            else:
                complaint = why
    return found or complaint


def _linear_in(
    module: nn.Module,
    arguments: Mapping[str, Any],
    argument: str,
    path: Place,
    real: Tensor,
    generator: torch.Generator,
) -> tuple[list[Place], Refusal]:
    def run(x: Tensor) -> dict[Place, Tensor]:
        given = {**arguments, argument: with_tensor(arguments[argument], path, x)}
        return {key: leaf.detach() for key, leaf in real_leaves(call_forward(module, given)).items()}

    x, y = random_like(real, generator), random_like(real, generator)
    at_x, at_y, both, zero = run(x), run(y), run(x + y), run(torch.zeros_like(x))
    paths, worst = [], 0.0
    for key, value in at_x.items():
        scale = float((value - zero[key]).norm())
        if not scale:
            continue
        deviation = float((both[key] - at_y[key] - value + zero[key]).norm()) / scale
        worst = max(worst, deviation)
        if deviation <= LINEARITY:
            paths.append(key)
    if worst:
        return paths, Refusal(f"it is not linear in {argument} (relative deviation {worst:.0e})", "not linear")
    if any(bool(value.any()) for value in at_x.values()):
        return paths, Refusal(f"its output does not depend on {argument}", "not linear")
    return paths, Refusal(f"its output is 0 on the sample batch, whatever {argument} is", "unexplained")


def linear_deviation(run: Callable[[Tensor], Tensor], real: Tensor, generator: torch.Generator) -> str:
    """Return how a function of features fails to be affine on random ones; empty if it is."""
    x, y = random_like(real, generator), random_like(real, generator)
    at_x, at_y, both, zero = run(x), run(y), run(x + y), run(torch.zeros_like(x))
    scale = float((at_x - zero).norm())
    deviation = float((both - at_y - at_x + zero).norm()) / scale if scale else 0.0
    return "" if deviation <= LINEARITY else f"it is not linear (relative deviation {deviation:.0e})"


def probe_structure(run: Callable[[Tensor], Tensor], real: Tensor, generator: torch.Generator) -> Structure | str:
    """Find the rows of a linear op: axes of which each slice of the input feeds the same slice of the output only.

    Args:
        run: the op as a function of its features.
        real: features that it received, for the shape.
        generator: source of the random features.

    Returns:
        The structure, or why there is none: rows in another order than the input's.
    """
    x = random_like(real, generator)
    y = run(x)
    rows: list[tuple[int, int]] = []
    for axis in range(-x.ndim, 0):
        matches = _matching_axes(run, x, y, axis, generator)
        free = [match for match in matches if match not in {out for _, out in rows}]
        if free:
            same = axis if axis in free else axis + x.ndim - y.ndim
            rows.append((axis, same if same in free else free[0]))
    outs = [out for _, out in rows]
    if outs != sorted(outs):
        return "it permutes the axes of its input"
    mixed_in = tuple(axis for axis in range(-x.ndim, 0) if axis not in {a for a, _ in rows})
    mixed_out = tuple(axis for axis in range(-y.ndim, 0) if axis not in outs)
    return Structure(tuple(rows), mixed_in, mixed_out)


def _matching_axes(
    run: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, axis: int, generator: torch.Generator
) -> list[int]:
    """Return the output axes of the same length whose slices depend on the same slice of the input only."""
    size = x.shape[axis]
    if size == 1:
        return [out for out in (axis, axis + x.ndim - y.ndim) if -y.ndim <= out < 0 and y.shape[out] == 1][:1]
    candidates = [out for out in range(-y.ndim, 0) if y.shape[out] == size]
    for index in dict.fromkeys((0, size - 1)):
        if not candidates:
            break
        changed = x.clone()
        changed.select(axis, index).copy_(random_like(x.select(axis, index), generator))
        difference = (run(changed) - y).abs()
        limit = LINEARITY * float(difference.max())
        candidates = [out for out in candidates if _only_at(difference, out, index, limit)]
    return candidates


def _only_at(difference: Tensor, axis: int, index: int, limit: float) -> bool:
    """Tell whether a difference is 0 outside one slice, and not inside it."""
    profile = difference.movedim(axis, 0).reshape(difference.shape[axis], -1).amax(dim=1)
    inside = float(profile[index])
    profile[index] = 0.0
    return inside > limit and float(profile.max()) <= limit
