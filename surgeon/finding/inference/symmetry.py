"""How a group acts on a model's inputs and outputs, and whether that is an action at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from surgeon.algebra.equivariance import largest, relative_difference
from surgeon.algebra.groups.core import Group
from surgeon.errors import TaskError
from surgeon.support.trees import tensors_in

ACTION_TOLERANCE = 1e-6
"""Relative; user code may round to float32."""

RANDOM = 3
"""Random elements per component whose products are compared, see :meth:`Group.test_elements`."""


@dataclass(frozen=True)
class Symmetry:
    """A group with its actions on both ends of a model.

    Attributes:
        group: the group.
        act: ``act(g, *inputs)`` returns the tuple of transformed inputs; g of shape (k, k), float64.
        act_output: ``act_output(g, outputs)``; None if it is not known.
        forward: ``forward(model, *inputs)``.
    """

    group: Group
    act: Callable[..., tuple[Any, ...]]
    act_output: Callable[[Tensor, Any], Any] | None
    forward: Callable[..., Any]

    def moved(self, g: Tensor, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the inputs under g.

        Raises:
            TaskError: if the action fails.
        """
        try:
            return self.act(g, *inputs)
        except Exception as error:
            raise TaskError(
                f"the action on the sample batch fails with {type(error).__name__}: {error}; correct act(g, batch), "
                f"where g is a {self.group.dimension} x {self.group.dimension} matrix in float64"
            ) from error

    def check(self, inputs: tuple[Any, ...], generator: torch.Generator) -> None:
        """Check on sample inputs that the action is one: ``e x = x``, ``g (h x) = (g h) x``, and something moves.

        Raises:
            TaskError: if it is not, with what was measured.
        """
        tested = [element.g for element in self.group.test_elements(generator, RANDOM)]
        identity = torch.eye(self.group.dimension, dtype=torch.float64)
        still, twice = relative_difference(self.moved(identity, inputs), inputs), 0.0
        # Squares too: elements that are rounded, to quarter turns say, often add up with another one.
        for g, h in [*zip(tested, [*tested[1:], tested[0]], strict=True), *zip(tested, tested, strict=True)]:
            error = relative_difference(self.moved(g, self.moved(h, inputs)), self.moved(g @ h, inputs))
            twice = largest(twice, error)
        if not still <= ACTION_TOLERANCE or twice > ACTION_TOLERANCE:
            what = (
                f"acting by h and then by g differs from acting by gh by {twice:.1e}"
                if still <= ACTION_TOLERANCE
                else f"the identity changes the batch by {still:.1e}"
            )
            raise TaskError(
                f"expected act to be an action of {self.group.name}, but {what} (relative): correct act(g, batch); for "
                "row vectors it is x @ g.T"
            )
        if not any(relative_difference(self.moved(g, inputs), inputs) > ACTION_TOLERANCE for g in tested):
            raise TaskError(
                f"expected act to move the sample batch, but no element of {self.group.name} changes it: correct "
                "act(g, batch), or give batches that are not invariant"
            )


def all_rows_equal(inputs: Any) -> bool:
    """Tell whether every floating tensor with several rows has equal rows, which shows nothing of a model."""
    tensors = [
        tensor for tensor in tensors_in(inputs) if tensor.is_floating_point() and tensor.ndim and len(tensor) > 1
    ]
    return bool(tensors) and all(bool((tensor == tensor[:1]).all()) for tensor in tensors)
