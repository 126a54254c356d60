"""How a search halves: how long its rounds are within a budget, and the books that optuna keeps of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from surgeon.errors import UsageError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FACTOR = 3
"""One of so many settings goes on to the next round, rounded up."""

LOG_FILE = "optuna.log"


def rounds_within(budget: float, settings: int, epochs: int, every: int = 1) -> dict[int, int]:
    """Return the rounds of a successive halving: the epoch at which each ends, and how many settings then go on.

    The first round is as long as the budget allows, and the others are spaced geometrically from it to the whole
    training, which two settings finish.

    Args:
        budget: epochs of all runs together, the whole trainings of the last two included.
        settings: how many are tried.
        every: epochs between evaluations, at which alone a round can end.

    Raises:
        UsageError: if the budget is too small for the shortest rounds.

    Example:
        >>> rounds_within(40, 9, 10)
        {2: 3, 4: 2, 10: 1}
        >>> rounds_within(60, 9, 10)
        {5: 3, 7: 2, 10: 1}
    """
    going = [settings]
    while going[-1] > 2:
        going.append(max(2, math.ceil(going[-1] / FACTOR)))
    if settings > 1:
        going.append(1)
    found: dict[int, int] | None = None
    for first in range(every, epochs + every, every):
        first = min(first, epochs)
        ratios = ((first / epochs) ** (left / max(1, len(going) - 2)) for left in reversed(range(len(going) - 1)))
        ends = [min(epochs, max(1, round(epochs * ratio / every)) * every) for ratio in ratios]
        cost = _cost(going, [*ends, epochs])
        if cost > budget and found is None:
            least = math.ceil(100 * cost / epochs) / 100
            raise UsageError(
                f"expected a budget of at least {least:g} whole trainings for {settings} settings, got "
                f"{budget / epochs:.3g}: write --budget {least:g}x, or try fewer settings"
            )
        if cost > budget:
            break
        found = dict(zip(ends, going[1:], strict=True))  # of two rounds that end together the second one decides
    return found or {}


def _cost(going: Sequence[int], ends: Sequence[int]) -> int:
    """Return the epochs of all runs, each of which goes on where it was."""
    return sum(count * (end - start) for count, start, end in zip(going, [0, *ends[:-1]], ends, strict=True))


@contextmanager
def books(folder: Path, direction: Literal["min", "max"], settings: Sequence[tuple[str, float]]) -> Iterator[Study]:
    """Open optuna's study of a search in its folder, with one running trial for every setting at first.

    What is told to it is in its journal at once, so that the same search goes on from there after a kill.

    Args:
        folder: of the search.
        direction: of the metric.
        settings: arm and learning rate of every trial, in order.

    Raises:
        UsageError: if optuna is not installed.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UsageError(
            "expected optuna for --auto, it is not installed: run `pip install 'equisurgeon[auto]'`"
        ) from error
    log, verbosity = folder / LOG_FILE, optuna.logging.get_verbosity()
    _mend(log)
    optuna.logging.set_verbosity(logging.WARNING)
    try:
        study = optuna.create_study(
            study_name="surgeon",
            storage=optuna.storages.JournalStorage(JournalFileBackend(str(log))),
            sampler=optuna.samplers.RandomSampler(0),  # asked for nothing: every setting is named
            direction="minimize" if direction == "min" else "maximize",
            load_if_exists=True,
        )
        add(study, settings[len(study.get_trials(deepcopy=False)) :])
        yield study
    finally:
        optuna.logging.set_verbosity(verbosity)


def _mend(log: Path) -> None:
    """Take off what a killed process leaves: half a line at the end, and a lock that nobody holds."""
    if log.is_file():
        written = log.read_bytes()
        if not written.endswith(b"\n"):
            log.write_bytes(written[: written.rfind(b"\n") + 1])
    log.with_name(f"{log.name}.lock").unlink(missing_ok=True)


def add(study: Study, settings: Sequence[tuple[str, float]]) -> None:
    """Add one running trial for every setting, arm and learning rate."""
    from optuna.trial import TrialState, create_trial

    for arm, rate in settings:
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={"arm": arm, "learning_rate": rate}))


def enter(study: Study, trial: FrozenTrial, epoch: int, value: float, **known: float | int | str) -> None:
    """Enter what a trial has reached at the end of a round; NaN if it diverged."""
    from optuna.trial import Trial

    entered = Trial(study, trial._trial_id)
    for name, each in known.items():
        entered.set_user_attr(name, each)
    entered.report(value, epoch)


def halve(study: Study, epoch: int, going: int, keep: int | None = None) -> list[FrozenTrial]:
    """Drop all trials but the best at the end of a round, and return those that were dropped by this call.

    Not optuna's own pruner of this name: it judges a trial by those that came before, so that the first one is never
    dropped, and what is dropped cannot go on.

    Args:
        study: in which all that run have reached the epoch.
        keep: number of a trial that is among those that go on, unless it diverged or only one does.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    there = running(study)
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    finite = [trial for trial in there if not math.isnan(trial.intermediate_values[epoch])]
    best = sorted(finite, key=lambda trial: (sign * trial.intermediate_values[epoch], trial.number))
    if going > 1:
        best.sort(key=lambda trial: trial.number != keep)
    kept, dropped = {trial.number for trial in best[:going]}, []
    for trial in there:
        if trial.number not in kept:
            diverged = math.isnan(trial.intermediate_values[epoch])
            study.tell(trial.number, state=TrialState.FAIL if diverged else TrialState.PRUNED)
            dropped.append(trial)
    return dropped


def running(study: Study) -> list[FrozenTrial]:
    """Return the trials that are neither dropped nor finished."""
    from optuna.trial import TrialState

    found: list[FrozenTrial] = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return found


def setting_of(trial: FrozenTrial) -> tuple[str, float]:
    """Return arm and learning rate of a trial."""
    named: Mapping[str, Any] = trial.user_attrs
    return named["arm"], named["learning_rate"]
