"""The handle on a relaxed model: its coefficients, its penalty, and its clean evaluation."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from surgeon.algebra.moments import average_over_processes, mean_of_each, processes, rows_per_process
from surgeon.algebra.penalty import Commutator, SitePenalty, site_penalty
from surgeon.algebra.penalty_settings import PenaltySettings
from surgeon.algebra.representations.core import Representation
from surgeon.algebra.schedule import Schedule, schedule_of
from surgeon.editing.branch import Branch, Tap, branches_of
from surgeon.editing.select import matching_sites
from surgeon.errors import UsageError
from surgeon.finding.forms import row_representations
from surgeon.plan import Plan, Site, StripMode
from surgeon.support.modes import each_with

NOTHING_RECORDED = (
    "the penalty is 0, since no branch recorded features: call the model in training mode and with gradients "
    "(model.train()) before penalty()"
)
NOTHING_NEW = (
    "the penalty is that of earlier features, since the branches whose turn it was ({}) recorded none: call the model "
    "in training mode and with gradients before every penalty(), unless the batch does not use them"
)
_OFFSET_STEP = math.sqrt(2) - 1


class Relaxation:
    """A model with its branches in place.

    In anybody's own training loop three lines are enough: ``relaxation.set_progress(step / steps)`` before the
    forward, ``loss = loss + lam * relaxation.penalty()`` after it, and ``surgeon.strip(model)`` at the end.

    Attributes:
        model: the relaxed model, edited in place.
        plan: what was inserted.
        mode: "drop" or "fold": what stripping, and therefore clean evaluation, keeps of the branches.
        schedule: theta as a function of progress.
        penalty_settings: how the penalty is computed.
        branches: ``module.argument`` to branch.
        commutators: the same to W -> L(W), all its defects.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        mode: StripMode,
        schedule: Schedule,
        penalty: PenaltySettings,
    ) -> None:
        self.model = model
        self.plan = plan
        self.mode = mode
        self.branches: Mapping[str, Branch] = branches_of(model)
        self.schedule = schedule
        cache: dict[tuple[Representation, Representation], Commutator] = {}
        self.commutators = {site.key: _commutator(cache, site) for site in plan.sites}
        self.set_penalty(penalty)

    def __repr__(self) -> str:
        """In one line: how many branches, and how they act now."""
        thetas = ", ".join(sorted({f"{theta[0]:g}" for theta in self.thetas.values()}))
        form = self.penalty_settings.form if self.penalty_settings is not None else "off"
        return (
            f"Relaxation({type(self.model).__name__}, {len(self.branches)} branches under {self.plan.group}, mode "
            f"{self.mode!r}, theta {thetas}, penalty {form!r})"
        )

    @property
    def schedule(self) -> Schedule:
        """Theta as a function of progress."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule | str) -> None:
        schedule = schedule_of(schedule)
        self._shares = theta_shares(schedule, self.plan)
        self._schedule = schedule

    @property
    def theta(self) -> tuple[float, float]:
        """The present coefficients ``(theta_perp, theta_par)`` of the first branch; equal in mode "drop"; 0 without."""
        if not self.branches:
            return 0.0, 0.0
        first = next(iter(self.branches.values())).theta
        return float(first[0].detach()), float(first[1].detach())

    @property
    def thetas(self) -> dict[str, tuple[float, float]]:
        """The present coefficients of every branch."""
        return {key: tuple(branch.theta.detach().tolist()) for key, branch in self.branches.items()}

    def set_theta(self, perpendicular: float, parallel: float | None = None) -> None:
        """Set the coefficients of all branches.

        Args:
            perpendicular: theta of what will be dropped.
            parallel: theta of the foldable part; default the same value.
        """
        values = (perpendicular, perpendicular if parallel is None else parallel)
        self.set_thetas(dict.fromkeys(self.branches, values))

    def set_thetas(self, values: Mapping[str, Sequence[float]]) -> None:
        """Set the coefficients ``(theta_perp, theta_par)`` of some branches, by key.

        Raises:
            UsageError: if a coefficient is no finite number; none is set then.
        """
        for key, pair in values.items():
            if not all(math.isfinite(value) for value in pair):
                raise UsageError(f"expected finite coefficients theta of the branch at {key!r}, got {tuple(pair)}")
        with torch.no_grad():
            for key, pair in values.items():
                branch = self.branches[key]
                branch.theta.copy_(torch.tensor(pair, dtype=branch.theta.dtype))
                branch.theta_was_set = True

    def set_progress(self, progress: float, scale: float = 1.0) -> None:
        """Set the coefficients from the schedule.

        Args:
            progress: in [0, 1], the share of the training that is done.
            scale: multiplies theta of what will be dropped.

        Raises:
            UsageError: if the progress is outside [0, 1].
        """
        perpendicular = scale * self.schedule.perpendicular(progress)
        parallel = perpendicular if self.mode == "drop" else self.schedule.parallel(progress)
        self.set_thetas({key: (share * perpendicular, share * parallel) for key, share in self._shares.items()})

    def learn_theta(self, learned: bool) -> None:
        """Make the coefficients leaves that gradients reach, or plain numbers again."""
        for branch in self.branches.values():
            branch.theta.grad = None
            branch.theta.requires_grad_(learned)

    def find_folds(self) -> None:
        """Find out what all ops can take in while they can be copied; sharded ones cannot.

        Raises:
            PlanError: if an op cannot be run as the plan says.
        """
        for branch in self.branches.values():
            _ = branch.fold_map

    def set_penalty(self, penalty: PenaltySettings | None) -> None:
        """Choose how the penalty is computed from now on; None switches it, and the recording for it, off."""
        self.penalty_settings = penalty
        self._turn = 0
        self._terms: dict[str, SitePenalty] = {}
        self._record()

    def enable_penalty(self, enabled: bool) -> None:
        """Switch the recording of inputs on or off; without it :meth:`penalty` has nothing to work on."""
        self.set_penalty((self.penalty_settings or PenaltySettings()) if enabled else None)

    def _is_due(self, number: int) -> bool:
        """Tell whether a site is computed anew at the coming step; at the first step all are."""
        settings = self.penalty_settings
        return settings is not None and (self._turn == 0 or (self._turn + number) % settings.every == 0)

    def _record(self) -> None:
        settings = self.penalty_settings
        offset = self._turn * _OFFSET_STEP % 1.0
        grams: dict[Any, tuple[Tensor, Tensor]] = {}
        for number, branch in enumerate(self.branches.values()):
            due = settings is not None and self._is_due(number)
            branch.record(Tap(settings.form == "rows", settings.rows, offset, grams) if settings and due else None)

    def penalty(self, *, may_be_empty: bool = False) -> Tensor:
        """Return the sum of all penalty terms, shape (): what eq. 5 multiplies by lambda.

        Call it once per optimiser step, after all its forwards, in every process of torch.distributed: what they
        recorded is used, averaged over processes, and forgotten. A site that saw no input in any process is left out;
        if none saw any, it is 0 and warns.

        Args:
            may_be_empty: do not warn, since the caller looks at :meth:`penalty_terms` itself.
        """
        due = [key for number, key in enumerate(self.branches) if self._is_due(number)]
        for key in due:
            self._terms.pop(key, None)
        computed = self._computed(due)
        self._terms.update(computed)
        if self._terms:
            self._turn += 1
            self._record()
        if due and self._terms and not computed and not may_be_empty:
            warnings.warn(NOTHING_NEW.format(", ".join(map(repr, due))), stacklevel=2)
        weights = {key: self.branches[key].factors for key in self._terms}
        flat = [weight for factors in weights.values() for weight in factors]
        if not flat:
            if self.penalty_settings is not None and not may_be_empty:
                warnings.warn(NOTHING_RECORDED, stacklevel=2)
            return next(iter(self.branches.values())).theta.new_zeros(())
        gradients = [gradient for key in weights for gradient in self._terms[key].gradients]
        value = torch.stack([part for term in self._terms.values() for part in (term.norm, term.defect)]).sum()
        penalty: Tensor = _WithGradients.apply(value, gradients, *flat)  # type: ignore[no-untyped-call]
        return penalty

    def _computed(self, keys: Sequence[str]) -> dict[str, SitePenalty]:
        """Return the terms of those sites that saw an input in any process.

        What one process sees depends on its batches, while all have to send messages of the same form and end with the
        same terms: so these are about all ``keys``, with zeros for what a process did not see.
        """
        settings = self.penalty_settings
        moments = {key: self.branches[key].recorded for key in keys}
        counts: dict[str, float | None] = {key: None for key, moment in moments.items() if moment.count}
        together = processes() > 1
        if settings is None or not keys or not (counts or together):
            return {}
        for key in keys if together else ():
            if not moments[key].count:
                moments[key].add(self.branches[key].theta.new_zeros(0, moments[key].dimension))
        if together and settings.form == "rows":
            # a mean over rows is the mean over processes of local sums over the rows per process
            means = rows_per_process([moment.count for moment in moments.values()])
            counts = {key: mean for key, mean in zip(keys, means, strict=True) if mean}
        elif together:
            average_over_processes(list(moments.values()))
            counts = {key: None for key, moment in moments.items() if moment.count}
        terms = {
            key: site_penalty(self.branches[key].factors, moments[key], self.commutators[key], settings.form, count)
            for key, count in counts.items()
        }
        if together and terms and settings.form == "rows":
            return _averaged(terms)
        return terms

    def penalty_terms(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return, per site, the norm term and the defect term that the last :meth:`penalty` summed up; detached."""
        return {key: (term.norm, term.defect) for key, term in self._terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume needs besides the model's state dict: thetas, and the penalty's turn and gradients."""
        gradients = {
            f"{key}:{number}": gradient
            for key, term in self._terms.items()
            for number, gradient in enumerate((term.norm, term.defect, *term.gradients))
        }
        return {"turn": self._turn, "thetas": self.thetas, "penalty": gradients}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            KeyError: if it belongs to other sites.
        """
        self.set_thetas(state["thetas"])
        self._turn = int(state["turn"])
        found: dict[str, list[Tensor]] = {}
        for name, tensor in state["penalty"].items():
            found.setdefault(name.rpartition(":")[0], []).append(tensor)
        like = {key: branch.theta for key, branch in self.branches.items()}
        self._terms = {}
        for key, tensors in found.items():
            norm, defect, *gradients = (tensor.to(like[key].device) for tensor in tensors)
            self._terms[key] = SitePenalty(norm, defect, tuple(gradients))
        self._record()

    @contextmanager
    def clean(self) -> Iterator[nn.Module]:
        """While the context is open the model computes what it would compute after stripping with this mode.

        Where a fold is exact only while something is constant, it is so only where that is (:func:`check_folds`).
        Running statistics stay those that the relaxed model has gathered;
        :meth:`surgeon.training.session.TrainingSession.clean_evaluation` takes them anew.
        """
        with each_with(self.branches.values(), "clean", True):
            yield self.model

    def unseen(self) -> AbstractContextManager[None]:
        """While the context is open, forwards record nothing for the penalty."""
        return each_with(self.branches.values(), "tap", None)

    def branch_parameters(self) -> list[nn.Parameter]:
        """Return the weights of all branches: W, or its factors."""
        return [parameter for branch in self.branches.values() for parameter in branch.parameters()]

    def modules(self) -> Iterator[nn.Module]:
        """Yield the modules that hold them."""
        yield from self.branches.values()

    def base_parameters(self) -> list[nn.Parameter]:
        """Return the model's own parameters."""
        added = {id(parameter) for parameter in self.branch_parameters()}
        return [parameter for parameter in self.model.parameters() if id(parameter) not in added]

    def defects(self) -> dict[str, float]:
        """Return per site ``sqrt(sum_A |L_A(W)|^2) / |W|`` without data; 0 for an intertwiner (or W = 0)."""
        result = {}
        with torch.no_grad():
            for key, branch in self.branches.items():
                norm = float(branch.masked.norm())
                result[key] = float(self.commutators[key](branch.matrix).norm()) / norm if norm else 0.0
        return result


def _averaged(terms: Mapping[str, SitePenalty]) -> dict[str, SitePenalty]:
    """Return the mean over processes; gradients too, so that every process keeps the same until a site's next turn."""
    parts = {key: (term.norm, term.defect, *term.gradients) for key, term in terms.items()}
    means = iter(mean_of_each([part for of_site in parts.values() for part in of_site]))
    result = {}
    for key, of_site in parts.items():
        norm, defect, *gradients = (next(means) for _ in of_site)
        result[key] = SitePenalty(norm, defect, tuple(gradients))
    return result


class _WithGradients(torch.autograd.Function):
    """A number with given gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor, gradients: list[Tensor], *weights: Tensor) -> Tensor:
        """Return the number."""
        context.gradients = gradients
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients."""
        return None, None, *torch._foreach_mul(context.gradients, gradient)


def theta_shares(schedule: Schedule, plan: Plan) -> dict[str, float]:
    """Return the share of theta that every site gets.

    Raises:
        PlanError: if a pattern of the schedule matches no site.
    """
    shares = {site.key: 1.0 for site in plan.sites}
    for pattern, share in schedule.sites:
        matching = [site.key for site in matching_sites(plan.sites, pattern, "the schedule's pattern")]
        shares.update(dict.fromkeys(matching, share))
    return shares


def _commutator(cache: dict[tuple[Representation, Representation], Commutator], site: Site) -> Commutator:
    """Build the operators of a pair of representations once, however many sites share it."""
    pair = row_representations(site)
    if pair not in cache:
        cache[pair] = Commutator(*pair)
    return cache[pair]
