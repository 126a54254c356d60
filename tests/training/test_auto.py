"""A search finds the setting that is best in full, within its budget, and goes on after a kill to the same result."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import surgeon
from surgeon.errors import ExistsError, InterruptedTrainingError, TrainingError, UsageError
from surgeon.training import auto
from surgeon.training.arms import WITHOUT_BRANCHES
from surgeon.training.auto import SEARCH_FILE, finetune_auto, search_beside
from surgeon.training.halving import LOG_FILE, rounds_within
from surgeon.training.search import AutoSettings, SearchRecord
from tests.commands import Surgeon, files_in
from tests.processes import forked

pytest.importorskip("optuna")

OPTIONS = surgeon.OpenOptions(task="task.py")
SETTINGS = AutoSettings(surgeon.FinetuneSettings(epochs=4), ("plain@adamw", "plain@sgd"), (1e-2, 1e30), budget=3.4)
TARGET = Path("net-run")


def search(settings: AutoSettings = SETTINGS, **given: Any) -> tuple[SearchRecord, Any]:
    return finetune_auto("net.pt", TARGET, settings, options=OPTIONS, **given)


def table(found: SearchRecord) -> list[str]:
    """Return what was found, without times."""
    return [json.dumps(row, sort_keys=True) for row in found.rows]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("settings", [1, 2, 3, 7, 24])
def test_rounds_use_the_budget_and_never_more(settings: int, every: int) -> None:
    lengths = []
    for trainings in range(6, 31, 4):
        rounds = rounds_within(trainings * 30, settings, 30, every)
        ends, going = [0, *rounds, 30], [settings, *rounds.values()]
        cost = sum(count * (end - start) for count, start, end in zip(going, ends, ends[1:], strict=False))
        assert cost <= trainings * 30
        assert going[-1] == 1
        assert all(end % every == 0 for end in rounds)
        lengths.append(min(rounds, default=30))
    assert lengths == sorted(lengths)
    assert lengths[-1] == 30  # everything in full


def test_a_budget_that_is_too_small_is_refused_with_what_would_do() -> None:
    with pytest.raises(UsageError, match=r"expected a budget of at least 2\.9 whole .* got 1\.5: write --budget 2\.9x"):
        rounds_within(15, 9, 10)
    assert rounds_within(29, 9, 10)


def test_the_best_goes_on_where_it_was_and_ends_as_an_ordinary_run(work: Path) -> None:
    found, done = search()
    diverged = [(row["arm"], row["learning_rate"]) for row in found.rows if row["outcome"] == "diverged"]
    assert diverged == [("plain@adamw", 1e30), ("plain@sgd", 1e30)]
    further = [(row["arm"], row["learning_rate"]) for row in found.rows[4:]]
    assert further == [("plain@adamw", 1e-3), ("plain@sgd", 1e-3)]
    assert found.rounds == {"1": 2, "4": 1}
    assert sorted(row["epochs"] for row in found.rows) == [1, 1, 1, 1, 4, 4]
    assert found.best["arm"] == "plain@adamw"
    assert found.best["learning_rate"] == 1e-2
    assert found.steps == sum(row["epochs"] * 3 for row in found.rows) <= 3.4 * 12
    assert found.steps_of_all == 6 * 12
    assert not search_beside(TARGET).exists()
    whole = dataclasses.replace(SETTINGS.training, learning_rate=1e-2, optimizer="soap")
    other = surgeon.finetune("net.pt", "other", whole, arm="plain@adamw", options=OPTIONS)
    assert done.result.history[-1]["validation"] == other.result.history[-1]["validation"]
    mine, theirs = (load_file(folder / "training_state/state.safetensors") for folder in (TARGET, Path("other")))
    assert all(mine[name].equal(theirs[name]) for name in theirs if name.startswith(("model.", "optimizer.")))
    assert files_in(TARGET).keys() - files_in(Path("other")).keys() == {SEARCH_FILE}
    surgeon.strip_folder(TARGET, "clean", options=OPTIONS)
    surgeon.verify_clean("clean", options=OPTIONS)


class Killed(BaseException):
    pass


def killing(real: Callable[..., Any], at: int, afterwards: bool) -> Callable[..., Any]:
    """Return a function that dies at its call number ``at``, before or after it has done its work."""
    left = [at]

    def call(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        result = real(*arguments, **named) if left[0] or afterwards else None
        if not left[0]:
            raise Killed
        return result

    return call


@pytest.mark.parametrize(
    ("name", "at", "afterwards"),
    [("enter", 1, False), ("enter", 5, True), ("halve", 1, True), ("finetune", 7, True), ("seal_folder", 1, False)],
)
def test_a_search_that_dies_goes_on_to_the_same_result(
    work: Path, monkeypatch: pytest.MonkeyPatch, name: str, at: int, afterwards: bool, expected: tuple[list[str], bytes]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(auto, name, killing(getattr(auto, name), at, afterwards))
        with pytest.raises(Killed):
            search()
    log = search_beside(TARGET) / LOG_FILE
    log.with_name(f"{LOG_FILE}.lock").touch()
    log.write_text(log.read_text() + '{"op_code": 7, "work')
    found, _ = search()
    assert (table(found), (TARGET / "model.safetensors").read_bytes()) == expected


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], bytes]:
    """Return what an undisturbed search finds."""
    with pytest.MonkeyPatch.context() as patch:
        Surgeon.folder(tmp_path_factory.mktemp("undisturbed"), patch)
        found, _ = search()
        return table(found), (TARGET / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_process_goes_on(work: Path, surgeon_command: Surgeon) -> None:
    command = ("finetune", "net.pt", "--auto", "--among", "plain@adamw,plain@sgd", "--lr-grid", "1e-4,1e-2")
    command = (*command, "--epochs", "4", "--budget", "36", "--json")
    trouble = ("--task", "task.py", "--task-args", '{"trouble": "KILL", "at": 5}')
    killed = forked(work, *command, *trouble)
    assert killed.returncode == -9, killed.stderr
    assert search_beside(TARGET).is_dir()
    rows = surgeon_command(*command, *trouble).data["search"]["rows"]
    again = surgeon_command(*command, *trouble, "-o", "again").data["search"]["rows"]
    assert rows == again


def test_a_finished_search_is_not_repeated_and_another_is_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = search()
    written = files_in(TARGET)
    with monkeypatch.context() as patch:
        patch.setattr(auto, "books", None)
        again, done = search()
    assert table(again) == table(first)
    assert done.result.steps == 12
    assert files_in(TARGET) == written
    with pytest.raises(UsageError, match=r"differs in search\.budget \(3\.4 there, 3\.45 here\)"):
        search(dataclasses.replace(SETTINGS, budget=3.45))
    search_beside(TARGET).mkdir()
    found, _ = search(dataclasses.replace(SETTINGS, budget=3.45), force=True)
    assert found.identity["search"]["budget"] == 3.45


def test_what_is_in_the_place_stays(work: Path) -> None:
    TARGET.mkdir()
    (TARGET / "notes").touch()
    with pytest.raises(ExistsError, match="is of no search"):
        search()
    assert files_in(TARGET).keys() == {"notes"}


def test_where_nothing_trains_that_is_said(work: Path) -> None:
    with pytest.raises(TrainingError, match=r"none of 2 settings could be trained: the task loss became"):
        search(dataclasses.replace(SETTINGS, rates=(1e30,)))


def test_an_interrupted_search_is_no_divergence(work: Path) -> None:
    options = dataclasses.replace(OPTIONS, task_arguments={"trouble": "stop once", "at": 2})
    with pytest.raises(InterruptedTrainingError, match="give the same command again"):
        finetune_auto("net.pt", TARGET, SETTINGS, options=options)
    found, _ = finetune_auto("net.pt", TARGET, SETTINGS, options=options)
    assert math.isfinite(found.rows[0]["value"])


def test_branches_are_found_once_and_a_relaxed_folder_tries_its_own_arm(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import surgeon.opening.relaxing as place

    calls: list[object] = []
    real = place.plan_for
    monkeypatch.setattr(place, "plan_for", lambda *given: [calls.append(given), real(*given)][1])
    arms = dataclasses.replace(SETTINGS, arms=("drop@adamw", "lowrank@adamw"), rates=(1e-2,))
    found, done = search(arms)
    assert len(calls) == 1
    assert done.arm.name == found.best["arm"].partition("@")[0]
    settings = AutoSettings()
    shared = settings.shared({})
    assert settings.tried("fold", shared)[-3:] == [("fold@soap", rate) for rate in (1e-3, 3e-3, 9e-3)]
    assert {arm for arm, _ in settings.tried(None, shared)} == set(WITHOUT_BRANCHES)


def test_each_optimiser_begins_at_rates_of_its_own_around_what_the_task_prefers() -> None:
    settings = AutoSettings(surgeon.FinetuneSettings(beta2=0.9))
    shared = settings.shared({"optimizer": "soap", "learning_rate": 0.09, "clip": 10.0})
    assert (shared.clip, shared.warmup, shared.beta2) == (10.0, 10, 0.9)
    first, *others = settings.tried(None, shared)
    assert first == ("plain@soap", 0.09)
    rates = {arm: sorted(rate for name, rate in [first, *others] if name == arm) for arm in WITHOUT_BRANCHES}
    matrices, adamw = [0.03, 0.09, 0.27], [0.01, 0.03, 0.09]
    assert rates == dict(zip(WITHOUT_BRANCHES, (adamw, adamw, matrices, matrices), strict=True))
    assert AutoSettings(rates=(1.0,)).tried(None, shared)[:2] == [first, ("plain@adamw", 1.0)]
    assert first not in AutoSettings(arms=("plain@muon",)).tried(None, shared)


def test_the_command_shows_what_was_tried_and_trains_the_default_to_the_end(surgeon_command: Surgeon) -> None:
    with Path("task.py").open("a") as file:
        file.write("\nTask = type(make_task())\nTask.preferred = {'optimizer': 'adamw', 'learning_rate': 1e-7}\n")
    command = ("finetune", "net.pt", "--task", "task.py", "--auto", "--lr-grid", "1e-2", "--epochs", "4")
    shown = surgeon_command(*command, "--budget", "3.4x")
    assert "dropped" in shown.out
    assert "every setting to the end would have taken 72 steps" in shown.out
    rising = "warning: in the first round, of 3 steps, the learning rates of plain@soap, plain@muon are still rising"
    assert rising in shown.err
    found = SearchRecord(**json.loads((TARGET / SEARCH_FILE).read_text()))
    assert [row["epochs"] for row in found.rows if row["learning_rate"] == 1e-7] == [4]
    assert f"{found.rows[0]['value']:.5g} by plain@adamw at 1e-07, the default without branches" in shown.out
    assert ("widen --lr-grid" in shown.out) == (found.best["arm"] == "plain@adamw")  # the others have one rate each
    for wrong in (("--arm", "plain"), ("--save-every", "2"), ("--jobs", "2"), ("--budget", "many")):
        surgeon_command(*command, *wrong, "-o", "x", code=2)
    surgeon_command("finetune", "net.pt", "--task", "task.py", "--arm", "plain", "--budget", "3x", code=2)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return Surgeon.folder(tmp_path, monkeypatch)


@pytest.fixture
def surgeon_command(work: Path, capsys: pytest.CaptureFixture[str]) -> Surgeon:
    return Surgeon(work, capsys)
