"""The handle on a relaxed model: its coefficients, its penalty, and its clean evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from surgeon.branch import Branch, branches_of
from surgeon.forms import row_representations
from surgeon.groups import Group
from surgeon.regularizer import (
    Commutator,
    commutator_penalty_rows,
    gram_penalty,
    norm_penalty_rows,
)
from surgeon.schedule import Schedule
from surgeon.types import Plan, Site, StripMode

PenaltyForm = Literal["gram", "rows"]


class Relaxation:
    """A model with its branches in place.

    In anybody's own training loop three lines are enough: ``relaxation.set_progress(step / steps)`` before the
    forward, ``loss = loss + lam * relaxation.penalty()`` after it, and ``surgeon.strip(model)`` at the end.

    Attributes:
        model: the relaxed model, edited in place.
        plan: what was inserted.
        mode: "drop" or "fold": what stripping, and therefore clean evaluation, keeps of the branches.
        schedule: theta as a function of progress.
        branches: ``module.argument`` to branch.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        group: Group,
        mode: StripMode,
        schedule: Schedule,
        penalty_form: PenaltyForm,
    ) -> None:
        self.model = model
        self.plan = plan
        self.mode = mode
        self.schedule = schedule
        self.penalty_form = penalty_form
        self.branches: Mapping[str, Branch] = branches_of(model)
        cache: dict[str, Commutator] = {}
        self._commutators = {site.key: _commutator(cache, group, site) for site in plan.sites}
        self.enable_penalty(True)

    @property
    def theta(self) -> tuple[float, float]:
        """The present coefficients ``(theta_perp, theta_par)``; equal in mode "drop"."""
        first = next(iter(self.branches.values())).theta
        return float(first[0]), float(first[1])

    def set_theta(self, perpendicular: float, parallel: float | None = None) -> None:
        """Set the coefficients of all branches.

        Args:
            perpendicular: theta of what will be dropped.
            parallel: theta of the foldable part; default the same value.
        """
        values = (perpendicular, perpendicular if parallel is None else parallel)
        with torch.no_grad():
            for branch in self.branches.values():
                branch.theta.copy_(torch.tensor(values, dtype=branch.theta.dtype))
                branch.theta_was_set = True

    def set_progress(self, progress: float) -> None:
        """Set the coefficients from the schedule; ``progress`` in [0, 1] is the share of the training that is done."""
        perpendicular = self.schedule.perpendicular(progress)
        self.set_theta(perpendicular, perpendicular if self.mode == "drop" else self.schedule.parallel(progress))

    def enable_penalty(self, enabled: bool) -> None:
        """Switch the recording of input moments on or off; without it :meth:`penalty` has nothing to work on."""
        tapping: Literal["moments", "rows", "nothing"] = "nothing"
        if enabled:
            tapping = "moments" if self.penalty_form == "gram" else "rows"
        for branch in self.branches.values():
            branch.tapping = tapping
            branch.clear_tap()

    def penalty_terms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return per site the norm term and the defect term of eq. 5, on the inputs of the last training forward(s).

        What was recorded is forgotten afterwards. A site that saw no input since the last call is left out.
        """
        terms = {}
        for key, branch in self.branches.items():
            if not branch.row_count:
                continue
            commutator, weight = self._commutators[key], branch.matrix
            if self.penalty_form == "gram":
                terms[key] = gram_penalty(weight, branch.second_moment, commutator)
            else:
                rows = branch.rows()
                defect = commutator_penalty_rows(weight, commutator.rho_out, commutator.rho_in, rows, commutator)
                terms[key] = (norm_penalty_rows(weight, rows), defect)
            branch.clear_tap()
        return terms

    def penalty(self) -> Tensor:
        """Return the sum of all penalty terms, shape (): what eq. 5 multiplies by lambda.

        Call it once per optimiser step, after the forward; before any training forward it is 0.
        """
        terms = [term for pair in self.penalty_terms().values() for term in pair]
        if not terms:
            return next(iter(self.branches.values())).weight.new_zeros(())
        return torch.stack(terms).sum()

    @contextmanager
    def clean(self) -> Iterator[nn.Module]:
        """While the context is open the model computes what it would compute after stripping with this mode."""
        before = {branch: branch.clean for branch in self.branches.values()}
        for branch in before:
            branch.clean = True
        try:
            yield self.model
        finally:
            for branch, clean in before.items():
                branch.clean = clean

    def branch_parameters(self) -> list[nn.Parameter]:
        """Return the weights W of all branches."""
        return [branch.weight for branch in self.branches.values()]

    def base_parameters(self) -> list[nn.Parameter]:
        """Return the model's own parameters."""
        added = {id(parameter) for parameter in self.branch_parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in added]

    def defects(self) -> dict[str, float]:
        """Return per site ``sqrt(sum_A |L_A(W)|^2) / |W|`` without data; 0 for an intertwiner (or W = 0)."""
        result = {}
        with torch.no_grad():
            for key, branch in self.branches.items():
                norm = float(branch.weight.norm())
                result[key] = float(self._commutators[key](branch.matrix).norm()) / norm if norm else 0.0
        return result


def _commutator(cache: dict[str, Commutator], group: Group, site: Site) -> Commutator:
    """Build the operators of a pair of representations once, however many sites share it."""
    rho_out, rho_in = row_representations(site, group)
    key = json.dumps([rho_out.to_data(), rho_in.to_data()])
    if key not in cache:
        cache[key] = Commutator(rho_out, rho_in)
    return cache[key]
