"""The loss as a function of W: products with its Hessian in the directions that break the symmetry, and its least one.

A direction is a unit vector v over all sites, with ``W_s = scale_s v_s``, where v_s is transverse: orthogonal to the
intertwiners of its site. The scale is (size of the op's output) / (size of an input coordinate), so that a typical v_s
of norm 1 moves the output of its op by as much as that output is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surgeon.algebra.intertwiners import average, copy_indices
from surgeon.algebra.penalty import Commutator
from surgeon.editing.branch import Branch
from surgeon.errors import GroupError, SurgeonError
from surgeon.finding.forms import row_representations
from surgeon.plan import Site
from surgeon.support.imports import one_line
from surgeon.training.diagnosis.lanczos import ROUNDING

Projection = Callable[[Tensor], Tensor]
Method = Literal["double backward", "central differences"]

ITERATIONS = 200
"""Of conjugate gradients; they need as many as ``L* L`` has different eigenvalues, a few for most representations."""

PROJECTED = 1e-9
"""Relative residual at which conjugate gradients end."""

AGREEMENT = 0.05
"""Relative deviation of the double backward from central differences above which it is not trusted."""


def transverse_projection(site: Site) -> tuple[Projection, str]:
    """Return the orthogonal projection of a site's W on the complement of the intertwiners.

    For irreps of real type it is ``W - P(W)`` in closed form. Otherwise it is ``L+ L W`` with the defects L of the
    penalty and the pseudo-inverse L+, by conjugate gradients in float64: an intertwiner is what L maps to 0.

    Args:
        site: where W belongs.

    Returns:
        A map of matrices (d_out, row size), and why it is the identity; an empty string if it is not.
    """
    rho_out, rho_in = row_representations(site)
    try:
        copy_indices(rho_out), copy_indices(rho_in)
    except GroupError:
        pass
    else:
        return lambda weight: weight - average(weight, rho_out, rho_in), ""
    commutator = Commutator(rho_out, rho_in)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(rho_out.dimension, rho_in.dimension, generator=generator, dtype=torch.float64)
    if _complement(commutator, probe)[1] > PROJECTED:
        return lambda weight: weight, f"all of W is looked at: the intertwiners of {rho_in} -> {rho_out} were not found"
    return lambda weight: _complement(commutator, weight.double())[0].to(weight), ""


def _complement(commutator: Commutator, weight: Tensor) -> tuple[Tensor, float]:
    """Solve ``L* L X = L* L W`` from X = 0, which gives ``X = L+ L W``; return X and the relative residual."""
    solution = torch.zeros_like(weight)
    rest = commutator.adjoint(commutator(weight))
    first = size = float(rest.square().sum())
    direction = rest
    for _ in range(ITERATIONS):
        if size <= PROJECTED**2 * first:
            break
        image = commutator.adjoint(commutator(direction))
        step = size / float((direction * image).sum())
        solution, rest = solution + step * direction, rest - step * image
        size, before = float(rest.square().sum()), size
        direction = rest + (size / before) * direction
    return solution, (size / first) ** 0.5 if first else 0.0


@dataclass(frozen=True)
class OpSizes:
    """What an op's input and output look like at W = 0.

    Attributes:
        scale: of W: root mean square norm of an output row over the root mean square entry of the input.
        reference: sum of squared outputs, to which movements are relative.
        note: why the sizes are not the op's own; empty if they are.
    """

    scale: float
    reference: float
    note: str = ""


def measure_sizes(branches: Mapping[str, Branch], run: Callable[[], Any]) -> dict[str, OpSizes]:
    """Measure inputs and outputs of all ops while ``run`` runs the model on some batches.

    An op whose output is 0 counts with the size of its input, entry for entry.
    """
    sums = {key: torch.zeros(4, dtype=torch.float64) for key in branches}

    def watch(key: str, x: Tensor, output: Tensor) -> None:
        squares = [float(tensor.detach().double().square().sum()) for tensor in (x, output)]
        sums[key] += torch.tensor([squares[0], x.numel(), squares[1], output.numel()], dtype=torch.float64)

    with _watched(branches, watch):
        run()
    return {key: _sizes(sums[key].tolist(), branch.shape[0]) for key, branch in branches.items()}


def _sizes(sums: Sequence[float], d_out: int) -> OpSizes:
    (inputs, count_in, outputs, count_out), note = sums, ""
    if not inputs:
        return OpSizes(1.0, 1.0, "its input is 0 on these batches, so that W has no effect")
    if not outputs:
        outputs, note = inputs / count_in * count_out, "its output is 0 on these batches: the size of its input is used"
    return OpSizes((d_out * (outputs / count_out) / (inputs / count_in)) ** 0.5, outputs, note)


@contextmanager
def _watched(branches: Mapping[str, Branch], watch: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """Call ``watch(key, x, output)`` before every branch runs."""

    def hook_of(key: str) -> Callable[[nn.Module, tuple[Tensor, Tensor]], None]:
        return lambda _, args: watch(key, *args)

    handles = [branch.register_forward_pre_hook(hook_of(key)) for key, branch in branches.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Coordinates:
    """Directions of the W of some sites, as flat vectors.

    Attributes:
        branches: with a dense W, by key.
        sizes: of every op.
        projections: on the transverse part, for W flattened to (d_out, row size).
    """

    branches: Mapping[str, Branch]
    sizes: Mapping[str, OpSizes]
    projections: Mapping[str, Projection]

    def only(self, key: str) -> Coordinates:
        """Return the coordinates of one site alone."""
        return Coordinates({key: self.branches[key]}, self.sizes, self.projections)

    @property
    def parameters(self) -> list[Tensor]:
        """The weights of the branches."""
        return [branch.weight for branch in self.branches.values()]

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return the part of every site, shaped as its W, not scaled."""
        parts = torch.split_with_sizes(vector, [branch.weight.numel() for branch in self.branches.values()])
        return {
            key: part.reshape(branch.shape) for (key, branch), part in zip(self.branches.items(), parts, strict=True)
        }

    def weights(self, vector: Tensor) -> list[Tensor]:
        """Return W of every site."""
        return [self.sizes[key].scale * part for key, part in self.split(vector).items()]

    def transverse(self, vector: Tensor) -> Tensor:
        """Return the orthogonal projection of a vector on the transverse directions; a site of scale 0 has none."""
        parts = []
        for key, part in self.split(vector).items():
            mask = self.branches[key].mask
            projected = self.projections[key]((part if mask is None else part * mask).flatten(1)).flatten()
            parts.append(projected if self.sizes[key].scale else 0 * projected)
        return torch.cat(parts)

    def pull_back(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return derivatives by W as transverse derivatives by v; None counts as 0."""
        parts = [
            torch.zeros_like(branch.weight) if gradient is None else self.sizes[key].scale * gradient.detach()
            for (key, branch), gradient in zip(self.branches.items(), gradients, strict=True)
        ]
        return self.transverse(torch.cat([part.flatten() for part in parts]))

    def random(self, seed: int) -> Tensor:
        """Return a random transverse vector of norm 1; of norm 0 if there is no transverse direction."""
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight) for weight in self.parameters
        ]
        vector = self.transverse(torch.cat([normal.flatten() for normal in drawn]))
        norm = vector.norm()
        return vector / norm if norm > ROUNDING * torch.finfo(vector.dtype).eps * len(vector) ** 0.5 else 0 * vector

    def shares(self, vector: Tensor) -> dict[str, float]:
        """Return the share of every site in the squared norm; they sum up to 1."""
        squares = {key: float(part.double().square().sum()) for key, part in self.split(vector).items()}
        total = sum(squares.values()) or 1.0
        return {key: square / total for key, square in squares.items()}

    def movement(self, vector: Tensor, run: Callable[[], Any]) -> float:
        """Return how far ``W x`` moves the ops' outputs while ``run`` runs the model at W = 0; dimensionless.

        It is ``sqrt(sum_s |W_s x_s|^2 / |f_s(x_s)|^2)``, sums over all rows of all batches: 1 stands for the output of
        one op by 100 %, or those of four ops by 50 % each.
        """
        weights, moved = dict(zip(self.branches, self.weights(vector), strict=True)), dict.fromkeys(self.branches, 0.0)

        def watch(key: str, x: Tensor, output: Tensor) -> None:
            nothing = torch.zeros_like(output.detach())
            added = self.branches[key].form.add(nothing, (weights[key],), x.detach())
            moved[key] += float(added.double().square().sum())

        with _watched(self.branches, watch):
            run()
        return float(sum(square / self.sizes[key].reference for key, square in moved.items()) ** 0.5)


class BranchLoss:
    """The loss of a batch as a function of v, near 0.

    Args:
        run: batch to loss, shape (), with gradients enabled.
        coordinates: of the branches in the model, whose W are 0 and whose theta is 1.

    Attributes:
        method: how products with the Hessian are computed.
        reason: why not by double backward; empty if so.
    """

    def __init__(self, run: Callable[[Any], Tensor], coordinates: Coordinates) -> None:
        self.run, self.coordinates = run, coordinates
        self.method: Method = "double backward"
        self.reason = ""

    def only(self, key: str) -> BranchLoss:
        """Return the loss as a function of one site's v alone."""
        one = BranchLoss(self.run, self.coordinates.only(key))
        one.method, one.reason = self.method, self.reason
        return one

    def gradient(self, batch: Any) -> tuple[float, Tensor]:
        """Return the loss and its transverse gradient."""
        loss = self.run(batch)
        gradients = torch.autograd.grad(loss, self.coordinates.parameters, allow_unused=True)
        return float(loss.detach()), self.coordinates.pull_back(gradients)

    def product(self, batches: Sequence[Any], vector: Tensor) -> Tensor:
        """Return ``H v``, the transverse part of the mean Hessian over batches times a vector."""
        return torch.stack([self._product(batch, vector) / len(batches) for batch in batches]).sum(0)

    def curvature(self, batch: Any, vector: Tensor) -> float:
        """Return ``v^T H v`` on one batch."""
        return float((vector.double() * self._product(batch, vector).double()).sum())

    def check(self, batch: Any, vector: Tensor) -> None:
        """Choose central differences if the double backward fails on a batch, or disagrees with them.

        A function whose backward is written by hand may be differentiated a second time without an error and wrongly.
        Kinks, as those of ReLU, count in differences only.
        """
        exact = self._product(batch, vector)
        if self.method == "central differences":
            return
        differences, gradient = self._differences(batch, vector), self.gradient(batch)[1]
        rounding = 10 * torch.finfo(vector.dtype).eps / self._step(vector) * gradient.norm()
        deviation, size = (exact - differences).norm(), exact.norm()
        if not deviation <= AGREEMENT * size + rounding:
            self.method = "central differences"
            self.reason = f"the double backward deviates from them by {float(deviation / size):.0%}"

    def _product(self, batch: Any, vector: Tensor) -> Tensor:
        if self.method == "double backward":
            try:
                return self._twice(batch, vector)
            except SurgeonError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                self.method = "central differences"
                self.reason = f"the model cannot be differentiated twice ({one_line(error)})"
        return self._differences(batch, vector)

    def _twice(self, batch: Any, vector: Tensor) -> Tensor:
        parameters = self.coordinates.parameters
        gradients = torch.autograd.grad(self.run(batch), parameters, create_graph=True, allow_unused=True)
        pairs = zip(gradients, self.coordinates.weights(vector), strict=True)
        slopes = [(gradient * weight).sum() for gradient, weight in pairs if gradient is not None]
        slopes = [slope for slope in slopes if slope.requires_grad]
        if not slopes:  # the loss is linear in W
            return torch.zeros_like(vector)
        return self.coordinates.pull_back(torch.autograd.grad(sum(slopes), parameters, allow_unused=True))  # type: ignore[arg-type]

    def _differences(self, batch: Any, vector: Tensor) -> Tensor:
        step = self._step(vector)
        ends = []
        for sign in (1, -1):
            with self.moved(sign * step * vector):
                ends.append(self.gradient(batch)[1])
        return (ends[0] - ends[1]) / (2 * step)

    @staticmethod
    def _step(vector: Tensor) -> float:
        """Return the step at which rounding and the next order are about equal: outputs move by 0.5 % in float32."""
        return float(torch.finfo(vector.dtype).eps ** (1 / 3))

    @contextmanager
    def moved(self, vector: Tensor) -> Iterator[None]:
        """Set W to a vector while the context is open, and to 0 afterwards."""
        try:
            with torch.no_grad():
                for parameter, weight in zip(
                    self.coordinates.parameters, self.coordinates.weights(vector), strict=True
                ):
                    parameter.copy_(weight)
            yield
        finally:
            with torch.no_grad():
                for parameter in self.coordinates.parameters:
                    parameter.zero_()
