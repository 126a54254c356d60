"""What finished runs say by one metric: the best rates, differences paired by seed, and whether they are gains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surgeon.training.outcomes import ArmRun, Outcome, Point
from surgeon.training.statistics import Estimate

FRESH = 6
"""The first seed of a confirmation."""


@dataclass(frozen=True)
class Measure:
    """A metric of the validation and test splits, and how it is shown.

    Attributes:
        metric: that decides; an error, unless it is an accuracy.
        words: what it is, with its unit.
        other: another one that is shown beside it.
        other_words: what that is.
        data: what one of the splits consists of, in the plural.
        factor: both are multiplied by it.
        accuracy: large is good, and differences are in points instead of percent.
    """

    metric: str
    words: str
    other: str
    other_words: str
    data: str
    factor: float = 1.0
    accuracy: bool = False

    @property
    def both(self) -> tuple[str, str]:
        """Both metrics."""
        return self.metric, self.other

    @property
    def unit(self) -> str:
        """Of differences."""
        return "points" if self.accuracy else "%"

    def better(self, first: float, second: float) -> bool:
        """Whether the first of two values is the better one; NaN never is."""
        return first > second if self.accuracy else first < second

    def difference(self, mine: float, theirs: float) -> float:
        """Return how much more one test result is than another, in percent or points."""
        return 100 * (mine - theirs) if self.accuracy else 100 * (mine / theirs - 1)

    def gain(self, difference: Estimate | None) -> bool:
        """Whether the whole interval of a difference is on the good side."""
        return difference is not None and self.better(difference.low if self.accuracy else difference.high, 0.0)

    def loss(self, difference: Estimate | None) -> bool:
        """Whether the whole interval of a difference is on the bad side."""
        return difference is not None and self.better(0.0, difference.high if self.accuracy else difference.low)


def chosen(runs: Mapping[Point, Outcome], measure: Measure) -> dict[str, tuple[float, float]]:
    """Return for every arm its best learning rate on validation data, and the metric there: the mean over seeds."""
    tries: dict[tuple[str, float], list[float]] = {}
    for point, run in runs.items():
        if not point.test:
            value = run.validation[measure.metric] if isinstance(run, ArmRun) else math.nan
            tries.setdefault((point.arm, point.learning_rate), []).append(value)
    best: dict[str, tuple[float, float]] = {}
    for (arm, rate), values in tries.items():
        value = statistics.fmean(values)
        if math.isfinite(value) and (arm not in best or measure.better(value, best[arm][1])):
            best[arm] = rate, value
    return best


def tuned(best: Mapping[str, tuple[float, float]], measure: Measure, arms: Sequence[str]) -> str:
    """Return the one of some arms that is best on validation data."""
    order = sorted((arm for arm in best if arm in arms), key=lambda arm: best[arm][1], reverse=measure.accuracy)
    return order[0]


def tuned_adamw(best: Mapping[str, tuple[float, float]], measure: Measure) -> str:
    """Return plain training by AdamW with the value of beta2 that is best on validation data."""
    return tuned(best, measure, [arm for arm in best if arm.startswith("plain@adamw")])


def plain_of(arm: str) -> str:
    """Return plain training by the same optimiser: ``plain@soap`` of ``drop@soap+branch_factor=1``."""
    optimizer, *settings = arm.partition("@")[2].split("+")
    return "+".join([f"plain@{optimizer}", *(each for each in settings if each.startswith("beta2="))])


def tested(runs: Mapping[Point, Outcome], arm: str, rate: float, fresh: bool) -> dict[int, ArmRun]:
    """Return the final runs of an arm at a rate by seed: those of the confirmation, or the others."""
    mine = {point: run for point, run in runs.items() if (point.arm, point.learning_rate) == (arm, rate)}
    found = {point.seed: run for point, run in mine.items() if point.test and (point.seed >= FRESH) == fresh}
    return {seed: run for seed, run in sorted(found.items()) if isinstance(run, ArmRun)}


def against(mine: Mapping[int, ArmRun], theirs: Mapping[int, ArmRun], measure: Measure) -> Estimate | None:
    """Estimate the difference on test data, paired by seed; None without a common seed."""
    pairs = [(mine[seed].test[measure.metric], theirs[seed].test[measure.metric]) for seed in mine if seed in theirs]
    return Estimate.of([measure.difference(*pair) for pair in pairs]) if pairs else None


def probability(values: Sequence[float]) -> str:
    """Return p of Student's t test of no difference, two-sided."""
    from scipy.stats import ttest_1samp

    p = float(ttest_1samp(values, 0.0).pvalue)
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def found_of(first: Estimate | None, fresh: Estimate | None, measure: Measure) -> str:
    """Return what the first seeds and fresh ones show: a key of ``WORDS``."""
    if measure.loss(first):
        return "worse"
    if not measure.gain(first):
        return "untold"
    if fresh is None:
        return "unconfirmed"
    return "confirmed" if measure.gain(fresh) else "refuted"


WORDS = {
    "worse": "is worse than tuned AdamW",
    "untold": "cannot be told from tuned AdamW",
    "unconfirmed": "is better with the first seeds; without fresh ones no gain is claimed",
    "confirmed": "is better with the first seeds, and fresh ones confirm it",
    "refuted": "is better with the first seeds, which fresh ones do not confirm: no gain is claimed",
}


def verdict(arm: str, first: Estimate | None, fresh: Estimate | None, measure: Measure) -> str:
    """Say in words what an arm shows against tuned AdamW; a gain is claimed only if fresh seeds show it again."""
    return f"{arm} {WORDS[found_of(first, fresh, measure)]}."
