"""One protocol for all tables: a sweep for every arm, final runs at equal steps, fresh ones, and runs of equal time.

For every arm one grid of learning rates is tried on validation data, with one seed or several, and extended while the
best lies at an edge. AdamW is tried with three values of beta2, and lower ones while the lowest is the best; the best
of them is what others are compared with, on test data and with seeds of their own. Arms with branches are then tried
with that AdamW and with the optimiser that is best of all. Whatever costs more per step than tuned AdamW and is better
at equal steps is also run with as many steps as take its time. A confirmation repeats what won once, with fresh seeds
and, where data are generated, fresh data.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from findings import FRESH, Measure, against, chosen, tested, tuned, tuned_adamw
from lines import BESIDE, Lines
from step_cost import step_seconds
from torch import nn

from surgeon.plan import Plan, Split
from surgeon.training.arms import ARMS, Contender
from surgeon.training.comparison import Comparison, run_arms
from surgeon.training.sweep import sweep

LOWEST = 0.9


def _adamw(beta2: float) -> str:
    return f"plain@adamw+beta2={beta2}"


ADAMW = tuple(_adamw(beta2) for beta2 in (LOWEST, 0.95, 0.999))
SEEDS, FRESH_SEEDS = tuple(range(1, FRESH)), tuple(range(FRESH, 11))


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Attributes:
        measure: the metric that decides.
        grid: learning rates that every arm is tried with first.
        others: plain training by other optimisers.
        branches: arms with branches or updates, as ``drop`` or ``drop+branch_factor=1``; each gets its optimisers here.
        by_both: train these by the better of the other optimisers even where tuned AdamW is the best of all.
        default: an arm and its rate that are run whatever the sweep says; None for none.
        sweep_seeds: seeds of the sweep; the mean over them decides.
    """

    measure: Measure
    grid: Sequence[float]
    others: Sequence[str]
    branches: Sequence[str] = ()
    by_both: bool = False
    default: tuple[str, float] | None = None
    sweep_seeds: Sequence[int] = (0,)

    def with_branches(self, best: Mapping[str, tuple[float, float]]) -> list[str]:
        """Return the arms with branches, trained by tuned AdamW and by the best optimiser."""
        if not self.branches:
            return []
        adamw, other = tuned_adamw(best, self.measure), tuned(best, self.measure, self.others)
        wins = tuned(best, self.measure, [adamw, other]) == other
        optimizers = [adamw, other] if wins or self.by_both else [adamw]
        return [_trained_by(branch, plain) for branch in self.branches for plain in optimizers]


def _trained_by(branch: str, plain: str) -> str:
    """Return the name of an arm: ``drop+branch_factor=1`` and ``plain@soap`` give ``drop@soap+branch_factor=1``."""
    arm, plus, own = branch.partition("+")
    return f"{arm}@{plain.partition('@')[2]}{plus}{own}"


