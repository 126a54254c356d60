"""How much every branch does beside its op, and how far it breaks the symmetry, on features of an evaluation.

Fig. 3 of the paper. Nothing is run again and no random number is drawn: what the branches see anyway in the first
calls of a forward is looked at, at no more than a few rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from surgeon.algebra.moments import mean_over_processes, processes
from surgeon.editing.relaxation import Relaxation
from surgeon.finding.forms import some_rows, some_rows_out
from surgeon.support.transforms import no_transforms, outside

ROWS, CALLS = 128, 2
"""Rows that are looked at in each call of a branch, and calls."""

DIGITS = 4
"""That are recorded."""


class SiteUse:
    """Rows x of every site, with what its op returned for them, and what the branch adds to that.

    Here f_e is the op, with the branches before this one where it has several, and f x = f_e x + theta W x. Since f_e
    commutes with the group, as the plan has verified, ``L_A(f) = theta L_A(W)``: so nothing has to be transformed.

    Args:
        relaxation: the handle on the branches.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        self._relaxation = relaxation
        self._keys = [site.key for site in relaxation.plan.sites]
        self._seen: dict[str, list[tuple[Tensor, Tensor]]] = {key: [] for key in self._keys}

    def see(self, key: str, x: Tensor, output: Tensor) -> None:
        """Keep some rows of one call; ``output`` is what the op returned for features ``x``."""
        if len(self._seen[key]) == CALLS:
            return
        form = self._relaxation.branches[key].form
        with no_transforms():
            rows = some_rows(form, outside(x).detach(), ROWS, 0.0)
            without = some_rows_out(form, outside(output).detach(), ROWS, 0.0)
            if len(rows) == len(without):  # or else the op's result has been spread over further rows
                self._seen[key].append((rows.clone(), without.clone()))

    def ratios(self) -> dict[str, list[float | None]]:
        """Return what was seen in all processes, which have to call this together, in the order of the plan.

        Call it before anything else changes the coefficients or W.

        Returns:
            "share", ``|Wx| / |f_e x|``, and "lie", ``sqrt(sum_A |L_A(f) x|^2) / |f x|``, root mean squares over rows;
            None for what was not seen or is not finite.
        """
        sums = torch.stack([self._squares(key) for key in self._keys])
        found = (mean_over_processes(sums) if processes() > 1 else sums).tolist()
        return {
            "share": [_ratio(own, base) for own, base, _, _ in found],
            "lie": [_ratio(defect, relaxed) for _, _, relaxed, defect in found],
        }

    @torch.no_grad()
    def _squares(self, key: str) -> Tensor:
        """Return ``|Wx|^2``, ``|f_e x|^2``, ``|f x|^2`` and ``sum_A |L_A(f) x|^2``, summed over rows; shape (4,)."""
        branch, device = self._relaxation.branches[key], self._relaxation.branches[key].theta.device.type
        if not self._seen[key]:
            return branch.theta.new_zeros(4, dtype=torch.float64)
        dtype = torch.promote_types(branch.theta.dtype, torch.float32)
        rows, without = (torch.cat(parts).to(dtype) for parts in zip(*self._seen[key], strict=True))
        with torch.autocast(device, enabled=False):
            applied = branch.effective_weight(dtype).flatten(1)
            defects = self._relaxation.commutators[key](applied) @ rows.T
            values = (rows @ branch.matrix.to(dtype).T, without, without + rows @ applied.T, defects)
        return torch.stack([torch.linalg.vector_norm(value).double().square() for value in values])


@contextmanager
def watched(relaxation: Relaxation) -> Iterator[SiteUse]:
    """While the context is open, what the branches do in forwards of the model is looked at; it changes nothing."""
    use = SiteUse(relaxation)

    def hook(key: str) -> Callable[[nn.Module, tuple[Tensor, Tensor], Tensor], None]:
        return lambda branch, given, result: use.see(key, *given)

    with ExitStack() as stack:
        for key, branch in relaxation.branches.items():
            stack.callback(branch.register_forward_hook(hook(key)).remove)
        yield use


def _ratio(of: float, to: float) -> float | None:
    ratio = math.sqrt(of / to) if to > 0 else math.nan
    return float(f"{ratio:.{DIGITS}g}") if math.isfinite(ratio) else None
