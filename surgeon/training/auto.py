"""Choose arm, optimiser and learning rate on validation data by successive halving, and train with the best."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgeon.errors import CheckpointError, ExistsError, InterruptedTrainingError, TrainingError, UsageError
from surgeon.files.atomic import remove_entry
from surgeon.files.content import json_compatible, read_json, write_json, write_text
from surgeon.files.outputs import writing_alone
from surgeon.files.seals import seal_folder
from surgeon.opening.options import OpenOptions
from surgeon.opening.relaxing import RelaxSettings
from surgeon.opening.task_calls import primary_metric
from surgeon.opening.workspace import Workspace
from surgeon.training.arms import WITHOUT_BRANCHES, Contender
from surgeon.training.batches import Sharing, count_steps, epoch_seed
from surgeon.training.compare import identity_of
from surgeon.training.finetune import Finetuned, finetune
from surgeon.training.halving import add, books, enter, halve, rounds_within, running, setting_of
from surgeon.training.outcomes import ArmRun, Failure, Outcome, Point
from surgeon.training.progress import Progress, StepEvent
from surgeon.training.search import AutoSettings, SearchRecord, Setting
from surgeon.training.settings import FinetuneSettings
from surgeon.training.starting import open_for_comparison
from surgeon.training.store import differences
from surgeon.training.sweep import best_rate, rate_beyond

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

SEARCH_FILE = "search.json"


def search_beside(target: Path) -> Path:
    """Return the folder of a search that goes on."""
    return target.with_name(f"{target.name}.search")


def finetune_auto(
    path: str | Path,
    target: str | Path,
    settings: AutoSettings | None = None,
    *,
    options: OpenOptions | None = None,
    relaxing: RelaxSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[SearchRecord, Finetuned]:
    """Find the best of several settings on validation data within a budget, and train it to the end.

    Successive halving (Jamieson and Talwalkar, https://arxiv.org/abs/1502.07943): all settings are trained for some
    epochs with the schedule of the whole training, a third goes on where it was, and so on until two are left, which
    are trained to the end. The default without branches is one of them unless arms are named, so that the best one is
    not worse on validation data. After the first round an arm whose best rate lies at an edge gets one more. The run
    folder is that of an ordinary run. After a kill the same call goes on and comes to the same result.

    Args:
        path: the relaxed folder, a checkpoint that was never relaxed, or the address of one of them on the Hub.
        target: the run folder; the record of the search is in it at the end, and a folder beside it before.
        settings: what is tried within which budget.
        options: how to find model and task.
        relaxing: where branches go in a checkpoint that was never relaxed, and its group.
        force: start anew, and replace what is there.
        progress: told how it goes on.

    Raises:
        UsageError: if optuna is missing, the budget is too small, or another search is in the place.
        ExistsError: if something else is in the place, or another process is writing there.
        TrainingError: if all settings diverge, or the search is interrupted.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("expected one process for --auto, got several: search in one, and train the result in several")
    target, settings, progress = Path(target), settings or AutoSettings(), progress or Progress()
    place = search_beside(target)
    with ExitStack() as stack:
        stack.enter_context(writing_alone(place))
        finished = (target / SEARCH_FILE).is_file() and not force
        if not (finished or force or place.is_dir()) and target.exists():
            raise _exists(target)
        workspace = open_for_comparison(path, settings.arms or WITHOUT_BRANCHES, options, relaxing, say=progress.say)
        workspace.refuse_output(target, in_place=False)
        search = _Search(path, target, settings, workspace, relaxing or RelaxSettings(), progress)
        if finished:
            return search.finished()
        for old in (place, target) if force else ():
            remove_entry(old)
        place.mkdir(parents=True, exist_ok=True)
        search.study = stack.enter_context(books(place, search.direction, search.tried))
        search.require_same(search.study.user_attrs.get("identity"), place)
        search.study.set_user_attr("identity", search.identity)
        found = search.run()
    remove_entry(place)
    return found


def _exists(target: Path) -> ExistsError:
    return ExistsError(f"{str(target)!r} exists and is of no search: choose another `-o`, or `--force`")


class _Search:
    """A search that is going on."""

    study: Study

    def __init__(
        self,
        path: str | Path,
        target: Path,
        settings: AutoSettings,
        workspace: Workspace,
        relaxing: RelaxSettings,
        progress: Progress,
    ) -> None:
        self.path, self.target, self.settings, self.progress = path, target, settings, progress
        self.place, self.relaxing = search_beside(target), relaxing
        self.options = dataclasses.replace(workspace.options, announce=None, stage=None)
        relaxation, files = workspace.require_relaxed()
        bare = files.folder == workspace.checkpoint.path
        self.plan = relaxation.plan.to_json() if bare and relaxation.plan.sites else None
        task = workspace.require_task().task
        self.training = training = settings.shared(getattr(task, "preferred", {}))
        self.tried = settings.tried(relaxation.mode if relaxation.plan.sites and not bare else None, training)
        self.kept = None if settings.arms else 0
        most = len(self.tried) + sum(count > 1 for count in Counter(arm for arm, _ in self.tried).values())
        self.metric, self.direction = primary_metric(task)
        self.epoch = count_steps(task, Sharing(training.accumulate), epoch_seed(training.seed, 1))
        whole = training.epochs * self.epoch
        trainings = settings.budget / whole if isinstance(settings.budget, int) else settings.budget
        within = (most, training.epochs, training.evaluate_every)
        self.rounds = rounds_within(trainings * training.epochs, *within)
        asked = {"settings": self.tried, "budget": settings.budget, "seed": training.seed}
        self.identity: Mapping[str, Any] = json_compatible({**identity_of(workspace, training), "search": asked})

    def require_same(self, theirs: Any, where: Path) -> None:
        """Refuse what another search has left."""
        found = [] if theirs is None else list(differences(theirs, self.identity))
        if found:
            raise UsageError(
                f"expected the search in {str(where)!r} to be the one asked for, but it differs in "
                f"{'; '.join(found)}: choose another `-o`, or start anew with `--force`"
            )

    def finished(self) -> tuple[SearchRecord, Finetuned]:
        """Return what a search that has ended has found."""
        where = self.target / SEARCH_FILE
        try:
            found = SearchRecord(**read_json(where))
            rows = [{**row, "value": math.nan if row["value"] is None else row["value"]} for row in found.rows]
            found = dataclasses.replace(found, rows=rows)
            trained = found.best["arm"], found.best["learning_rate"]
        except (TypeError, LookupError, StopIteration) as error:
            raise CheckpointError(f"expected the record of a search in {str(where)!r}, got something else") from error
        self.require_same(found.identity, self.target)
        return found, self._train(self.target, *trained, None, self.progress)

    def run(self) -> tuple[SearchRecord, Finetuned]:
        """Halve until one setting is left, train it to the end, and write the record into its run folder."""
        if self.plan is not None:  # found once, not by every run
            write_text(self.place / "plan.json", self.plan, force=True)
            self.relaxing = dataclasses.replace(self.relaxing, plan=self.place / "plan.json")
        self._tell()
        for number, (epoch, going) in enumerate(self.rounds.items(), start=1):
            title = f"round {number} of {len(self.rounds)}: setting"
            self._round(title, epoch)
            if number == 1:
                add(self.study, self._further(epoch))
                self._round(title, epoch)
            for trial in halve(self.study, epoch, going, self.kept):
                remove_entry(self._folder(trial))
        left = running(self.study)
        if not left:
            message = next(iter(trial.user_attrs["message"] for trial in self.study.get_trials(deepcopy=False)))
            raise TrainingError(f"none of {len(self.tried)} settings could be trained: {message}")
        done = self._finish(left[0])
        found = self._found(done)
        write_json(self.target / SEARCH_FILE, dataclasses.asdict(found), force=True)
        seal_folder(self.target)
        return found, done

    def _further(self, epoch: int) -> list[Setting]:
        """Return the next rate for each arm whose best one lies at an edge; once, half a schedule favours low ones."""
        tried: dict[str, dict[float, float]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            arm, rate = setting_of(trial)
            tried.setdefault(arm, {})[rate] = trial.intermediate_values[epoch]
        first = Counter(arm for arm, _ in self.tried)
        beyond = {arm: rate_beyond(best_rate(values, self.direction), values) for arm, values in tried.items()}
        return [(arm, rate) for arm, rate in beyond.items() if rate and len(tried[arm]) == first[arm]]

    def _tell(self) -> None:
        epochs, begun = self.training.epochs, any(trial.intermediate_values for trial in running(self.study))
        halvings = "".join(f", {going} from epoch {epoch}" for epoch, going in self.rounds.items() if epoch < epochs)
        self.progress.say(
            f"{'going on with' if begun else 'searching'} {len(self.tried)} settings{halvings}, of {epochs} epochs each"
        )
        first = min(self.rounds, default=epochs) * self.epoch
        rising = [
            arm for arm in dict.fromkeys(arm for arm, _ in self.tried) if self._settings(arm).warmup_steps >= first
        ]
        if rising:
            self.progress.say(
                f"warning: in the first round, of {first} steps, the learning rates of {', '.join(rising)} are still "
                "rising, so that they may be dropped too early: a larger --budget makes it longer"
            )

    def _round(self, title: str, epoch: int) -> None:
        todo = [trial for trial in running(self.study) if epoch not in trial.intermediate_values]
        if todo:
            self.progress.begin(title, self.metric, len(todo))
        for trial in todo:
            (arm, rate), began = setting_of(trial), time.perf_counter()
            point = Point(arm, self.training.seed, rate, test=False)
            self.progress.start(point)
            try:
                done = self._train(self._folder(trial), arm, rate, epoch, _Steps(self.progress))
            except InterruptedTrainingError:
                raise InterruptedTrainingError(
                    f"interrupted: what is finished is in {self.place}/; give the same command again to go on"
                ) from None
            except TrainingError as error:
                value, message = math.nan, str(error)
                outcome: Outcome = Failure(message)
            else:
                value, message = self._reached(done), ""
                came = (done.result.best_epoch, done.result.steps, done.result.seconds, ())
                outcome = ArmRun(arm, point.seed, rate, {self.metric: value}, {}, *came)
            seconds = trial.user_attrs.get("seconds", 0.0) + time.perf_counter() - began
            enter(self.study, trial, epoch, value, seconds=seconds, message=message)
            self.progress.finish(point, outcome)

    def _reached(self, done: Finetuned) -> float:
        """Return the best value since training began: that before it is the same for all."""
        evaluations = (entry["validation"] for entry in done.result.history[1:])
        values: list[float] = [metrics[self.metric] for metrics in evaluations if metrics]
        return min(values) if self.direction == "min" else max(values)

    def _folder(self, trial: FrozenTrial) -> Path:
        arm, rate = setting_of(trial)
        return self.place / f"{arm}-lr{rate!r}"

    def _train(self, folder: Path, arm: str, rate: float, until: int | None, progress: Progress) -> Finetuned:
        settings = dataclasses.replace(self._settings(arm), learning_rate=rate)
        given: dict[str, Any] = {"options": self.options, "relaxing": self.relaxing, "progress": progress}
        return finetune(self.path, folder, settings, arm=Contender.parse(arm).arm.name, until=until, **given)

    def _settings(self, arm: str) -> FinetuneSettings:
        return Contender.parse(arm).settings(self.training)

    def _finish(self, best: FrozenTrial) -> Finetuned:
        """Train the best setting to the end, in the place where its folder is to be."""
        folder, (arm, rate), began = self._folder(best), setting_of(best), time.perf_counter()
        if folder.is_dir():
            if self.target.exists():
                raise _exists(self.target)
            os.rename(folder, self.target)
        done = self._train(self.target, arm, rate, None, self.progress)
        epochs, seconds = (
            self.training.epochs,
            best.user_attrs.get("seconds", 0.0) + time.perf_counter() - began,
        )
        if epochs not in best.intermediate_values:
            enter(self.study, best, epochs, self._reached(done), seconds=seconds)
        return done

    def _found(self, done: Finetuned) -> SearchRecord:
        epochs = self.training.epochs
        each, rows, seconds = done.result.steps // epochs, [], []
        for trial in self.study.get_trials(deepcopy=False):
            (arm, rate), reached = setting_of(trial), max(trial.intermediate_values)
            value, message = trial.intermediate_values[reached], trial.user_attrs.get("message", "")
            outcome = "best" if trial.state.name == "RUNNING" else "diverged" if math.isnan(value) else "dropped"
            row = {"arm": arm, "learning_rate": rate, "epochs": reached, "steps": reached * each, "value": value}
            rows.append({**row, "outcome": outcome, "message": message})
            seconds.append(trial.user_attrs["seconds"])
        paces = sum(spent * epochs / row["epochs"] for spent, row in zip(seconds, rows, strict=True))
        cost = (sum(row["steps"] for row in rows), len(rows) * epochs * each, sum(seconds), paces)
        rounds = {str(epoch): going for epoch, going in self.rounds.items()}
        return SearchRecord(self.metric, rows, rounds, self.kept, *cost, self.identity)


class _Steps(Progress):
    """Passes on the steps of a run, and nothing that is the same for all."""

    def __init__(self, told: Progress) -> None:
        self._told = told

    def step(self, event: StepEvent) -> None:
        """Pass an optimiser step on."""
        self._told.step(event)
