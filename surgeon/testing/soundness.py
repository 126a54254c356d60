"""Check on a real model that a plan holds: branches do nothing at first, act later, and come out without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.core import GroupElement
from surgeon.editing.branch import Branch
from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.errors import CheckFailedError
from surgeon.plan import CHILD, Plan
from surgeon.recording.compare import compare_graphs, erase_branches, forward_part
from surgeon.recording.record import Recording, record, unchanged
from surgeon.support.modes import in_evaluation_mode, in_training_mode
from surgeon.support.transforms import outside
from surgeon.support.trees import as_pairs, equal, map_tensors, tensors_in

THETA = 0.1
BROKEN = 1e-6
"""Smallest relative equivariance error that counts as broken in float64, where rounding makes about 1e-15."""

TIMES = 10
"""How many times the original's own error it has to be."""


@dataclass(frozen=True)
class Model:
    """A model with a sample call and a symmetry that it should have.

    Attributes:
        module: the network, in float64.
        symmetry: the group, how it acts on both ends, and how the network is called.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    symmetry: Symmetry

    def run(self, g: Tensor | None = None) -> Any:
        """Return the outputs, of inputs moved by g if one is given; with the same random numbers every time."""
        with torch.random.fork_rng(devices=[]):
            return self.symmetry.run(self.module, self.inputs, g)

    def error(self, elements: Tensor) -> float:
        """Return the largest relative equivariance error under some elements, shape (n, k, k)."""
        moved = ((GroupElement("", "", g), map_tensors(Tensor.detach, self.run(g))) for g in elements)
        return max(self.symmetry.errors(map_tensors(Tensor.detach, self.run()), moved).values())


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Put back what forwards write into buffers, and the buffers they replace.

    Those that are computed of weights are left to the libraries that do so.
    """
    kept = [
        (module._buffers, name, buffer, buffer.clone())
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
        for name, buffer in module._buffers.items()
        if buffer is not None and buffer.grad_fn is None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffers, name, buffer, value in kept:
                if not equal(buffer, value):
                    buffer.copy_(value)
                if name in buffers:
                    buffers[name] = buffer


def check_plan(model: Model, plan: Plan, seed: int = 0) -> None:
    """Insert, exercise and strip the branches of a plan.

    Checked are: at theta = 0 the outputs are equal; the recorded graph of the relaxed model is the original's plus
    exactly the planned branches; at theta = 0.1 a random W whose output has the scale of its op's breaks the model's
    equivariance through every site separately; gradients of the outputs reach every W; after stripping, state and
    recorded graph are the original's.

    Args:
        model: the model; it is as it was afterwards.
        seed: seed of the elements and of W.

    Raises:
        CheckFailedError: with the site and what was measured.
    """
    with in_evaluation_mode(model.module):  # in which some libraries keep more tensors than in training mode
        state = {key: value.clone() for key, value in model.module.state_dict().items()}
        with _buffers_kept(model.module):  # some models write to their buffers
            before, graph = map_tensors(lambda output: output.detach().clone(), model.run()), _record(model)
        relaxation = relax(model.module, plan, dense=True, init_scale=1.0, seed=seed)
        try:
            with _buffers_kept(model.module):
                _require_equal(before, map_tensors(Tensor.detach, model.run()))
                _check_graph(graph, _record(model), relaxation)
                _check_effects(model, relaxation, seed)
                _check_gradients(model, relaxation)
        finally:
            relaxation.enable_penalty(False)
            strip(model.module, "drop")
        after = model.module.state_dict()
        if list(after) != list(state) or any(not equal(after[key], state[key]) for key in state):
            raise CheckFailedError("expected the original's state after stripping, but it differs")
        differences = compare_graphs(graph.graph, _record(model).graph)
    if differences:
        raise CheckFailedError(f"expected the original's graph after stripping: {differences[0]}")


def _record(model: Model) -> Recording:
    with in_training_mode(model.module):
        return record(model.module, *model.inputs, forward=model.symmetry.forward)


def _require_equal(before: Any, after: Any) -> None:
    pairs = zip(tensors_in(before), tensors_in(after), strict=True)
    if not all(torch.equal(left, right) for left, right in pairs):
        raise CheckFailedError("expected equal outputs after inserting at theta = 0, but they differ")


def _check_graph(before: Recording, after: Recording, relaxation: Relaxation) -> None:
    erased, calls = erase_branches(after.graph, CHILD)
    differences = compare_graphs(forward_part(before.graph), erased)
    if differences:
        raise CheckFailedError(f"expected the original's graph plus branches: {differences[0]}")
    planned = {f"{site.name}.{CHILD}.{site.slot}".removeprefix("."): site.calls for site in relaxation.plan.sites}
    if planned != dict(calls):
        raise CheckFailedError(f"expected branches to run as often as planned, {planned}, got {dict(calls)}")


def _check_effects(model: Model, relaxation: Relaxation, seed: int) -> None:
    """Break the symmetry through one site at a time."""
    generator = torch.Generator().manual_seed(seed)
    elements = torch.stack([element.g for element in model.symmetry.group.test_elements(generator, 1)])
    original = model.error(elements)
    for key, branch in relaxation.branches.items():
        _scale_to_op(model, branch)
        branch.theta.fill_(THETA)
        error = model.error(elements)
        branch.theta.zero_()
        if not error > max(BROKEN, TIMES * original):
            raise CheckFailedError(
                f"expected the branch at {key!r} to break equivariance at theta = {THETA}, but the output's relative "
                f"error is {error:.1e} (without it {original:.1e})"
            )


def _scale_to_op(model: Model, branch: Branch) -> None:
    """Scale W so that what it adds at theta = 1 has the norm of its op's own output."""
    norms: list[tuple[float, float]] = []

    def watch(_: nn.Module, args: tuple[Tensor, Tensor]) -> None:
        nothing = torch.zeros_like(args[1])
        added = branch.form.add(nothing, (branch.weight.detach(),), args[0].detach())
        norms.append((float(outside(args[1]).detach().norm()), float(outside(added).norm())))

    hook = branch.register_forward_pre_hook(watch)
    try:
        model.run()
    finally:
        hook.remove()
    own, added = (sum(values) for values in zip(*norms, strict=True))
    if own and added:
        with torch.no_grad():
            list(branch.parameters())[-1].mul_(own / added)


def _check_gradients(model: Model, relaxation: Relaxation) -> None:
    relaxation.set_theta(THETA)
    for branch in relaxation.branches.values():
        branch.zero_grad()
    with in_training_mode(model.module), unchanged(model.module):
        outputs = [as_pairs(leaf) for leaf in tensors_in(model.run()) if leaf.requires_grad]
        if not outputs:
            raise CheckFailedError("expected outputs with gradients in training mode, got none")
        torch.stack([leaf.square().sum() for leaf in outputs]).sum().backward()  # type: ignore[no-untyped-call]
    for key, branch in relaxation.branches.items():
        gradients = [parameter.grad for parameter in branch.parameters()]
        if not any(gradient is not None and bool(gradient.any()) for gradient in gradients):
            raise CheckFailedError(f"expected a gradient at the branch {key!r}, got none")
    model.module.zero_grad(set_to_none=True)
    relaxation.set_theta(0.0)
