from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.editing.branch import branches_of
from surgeon.errors import TaskError, TrainingError, UsageError
from surgeon.opening.evaluation import evaluate
from surgeon.training.arms import ARMS
from surgeon.training.compare import CompareSettings
from surgeon.training.comparison import (
    SECOND_SEED,
    Comparison,
    final_points,
    one_after_the_other,
    run_arms,
    shares_of_starts,
)
from surgeon.training.outcomes import ArmRun, Failure, Outcome, Point
from surgeon.training.progress import Progress
from surgeon.training.search import AutoSettings
from surgeon.training.settings import FinetuneSettings
from surgeon.training.starting import start_from
from surgeon.training.statistics import edges_of_sweep, require_equal_budgets, summarise_runs
from surgeon.training.sweep import sweep
from tests.tiny import Net, TinyTask
from tests.training.conftest import plan_of, train

SETTINGS = FinetuneSettings(epochs=2, learning_rate=1e-2)


@pytest.fixture
def comparison(task: TinyTask) -> Comparison:
    torch.manual_seed(0)
    net = Net()
    return Comparison(lambda: copy.deepcopy(net), plan_of(net), task, SETTINGS)


def made_run(arm: str, seed: int, value: float) -> ArmRun:
    return ArmRun(arm, seed, 1e-3, {}, {"mse": value}, 1, 1, 0.0, ())


def test_every_arm_has_the_same_budget_and_is_measured_stripped(comparison: Comparison, task: TinyTask) -> None:
    models: list[nn.Module] = []
    told: dict[str, list[Any]] = {"start": [], "step": [], "stage": []}
    progress = Progress()
    for name, into in told.items():
        setattr(progress, name, into.append)

    def judge(run: ArmRun, model: nn.Module) -> ArmRun:
        models.append(model)
        return dataclasses.replace(run, certificate="same graph")

    judged = dataclasses.replace(comparison, judge=judge)
    runs = run_arms(judged, list(ARMS), [0, 1], execute=one_after_the_other(judged, progress))
    assert [(run.arm, run.seed) for run in runs] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    assert {run.steps for run in runs} == {6}
    assert [point.arm for point in told["start"]] == [*ARMS, *ARMS]
    assert len(told["step"]) == 6 * 2 * len(ARMS)
    stages = ["trained", "computed the metrics on the test split", "compared with the original"]
    assert [re.sub(r" \(\d+\.\d s\)$", "", line) for line in told["stage"]] == stages * 2 * len(ARMS)
    assert not any(branches_of(model) for model in models)
    assert [len(run.sites) for run in runs[:4]] == [0, 2, 2, 2]
    json.dumps([dataclasses.asdict(run) for run in runs])
    for run, model in zip(runs, models, strict=True):
        batches = list(task.batches("test", 0))
        error = sum(float((task.forward(model, b) - b["target"]).square().sum().detach()) for b in batches)
        assert run.test["mse"] == pytest.approx(error / sum(b["target"].numel() for b in batches))


def test_a_run_keeps_the_clean_validation_error_of_every_evaluation(comparison: Comparison) -> None:
    (run,) = run_arms(comparison, ["drop"], [0])
    steps, values = zip(*run.curve, strict=True)
    original = evaluate(comparison.make_model(), comparison.task, "validation")["mse"]
    assert (steps[0], values[0]) == (0, pytest.approx(original))
    assert steps[-1] == run.steps
    assert min(values) == run.validation["mse"] < values[0]


def test_each_arm_starts_from_the_same_weights(comparison: Comparison) -> None:
    idle = Comparison(comparison.make_model, comparison.plan, comparison.task, FinetuneSettings(2, 1e-30))
    runs = run_arms(idle, list(ARMS), [0])
    assert len({run.test["mse"] for run in runs}) == 1


def test_a_sweep_chooses_by_validation_and_leaves_the_test_split_alone(comparison: Comparison, task: TinyTask) -> None:
    record = sweep(comparison, ["plain", "drop"], [1e-9, 3e-2, 1e-4])
    assert min(record["best"].values()) >= 3e-2
    assert "test" not in {split for split, _ in task.seen}
    tried = {(row["arm"], row["learning_rate"]) for row in record["runs"]}
    assert tried >= {(arm, rate) for arm in ("plain", "drop") for rate in (1e-9, 3e-2, 1e-4)}
    json.dumps(record)
    runs = run_arms(comparison, ["plain", "drop"], [0], record["best"])
    assert {run.arm: run.learning_rate for run in runs} == record["best"]
    assert "test" in {split for split, _ in task.seen}


