"""Arms side by side: equal budgets, equal seeds, equal choice of the learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.editing.strip import strip
from surgeon.editing.weight_updates import WeightUpdates
from surgeon.errors import TrainingError, UsageError
from surgeon.opening.evaluation import evaluate, is_better
from surgeon.opening.loading import load_branches
from surgeon.opening.task_calls import primary_metric, task_batches
from surgeon.plan import Plan, Task
from surgeon.support.stages import Stages, timed
from surgeon.training.arms import Arm, Contender, require_fitting_plan, updates_of
from surgeon.training.engine import Finetuner
from surgeon.training.outcomes import ArmRun, Execute, Failure, Outcome, Point
from surgeon.training.progress import Progress, StepEvent
from surgeon.training.replay import teacher_of
from surgeon.training.settings import FinetuneSettings
from surgeon.training.state import FinetuneResult, random_state, set_random_state
from surgeon.training.statistics import require_equal_budgets

Added = Relaxation | WeightUpdates | None

SECOND_SEED = 1_000_003
"""Added to the seed of a run for that of its second start."""


@dataclass(frozen=True)
class Comparison:
    """What all runs of a comparison share.

    Attributes:
        make_model: returns a fresh copy of the pretrained network.
        settings: everything but seed and learning rate.
        start: initial weights of the branches by state-dict key; None starts at W = 0.
        judge: adds to a run what is to be found out about its stripped model; not asked in a sweep.
        probes: tasks on other data, on which the stripped model is evaluated, too; not in a sweep.
        keep: writes a run's best weights before they are stripped, given arm, seed, model, what the arm added, and the
            result; None to keep none, and not asked in a sweep.
    """

    make_model: Callable[[], nn.Module]
    plan: Plan
    task: Task
    settings: FinetuneSettings
    start: Mapping[str, Tensor] | None = None
    judge: Callable[[ArmRun, nn.Module], ArmRun] | None = None
    probes: Mapping[str, Task] = field(default_factory=dict)
    keep: Callable[[Contender, int, nn.Module, Added, FinetuneResult], None] | None = None

    def __post_init__(self) -> None:
        if self.settings.patience is not None:
            raise UsageError(
                f"expected equal budgets, got a patience of {self.settings.patience}, with which arms end at different "
                "steps: leave it out"
            )


def run_one(
    comparison: Comparison,
    contender: Contender,
    seed: int,
    rate: float,
    test: bool = True,
    progress: Progress | None = None,
) -> tuple[ArmRun, nn.Module]:
    """Train one arm with one seed, strip it, and measure what is left.

    Nothing random is left over from earlier runs, so that a run has one result in whatever order and process.

    Args:
        contender: the arm, with settings of its own.
        rate: learning rate of the base weights.
        test: measure the stripped model on the test split.
        progress: told of every optimiser step, and how long the stages took.

    Returns:
        The run, and its stripped model on the CPU.

    Raises:
        TrainingError: if the training diverges.
    """
    from accelerate.utils import set_seed

    progress = progress or Progress()
    stages = Stages(progress.stage)
    set_seed(seed)
    arm, shared = contender.arm, dataclasses.replace(comparison.settings, seed=seed, learning_rate=rate)
    settings = contender.settings(shared)
    if arm.starts > 1:
        (model, added), result = _better_start(comparison, arm, settings, progress.step)
    else:
        model, added = _made(comparison, arm, settings)
        result = _finetuner(comparison, arm, settings, model, added).run(progress.step)
    stages("trained")
    task = comparison.task
    if comparison.keep is not None and test:
        comparison.keep(contender, seed, model, added, result)
    sites = strip(added) if isinstance(added, Relaxation) else ()
    if isinstance(added, WeightUpdates):
        added.merge()
    measured = evaluate(model, comparison.task, "test") if test else {}
    for name, probe in comparison.probes.items() if test else ():
        measured |= {f"{name} {metric}": value for metric, value in evaluate(model, probe, "test").items()}
    if test:
        stages("computed the metrics on the test split")
    came = (result.validation, measured, result.best_epoch, result.steps, result.seconds, sites)
    return ArmRun(contender.name, seed, rate, *came, curve=_curve(result, task)), model.cpu()


def _made(comparison: Comparison, arm: Arm, settings: FinetuneSettings) -> tuple[nn.Module, Added]:
    """Return a fresh network, and what the arm adds to it."""
    model = comparison.make_model()
    if arm.updates:
        return model, updates_of(arm, model, comparison.plan, settings)
    if arm.mode is None:
        return model, None
    relaxation = relax(model, comparison.plan, dense=True, mode=arm.mode, schedule=settings.schedule)
    if comparison.start is not None:
        load_branches(relaxation.model, comparison.start)
    return model, relaxation


def _finetuner(
    comparison: Comparison, arm: Arm, settings: FinetuneSettings, model: nn.Module, added: Added
) -> Finetuner:
    teacher = teacher_of(settings, comparison.make_model, comparison.task)
    return Finetuner(model, comparison.task, settings, arm, added, plan=comparison.plan, teacher=teacher)


def shares_of_starts(settings: FinetuneSettings) -> tuple[int, int]:
    """Return after how many epochs the better of two starts is chosen, and how many it is trained for in all.

    Of E epochs both take E/3, and the better one E/3 more: the steps of both together are those of any other arm.

    Raises:
        UsageError: if there are too few epochs.
    """
    every = settings.evaluate_every
    first = max(1, round(settings.epochs / (3 * every))) * every
    if settings.epochs < 2 * first:
        raise UsageError(
            f"expected at least {2 * first} epochs for the arm 'restarts', whose starts are compared at an evaluation, "
            f"got {settings.epochs}: raise --epochs, or evaluate more often"
        )
    return first, settings.epochs - first


def _better_start(
    comparison: Comparison, arm: Arm, settings: FinetuneSettings, on_step: Callable[[StepEvent], None] | None
) -> tuple[tuple[nn.Module, Added], FinetuneResult]:
    """Train with two seeds, go on with the better one on validation, and count the steps of both."""
    from accelerate.utils import set_seed

    first, whole = shares_of_starts(settings)
    begun = []
    for seed in (settings.seed, settings.seed + SECOND_SEED):
        set_seed(seed)
        made = _made(comparison, arm, settings)
        run = _finetuner(comparison, arm, dataclasses.replace(settings, seed=seed, epochs=whole), *made)
        run.run(on_step, until=first)
        begun.append((run, made, random_state()))
    values = [run.state.best_value for run, _, _ in begun]
    better = is_better(values[1], values[0], primary_metric(comparison.task)[1])
    other, (run, made, randomness) = begun[not better][0], begun[better]
    set_random_state(randomness)
    result = run.run(on_step)
    steps, seconds = result.steps + other.state.step, result.seconds + other.state.seconds
    return made, dataclasses.replace(result, steps=steps, seconds=seconds)


def _curve(result: FinetuneResult, task: Task) -> tuple[tuple[int, float], ...]:
    """Return step and metric of every evaluation."""
    metric, _ = primary_metric(task)
    return tuple((entry["step"], entry["validation"][metric]) for entry in result.history if entry["validation"])


def outcome_of(comparison: Comparison, point: Point, progress: Progress | None = None) -> tuple[Point, Outcome]:
    """Carry one run out; a training that cannot go on is an outcome as well."""
    try:
        contender = Contender.parse(point.arm)
        run, model = run_one(comparison, contender, point.seed, point.learning_rate, point.test, progress)
    except TrainingError as error:
        return point, Failure(str(error))
    if comparison.judge is None or not point.test:
        return point, run
    with timed("compared with the original", (progress or Progress()).stage):
        return point, comparison.judge(run, model)


def one_after_the_other(comparison: Comparison, progress: Progress | None = None) -> Execute:
    """Return how to carry runs out in this process.

    Args:
        progress: told how each goes on.
    """

    def execute(points: Sequence[Point]) -> Iterator[tuple[Point, Outcome]]:
        for point in points:
            if progress is not None:
                progress.start(point)
            yield outcome_of(comparison, point, progress)

    return execute


def carry_out(
    points: Sequence[Point], execute: Execute, kept: MutableMapping[Point, Outcome] | None = None
) -> list[Outcome]:
    """Carry out the runs that are not kept yet, and keep each one as soon as it is finished.

    Args:
        execute: how to carry runs out.
        kept: finished runs; those that are missing are added, except final runs that failed, which are tried again.

    Returns:
        The outcomes in the order of ``points``.
    """
    kept = {} if kept is None else kept
    found = {point: kept[point] for point in points if point in kept}
    for point, outcome in execute([point for point in points if point not in found]):
        found[point] = outcome
        if isinstance(outcome, ArmRun) or not point.test:
            kept[point] = outcome
    return [found[point] for point in points]


def run_arms(
    comparison: Comparison,
    arms: Sequence[str],
    seeds: Sequence[int],
    rates: Mapping[str, float] | None = None,
    execute: Execute | None = None,
    kept: MutableMapping[Point, Outcome] | None = None,
) -> list[ArmRun]:
    """Run every arm with every seed.

    Args:
        arms: as :class:`surgeon.training.arms.Contender` reads them.
        seeds: at least one.
        rates: learning rate per arm, as :func:`sweep` found them; default that of the settings for all.
        execute: how to carry runs out; default one after the other in this process.
        kept: finished runs of an earlier call, which are not repeated; new ones are added.

    Returns:
        One run per seed and arm, seed by seed.

    Raises:
        UsageError: if an arm is unknown, named twice, or without learning rate; or there are no seeds.
        TrainingError: if runs diverge, when all others are finished; or if the arms did not get equal budgets.
    """
    points = final_points(comparison, arms, seeds, rates)
    outcomes = carry_out(points, execute or one_after_the_other(comparison), kept)
    failed = [(point, out) for point, out in zip(points, outcomes, strict=True) if isinstance(out, Failure)]
    if failed:
        point, failure = failed[0]
        raise TrainingError(f"{len(failed)} of {len(points)} runs failed, first {point}: {failure.message}")
    runs = [outcome for outcome in outcomes if isinstance(outcome, ArmRun)]
    require_equal_budgets(runs)
    return runs


def final_points(
    comparison: Comparison, arms: Sequence[str], seeds: Sequence[int], rates: Mapping[str, float] | None = None
) -> list[Point]:
    """Return the runs of :func:`run_arms`, after checking that they can be carried out; errors as there."""
    require_arms_and_seeds(arms, seeds)
    for name in arms:
        contender = Contender.parse(name)
        require_fitting_plan(contender.arm, comparison.plan)
        if contender.arm.starts > 1:
            shares_of_starts(comparison.settings)
    missing = [name for name in arms if rates is not None and name not in rates]
    if missing:
        raise UsageError(f"expected a learning rate for every arm, got none for {', '.join(missing)}: sweep them too")
    task_batches(comparison.task, "test", 0)  # found missing now, not after the first training
    rate = comparison.settings.chosen_rate
    return [Point(name, seed, rates[name] if rates else rate) for seed in seeds for name in arms]


def require_arms_and_seeds(arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Refuse an empty or ambiguous comparison.

    Raises:
        UsageError: if an arm is unknown or named twice, or there is none, or no seed.
    """
    for name in arms:
        Contender.parse(name)
    if not seeds or not arms or len(set(arms)) < len(arms):
        raise UsageError(
            f"expected distinct arms and at least one seed, got arms {list(arms)} and seeds {list(seeds)}: "
            "name each arm once"
        )
