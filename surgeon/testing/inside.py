"""Whether a whole network is equivariant, and where inside it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry, call
from surgeon.algebra.groups.core import Group
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import CheckFailedError, printable
from surgeon.finding.breaks import find_breaks
from surgeon.support.copies import copied
from surgeon.support.modes import default_dtype
from surgeon.support.trees import to_dtype


class _BreaksError(CheckFailedError):
    """Its message has a line for each thing that a developer reads, as those of assertions do."""

    def __str__(self) -> str:
        return printable(str(self.args[0]))


def assert_equivariant_inside(
    model: nn.Module,
    group: Group | str,
    *inputs: Any,
    act: Callable[..., Any],
    act_output: Callable[[Tensor, Any], Any],
    forward: Callable[..., Any] = call,
    seed: int = 0,
) -> None:
    """Check ``f(g x) = g f(x)`` in float64, and name the op inside the network at which that fails first.

    For the tests of any project: one call, one sample, no task file. A copy of the model is run in eval mode; the model
    is not changed. An output may be off by 1e-5 of its size, so that constants which a network has computed in float32
    are no break.

    Args:
        model: the network.
        group: a group or its name, see ``surgeon.algebra.groups.parse_group``.
        *inputs: one sample call; floating tensors are taken in float64.
        act: ``act(g, *inputs)``, g of shape (k, k), float64; of several inputs a tuple of images.
        act_output: ``act_output(g, outputs)``.
        forward: how to call the model, ``forward(model, *inputs)``; default ``model(*inputs)``.
        seed: of the group elements.

    Raises:
        CheckFailedError: if the output does not transform; the message names the op, its module, and its inputs.
        TaskError: if ``act`` is not an action of the group.

    Example:
        >>> import torch
        >>> turn = lambda g, x: x @ g.T
        >>> assert_equivariant_inside(torch.nn.Identity(), "SO3", torch.randn(5, 3), act=turn, act_output=turn)
    """
    named = parse_group(group) if isinstance(group, str) else group
    twin = copied(model).double().eval()
    with default_dtype(torch.float64):
        breaks = find_breaks(
            twin, Symmetry(named, act, act_output, forward), *to_dtype(inputs, torch.float64), seed=seed
        )
    if breaks.broken:
        raise _BreaksError("\n".join(breaks.told()))