class Diverging(TinyTask):
    def loss(self, outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
        value = super().loss(outputs, batch)
        return value / (value < 10) if outputs.requires_grad else value


def test_a_rate_that_diverges_loses_a_sweep(comparison: Comparison) -> None:
    diverging = Comparison(comparison.make_model, comparison.plan, Diverging(), comparison.settings)
    record = sweep(diverging, ["plain"], [1e6, 1e-2, 1e-9])
    assert record["best"] == {"plain": 1e-2}
    assert [math.isnan(row["validation"][0]) for row in record["runs"]] == [True, False, False]
    with pytest.raises(TrainingError, match="'plain' trains at none of the learning rates 1e.06: the task loss became"):
        sweep(diverging, ["plain"], [1e6])


@pytest.mark.parametrize(("arms", "seeds"), [(["plain", "plain"], [0]), (["plain"], []), ([], [0])])
def test_arms_and_seeds_that_make_no_comparison(comparison: Comparison, arms: list[str], seeds: list[int]) -> None:
    for function in (lambda: run_arms(comparison, arms, seeds), lambda: sweep(comparison, arms, [1e-3], seeds)):
        with pytest.raises(UsageError, match="distinct arms and at least one seed"):
            function()


def test_further_bad_arguments(comparison: Comparison) -> None:
    with pytest.raises(UsageError, match="learning rate for every arm, got none for drop"):
        run_arms(comparison, ["plain", "drop"], [0], {"plain": 1e-3})
    with pytest.raises(UsageError, match="at least one learning rate"):
        sweep(comparison, ["plain"], [])
    with pytest.raises(UsageError, match="an arm among"):
        run_arms(comparison, ["nope"], [0])


def test_a_missing_test_split_is_found_before_the_first_training(comparison: Comparison) -> None:
    task = TinyTask(empty="test")
    with pytest.raises(TaskError, match="no batch in the split 'test'"):
        run_arms(Comparison(comparison.make_model, comparison.plan, task, SETTINGS), ["plain"], [0])
    assert task.trained == 0


def test_differences_are_paired_by_seed() -> None:
    plain, drop = [1.0, 3.0, 8.0], [0.5, 2.4, 7.7]
    runs = [made_run("plain", seed, value) for seed, value in enumerate(plain)]
    runs += [made_run("drop", seed, value) for seed, value in reversed(list(enumerate(drop)))]
    first, second = summarise_runs(runs, "mse")
    assert (first["arm"], first["mean"], first["difference"]) == ("plain", 4.0, 0.0)
    differences = [d - p for d, p in zip(drop, plain, strict=True)]
    assert second["difference"] == pytest.approx(statistics.fmean(differences))
    # Student's t for 2 degrees of freedom, from a printed table
    assert second["half_width"] == pytest.approx(4.3027 * statistics.stdev(differences) / math.sqrt(3), rel=1e-4)
    assert second["spread"] == pytest.approx(statistics.stdev(drop))


def test_one_seed_or_no_reference_has_no_interval() -> None:
    rows = summarise_runs([made_run("plain", 0, 1.0), made_run("drop", 0, 2.0)], "mse")
    assert math.isnan(rows[1]["half_width"])
    assert math.isnan(rows[1]["spread"])
    assert rows[1]["difference"] == 1.0
    assert math.isnan(summarise_runs([made_run("drop", 0, 2.0)], "mse")[0]["difference"])


def test_finished_runs_are_not_repeated_and_can_be_extended(comparison: Comparison, task: TinyTask) -> None:
    kept: dict[Point, Outcome] = {}
    run_arms(comparison, ["plain"], [0], kept=kept)
    trained = task.trained
    again = run_arms(comparison, ["plain"], [0], kept=kept)
    assert task.trained == trained
    more = run_arms(comparison, ["plain", "drop"], [0, 1], kept=kept)
    assert task.trained == 4 * trained
    assert more[0] is again[0]
    assert values(more) == values(run_arms(comparison, ["plain", "drop"], [0, 1]))


def values(runs: list[ArmRun]) -> list[ArmRun]:
    return [dataclasses.replace(run, seconds=0.0) for run in runs]


def test_a_run_does_not_depend_on_the_runs_before_it(comparison: Comparison) -> None:
    points = [Point(arm, 0, 1e-2) for arm in ("plain", "fold")]
    forwards = [outcome for _, outcome in one_after_the_other(comparison)(points)]
    backwards = [outcome for _, outcome in one_after_the_other(comparison)(points[::-1])]
    assert values(forwards) == values(backwards[::-1])  # type: ignore[arg-type]


class Fragile(TinyTask):
    """Diverges with one seed only."""

    def batches(self, split: str, seed: int) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(split, seed):
            bad = split == "train" and seed // 100_003 == 1
            yield {**batch, "target": batch["target"] * float("nan")} if bad else batch


def test_a_final_run_that_fails_keeps_the_others_and_is_tried_again(comparison: Comparison) -> None:
    kept: dict[Point, Outcome] = {}
    fragile = dataclasses.replace(comparison, task=Fragile())
    with pytest.raises(TrainingError, match="1 of 3 runs failed, first plain, seed 1, lr 0.01: the task loss became"):
        run_arms(fragile, ["plain"], [0, 1, 2], kept=kept)
    assert [point.seed for point in kept] == [0, 2]
    assert len(run_arms(comparison, ["plain"], [0, 1, 2], kept=kept)) == 3


def test_unequal_budgets_are_an_error(comparison: Comparison) -> None:
    runs = [made_run("plain", 0, 1.0), dataclasses.replace(made_run("drop", 0, 1.0), steps=2)]
    with pytest.raises(TrainingError, match="seed 0 the arm 'plain' took 1 optimiser steps and 'drop' 2"):
        require_equal_budgets(runs)
    require_equal_budgets([runs[0], dataclasses.replace(runs[1], seed=1)])
    with pytest.raises(UsageError, match="equal budgets, got a patience of 3"):
        dataclasses.replace(comparison, settings=dataclasses.replace(SETTINGS, patience=3))


def test_a_best_rate_at_an_edge_of_what_was_tried_is_told() -> None:
    runs = [{"arm": arm, "learning_rate": rate} for arm in ("plain", "drop", "fold") for rate in (1e-3, 1e-2, 1e-4)]
    runs.append({"arm": "lowrank", "learning_rate": 1e-3})
    best = {"plain": 1e-4, "drop": 1e-2, "fold": 1e-3, "lowrank": 1e-3}
    low, high = edges_of_sweep({"best": best, "runs": runs})
    assert "best learning rate of plain, 0.0001, is the lowest of the 3 tried" in low
    assert "best learning rate of drop, 0.01, is the highest" in high


class Valley:
    """Carries nothing out: the validation error is the distance of log10(rate) from the arm's own best."""

    def __init__(self, best: dict[str, float]) -> None:
        self.best, self.asked = best, list[Point]()

    def __call__(self, points: Sequence[Point]) -> Iterator[tuple[Point, Outcome]]:
        self.asked += points
        for point in points:
            error = abs(math.log10(point.learning_rate) - self.best[point.arm])
            run = ArmRun(point.arm, point.seed, point.learning_rate, {"mse": error}, {}, 1, 1, 0.0, ())
            yield point, run if error < 20 else Failure("diverged")


def test_a_sweep_goes_on_beyond_an_edge_for_that_arm_alone(comparison: Comparison) -> None:
    valley = Valley({"plain@adamw": 0.1, "drop@soap": -3.2, "fold": -5.0})
    record = sweep(comparison, list(valley.best), [1e-4, 1e-3, 1e-2], (0, 1), valley)
    assert record["further"] == {"plain@adamw": [0.1, 1.0, 10.0], "fold": [1e-5, 1e-6]}
    assert record["best"] == {"plain@adamw": 1.0, "drop@soap": 1e-3, "fold": 1e-5}
    assert len(valley.asked) == len(set(valley.asked)) == 2 * (3 * 3 + 5)
    assert edges_of_sweep(record) == []
    assert sweep(comparison, ["fold"], [1e-3], (0,), valley)["further"] == {}


def test_a_sweep_ends_and_says_so_where_no_rate_is_the_best(comparison: Comparison) -> None:
    record = sweep(comparison, ["plain"], [1e-2, 3e-2], (0,), Valley({"plain": 9.0}))
    assert record["further"] == {"plain": [0.09, 0.27, 0.81, 2.43]}
    assert "highest of the 6 tried" in edges_of_sweep(record)[0]
    descending = sweep(comparison, ["plain"], [1e-2, 1e-9], (0,), Valley({"plain": -1.1}))
    assert descending["further"] == {"plain": [0.1, 1.0]}  # ten times as far at most


def test_optimisers_are_compared_as_arms(comparison: Comparison) -> None:
    runs = run_arms(comparison, ["plain", "plain@adamw", "plain@adamw+beta2=0.9", "plain@soap", "drop@soap"], [0])
    plain, same, other, soap, drop = (run.test["mse"] for run in runs)
    assert plain == same
    assert len({plain, other, soap, drop}) == 4
    slower = dataclasses.replace(comparison, settings=dataclasses.replace(SETTINGS, optimizer="soap"))
    assert [run.test["mse"] for run in run_arms(slower, ["plain", "drop"], [0])] == [soap, drop]


def test_the_first_plain_arm_is_the_reference() -> None:
    names = ["drop@soap", "plain@muon", "plain"]
    rows = summarise_runs([made_run(name, 0, value) for value, name in enumerate(names)], "mse")
    assert [(row["reference"], row["difference"]) for row in rows] == [
        ("plain@muon", -1.0),
        ("plain@muon", 0.0),
        ("plain@muon", 1.0),
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope@soap", r"expected an arm among .*, got .nope.: write ARM\[@OPTIMIZER"),
        ("plain@", "optimizer among adamw"),
        ("plain@adam2", "in the arm 'plain@adam2': expected optimizer among"),
        ("plain@adamw+lr=1", "expected a setting among beta2, clip"),
        ("plain@adamw+beta2", "expected a number for beta2"),
        ("plain@adamw+beta2=2", "expected a beta2 from 0 to below 1, got 2.0"),
        ("plain@sgd+beta2=0.9", "no beta2 with the optimizer sgd"),
    ],
)
def test_arms_that_cannot_be_compared(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CompareSettings([name])


def test_of_two_starts_the_better_one_goes_on_and_both_are_counted(comparison: Comparison) -> None:
    settings = dataclasses.replace(SETTINGS, epochs=6, learning_rate=1.0)  # the last weights are not the best
    comparison = dataclasses.replace(comparison, settings=settings)
    models: list[nn.Module] = []
    judged = dataclasses.replace(comparison, judge=lambda run, model: [run, models.append(model)][0])
    runs = run_arms(judged, ["plain", "restarts"], range(4))
    assert {run.steps for run in runs} == {18}
    chosen = set()
    for run, model in zip(runs[1::2], models[1::2], strict=True):
        begun, ended = [], []
        for seed in (run.seed, run.seed + SECOND_SEED):
            net = comparison.make_model()
            shared = dataclasses.replace(settings, epochs=4, seed=seed)
            ended.append(train(net, comparison.task, shared, ARMS["plain"]))
            begun.append(min(entry["validation"]["mse"] for entry in ended[-1].history[:3]))
        better = begun.index(min(begun))
        chosen.add(better)
        assert run.validation == ended[better].validation
        assert run.validation != ended[1 - better].validation
        assert run.curve[-1][0] == 12
        assert not branches_of(model)
    assert chosen == {0, 1}


def test_two_starts_need_evaluations_and_a_comparison(comparison: Comparison) -> None:
    assert shares_of_starts(dataclasses.replace(SETTINGS, epochs=60, evaluate_every=5)) == (20, 40)
    for epochs, every in ((1, 1), (5, 3)):
        few = dataclasses.replace(SETTINGS, epochs=epochs, evaluate_every=every)
        with pytest.raises(UsageError, match=f"expected at least {2 * every} epochs for the arm 'restarts'"):
            final_points(dataclasses.replace(comparison, settings=few), ["restarts"], [0])
    with pytest.raises(UsageError, match="only takes part in comparisons"):
        AutoSettings(arms=["plain", "restarts@soap"])
    with pytest.raises(UsageError, match="only takes part in comparisons"):
        start_from("net.pt", "restarts")
