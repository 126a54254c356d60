"""Check what an annotation says of an op, and of its fold, on what the op really receives."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from surgeon.algebra.equivariance import largest
from surgeon.algebra.groups.core import Group
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.representations.grids import in_frame, maps_to_itself
from surgeon.algebra.representations.operator import BlockOperator
from surgeon.algebra.representations.tensors import TensorType
from surgeon.errors import GroupError, first_line
from surgeon.finding.fold import TOLERANCE
from surgeon.plan import Coverage
from surgeon.registry import Proposal, Refusal
from surgeon.support.trees import tensor_at, with_tensor


class SiteCheck:
    """Linearity and equivariance of single ops, under the test elements of a group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._generator = torch.Generator().manual_seed(0)
        self._elements = torch.stack([element.g for element in group.test_elements(self._generator, 1)])
        self._actions: dict[Representation, BlockOperator] = {}

    def _act(self, rho: Representation, x: Tensor) -> Tensor:
        """Apply all chosen elements to features (..., d): shape (elements, ..., d)."""
        if rho not in self._actions:
            self._actions[rho] = rho.action(self._elements)
        return self._actions[rho].to(x).apply(x)

    def __call__(self, op: nn.Module, proposal: Proposal, call: Mapping[str, Any]) -> tuple[float, Refusal | None]:
        """Return the largest relative residual, and why the site does not hold, if it does not.

        The feature argument is replaced by random numbers of its shape, since real features may be 0 in a whole irrep
        and hide a wrong label; all other arguments are the real ones, transformed along where they transform. An op
        that is equivariant only approximately is judged with its symmetrised weights.
        """
        try:
            with torch.no_grad():
                return self._judge(op, proposal, call)
        except Exception as error:  # the op is foreign code
            return _unexplained(f"could not be checked on its own recorded inputs ({first_line(error)})")

    def own_deviation(self, op: nn.Module, proposal: Proposal, call: Mapping[str, Any]) -> float:
        """Return how far an op with its own weights is from equivariance, relative to its output's scale."""
        return self(op, dataclasses.replace(proposal, symmetrised=None), call)[0]

    def _if_all_zero(self, op: nn.Module) -> dict[str, Tensor]:
        """Return random weights if all of the op's are 0, as last layers often start: output 0 would prove nothing."""
        named = {name: weight for name, weight in op.named_parameters() if weight.is_floating_point()}
        if any(bool(weight.any()) for weight in named.values()):
            return {}
        return {name: torch.randn(weight.shape, generator=self._generator).to(weight) for name, weight in named.items()}

    def _judge(self, op: nn.Module, proposal: Proposal, call: Mapping[str, Any]) -> tuple[float, Refusal | None]:
        real = tensor_at(call[proposal.argument], proposal.path_in)
        type_in, type_out = _types(proposal)
        if type_in.on_rows(real).shape[-1] != proposal.rho_in.dimension:
            return _unexplained(f"labelled as {proposal.rho_in}, but its input has shape {tuple(real.shape)}")
        if not real.numel():
            return _unexplained("not exercised: its recorded input has no rows")
        x, other = (torch.randn(real.shape, generator=self._generator).to(real) for _ in range(2))

        weights = dict(proposal.symmetrised or self._if_all_zero(op))

        def run(features: Tensor, context: Mapping[str, Tensor]) -> Tensor:
            given = with_tensor(call[proposal.argument], proposal.path_in, features)
            arguments = {**call, **context, proposal.argument: given}
            result = functional_call(op, weights, (), arguments) if weights else op.forward(**arguments)
            return tensor_at(result, proposal.path_out)

        own = {name: call[name] for name in proposal.context if name in call}
        offset = run(torch.zeros_like(x), own)
        output = run(x, own)
        scale = float(output.norm())
        if not scale:
            return _unexplained("not exercised: its output is 0 for random features")
        linear = float((run(x + other, own) - run(other, own) - output + offset).norm()) / scale
        moved = {name: self._act(rho, own[name]) for name, rho in proposal.context.items() if name in own}
        residual = linear
        for index, g in enumerate(_elements(proposal, self._group, self._elements)):
            context = {name: values[index] for name, values in moved.items()}
            difference = run(type_in.act(g, x), context) - type_out.act(g, output)
            covered = type_out.covered(g, output)
            difference = difference if covered is None else difference * covered
            residual = largest(residual, float(difference.norm()) / scale)
        limit = TOLERANCE.get(output.dtype, 1e-4)
        if residual <= limit:
            return residual, None
        what: Coverage = "not linear" if linear > limit else "not equivariant"
        labels = "" if linear > limit else f" as labelled ({proposal.rho_in} -> {proposal.rho_out})"
        return residual, Refusal(f"{what}{labels}: relative residual {residual:.1e}, allowed {limit:.0e}", what)


def _unexplained(why: str) -> tuple[float, Refusal]:
    return float("inf"), Refusal(why, "unexplained")


def _elements(proposal: Proposal, group: Group, elements: Tensor) -> Tensor:
    """Return the elements to judge an op by: on a grid those that map it to itself, such as quarter turns.

    Raises:
        GroupError: if only the identity does.
    """
    if proposal.convolution is None or group.rescales:
        return elements
    if not group.finite:
        quarters = torch.linalg.matrix_exp(torch.pi / 2 * group.algebra).round()
        return torch.cat([quarters, group.elements])
    frame = torch.tensor(proposal.convolution.frame, dtype=torch.float64)
    kept = [g for g in group.all_elements()[1:] if maps_to_itself(in_frame(group.linear(g), frame))]
    if not kept:
        raise GroupError(
            f"no element of {group.name} but the identity maps the points of its grid to points: choose a group of "
            "quarter turns"
        )
    return torch.stack(kept)


def _types(proposal: Proposal) -> tuple[TensorType, TensorType]:
    """Return how both ends transform; a convolution's grid moves along."""
    convolution = proposal.convolution
    grid: tuple[int, ...] = ()
    frame: tuple[tuple[int, ...], ...] = ()
    if convolution is not None:
        grid, frame = tuple(range(-len(convolution.kernel), 0)), convolution.frame
    assert not callable(proposal.axes_in)
    assert not callable(proposal.axes_out)
    return (
        TensorType(proposal.rho_in, proposal.axes_in, grid, frame),
        TensorType(proposal.rho_out, proposal.axes_out, grid, frame),
    )