class InLargeBatches:
    """A task whose validation and test data come in batches of another size, which is faster and changes no metric."""

    def __init__(self, task: Any, size: int) -> None:
        self._task, self._large = task, dataclasses.replace(task, batch_size=size)

    def batches(self, split: Split, seed: int) -> Any:
        """Return the batches of a split."""
        return (self._task if split == "train" else self._large).batches(split, seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def shared_settings(comparison: Comparison) -> dict[str, Any]:
    """Return the settings that all runs share, for the context of the lines."""
    settings = comparison.settings.to_data()
    return {name: value for name, value in settings.items() if name not in ("seed", "learning_rate")}


def run_protocol(comparison: Comparison, lines: Lines, protocol: Protocol, fresh: Comparison | None = None) -> None:
    """Run what is missing.

    Args:
        lines: those of the comparison; its context has :func:`shared_settings` under "settings".
        fresh: what a confirmation runs: the same comparison, or one on fresh data; None for no confirmation.
    """
    measure, execute = protocol.measure, lines.execute(comparison)
    tries = (protocol.grid, protocol.sweep_seeds, execute, lines)
    sweep(comparison, [*ADAMW, *protocol.others], *tries)
    lower = LOWEST
    while tuned_adamw(chosen(lines, measure), measure) == _adamw(lower) and lower > 0:
        lower = round(lower - 0.1, 1)
        sweep(comparison, [_adamw(lower)], *tries)
    arms = protocol.with_branches(chosen(lines, measure))
    if arms:
        sweep(comparison, arms, *tries)
    best = chosen(lines, measure)
    adamw = tuned_adamw(best, measure)
    arms = [*protocol.others, *arms]
    rates = {arm: best[arm][0] for arm in (adamw, *arms)}
    print(f"best rates {json.dumps(rates)}", flush=True)
    run_arms(comparison, list(rates), SEEDS, rates, execute, lines)
    reference = tested(lines, adamw, rates[adamw], False)
    found = {arm: against(tested(lines, arm, rates[arm], False), reference, measure) for arm in arms}
    gained = [arm for arm in arms if measure.gain(found[arm])]
    if protocol.default is not None:
        arm, rate = protocol.default
        run_arms(comparison, [arm], SEEDS, {arm: rate}, execute, lines)
        if fresh is not None and arm in gained:
            run_arms(fresh, [arm], FRESH_SEEDS, {arm: rate}, lines.execute(fresh), lines)
    if fresh is not None and gained:
        run_arms(fresh, [adamw, *gained], FRESH_SEEDS, rates, lines.execute(fresh), lines)
    if lines.step_seconds.keys() < rates.keys():
        lines.keep_step_seconds(_costs(comparison, lines, rates, adamw) | lines.step_seconds)
    promising = [arm for arm in arms if measure.better(statistics.fmean(found[arm].values), 0.0)]
    run_equal_time(comparison, lines, promising, rates, adamw)


def _costs(comparison: Comparison, lines: Lines, arms: Collection[str], reference: str) -> dict[str, float]:
    """Return what a step of each arm takes, in seconds of the processor.

    With branches it is the median over the final runs. Arms without, and those of whose final runs it is not known, are
    timed in turn, in units of what the reference is known to take, if it is.
    """
    known: dict[str, float] = {}
    if any(Contender.parse(arm).arm is not ARMS["plain"] for arm in arms):
        finals = [(point.arm, seconds) for point, seconds in lines.step_times.items() if point.test]
        times = {arm: [seconds for name, seconds in finals if name == arm] for arm in arms}
        known = {arm: statistics.median(own) for arm, own in times.items() if own}
    rest = [arm for arm in arms if arm not in known]
    if not rest:
        return known
    found = step_seconds(comparison, dict.fromkeys([reference, *rest]))
    unit = (known | lines.step_seconds).get(reference, found[reference]) / found[reference]
    return {arm: unit * seconds for arm, seconds in found.items()} | known


def run_equal_time(
    comparison: Comparison, lines: Lines, arms: Sequence[str], rates: Mapping[str, float], reference: str
) -> None:
    """Run arms whose steps take longer than those of the reference for as many whole epochs as take its time."""
    whole = comparison.settings.epochs
    for arm in arms:
        epochs = int(whole * min(1.0, lines.step_seconds[reference] / lines.step_seconds[arm]))
        if epochs < whole:
            shorter = dataclasses.replace(comparison, settings=dataclasses.replace(comparison.settings, epochs=epochs))
            context = {**lines.context, "settings": {**lines.context["settings"], "epochs": epochs}}
            fewer = Lines(lines.path, context)
            run_arms(shorter, [arm], SEEDS, rates, fewer.execute(shorter), fewer)


def run_beside(
    comparison: Comparison, lines: Lines, protocol: Protocol, networks: Mapping[str, Callable[[], nn.Module]]
) -> None:
    """Run other networks with the same sweep of AdamW and the same seeds, each in lines of its own.

    Args:
        comparison, lines, protocol: of the network that they stand beside; ``comparison`` may have another task.
        networks: how to build each, by what it is called.
    """
    plain = dataclasses.replace(protocol, others=(), branches=(), default=None)
    for name, make in networks.items():
        print(name, flush=True)
        weights = [_trained(network) for network in (make(), comparison.make_model())]
        context = {**lines.context, BESIDE: {"network": name, "weights": weights}}
        own = dataclasses.replace(comparison, make_model=make, plan=Plan(comparison.plan.group, ()))
        run_protocol(own, Lines(lines.path, context), plain)


def _trained(network: nn.Module) -> int:
    """Return how many weights are trained."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
