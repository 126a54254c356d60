"""Compare arms from a checkpoint or a relaxed folder: sweep, runs, weights, one record; the same call goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from surgeon.errors import CheckpointError, ExistsError, TrainingError, UsageError
from surgeon.files.atomic import check_writable
from surgeon.files.content import write_json
from surgeon.files.ordinary import bytes_of
from surgeon.files.outputs import writing_alone
from surgeon.opening.next_command import strip_command
from surgeon.opening.options import OpenOptions
from surgeon.opening.relaxing import RelaxSettings
from surgeon.opening.task_calls import primary_metric
from surgeon.opening.workspace import Workspace
from surgeon.support.plain import parse_json
from surgeon.support.versions import versions
from surgeon.training.arms import Contender
from surgeon.training.comparison import Comparison, final_points, one_after_the_other, run_arms
from surgeon.training.kept import Keep, settle
from surgeon.training.outcomes import Execute, Outcome, Point
from surgeon.training.progress import Progress
from surgeon.training.record import ComparisonRecord
from surgeon.training.settings import FinetuneSettings
from surgeon.training.spread import Recipe, comparison_of, local_processes, ray_cluster
from surgeon.training.starting import open_for_comparison
from surgeon.training.store import IDENTITY_FILE, RunStore
from surgeon.training.sweep import sweep


@dataclass(frozen=True)
class CompareSettings:
    """What is compared, and where the runs are carried out.

    Attributes:
        arms: such as ``plain`` or ``drop@soap``, as :class:`surgeon.training.arms.Contender` reads them.
        seeds: per arm; the first one is that of the training.
        training: what all runs share; its learning rate is that of all arms, unless there is a grid or a sweep.
        grid: learning rates that are tried first for every arm, on validation data.
        grid_seeds: seeds per point of the grid.
        sweep: the record of a sweep, or of a comparison with one, whose learning rates are taken.
        jobs: processes of this machine that share the runs.
        ray: address of a Ray cluster that carries them out.
        keep: weights of which runs are kept: "best" (the best seed of every arm by validation), "all" or "none".

    Raises:
        UsageError: if an arm is unknown, or two of these exclude each other.
    """

    arms: Sequence[str]
    seeds: int = 3
    training: FinetuneSettings = field(default_factory=FinetuneSettings)
    grid: Sequence[float] | None = None
    grid_seeds: int = 1
    sweep: Path | None = None
    jobs: int = 1
    ray: str | None = None
    keep: Keep = "best"

    def __post_init__(self) -> None:
        for name in self.arms:
            Contender.parse(name).settings(self.training)
        if self.grid and self.sweep:
            raise UsageError("expected either --lr-grid or --lr-record, got both: leave one out")
        if self.ray and self.jobs > 1:
            raise UsageError("expected either --jobs or --ray, got both: leave one out")
        if self.keep not in get_args(Keep):
            raise UsageError(f"expected keep among {', '.join(get_args(Keep))}, got {self.keep!r}")


def runs_beside(record: Path) -> Path:
    """Return the folder of the finished runs of a comparison."""
    return record.with_name(f"{record.stem}.runs")


def weights_beside(record: Path) -> Path:
    """Return the folder of the weights that a comparison keeps, ``ARM/SEED``."""
    return record.with_suffix("") if record.suffix else record.with_name(f"{record.name}.weights")


def compare(
    path: str | Path,
    target: str | Path,
    settings: CompareSettings,
    *,
    options: OpenOptions | None = None,
    relaxing: RelaxSettings | None = None,
    restart: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ComparisonRecord:
    """Train arms side by side from the original checkpoint, and write and return one record.

    Every finished run is kept in a folder beside the record, from which the same call goes on, and the best weights of
    every arm in another, from which ``surgeon strip`` makes clean ones.

    Args:
        path: the relaxed folder, a checkpoint that was never relaxed, or the address of one of them on the Hub.
        target: the record, a JSON file.
        settings: what is compared.
        options: how to find model and task.
        relaxing: where branches go in a checkpoint that was never relaxed, and its group.
        restart: begin anew: finished runs of the comparison are deleted.
        force: replace a record that no finished runs belong to.
        progress: told how it goes on.

    Raises:
        ExistsError: if something else is in the place, or another process is writing there.
        UsageError: if the runs in the place are those of another comparison.
        CheckpointError: if what is compared from, or the record of the sweep, cannot be read.
        TrainingError: if a run fails or is interrupted; what is finished is kept.
    """
    target, progress = Path(target), progress or Progress()
    runs_folder, weights = runs_beside(target), None if settings.keep == "none" else weights_beside(target)
    with writing_alone(runs_folder):
        _check_places(target, weights, (runs_folder / IDENTITY_FILE).is_file(), force or restart)
        workspace = open_for_comparison(path, settings.arms, options, relaxing, say=progress.say)
        comparison = comparison_of(workspace, settings.training, weights)
        swept = read_sweep(settings.sweep) if settings.sweep else None
        seeds = range(settings.training.seed, settings.training.seed + settings.seeds)
        # what is wrong is found before training
        final_points(comparison, settings.arms, seeds, swept["best"] if swept else None)
        kept = RunStore(runs_folder, identity_of(workspace, comparison.settings), restart)
        record = ComparisonRecord(comparison, primary_metric(comparison.task)[0], kept)
        recipe = Recipe.of(workspace, comparison.settings, weights, relaxing)
        execute = _told(_executor(settings, comparison, recipe, progress), record.metric, progress)
        _tell_kept(kept, progress)
        with _kept_on_failure(target, record), _begun(kept, weights):
            if settings.grid:
                swept = sweep(comparison, settings.arms, settings.grid, range(settings.grid_seeds), execute, kept)
            rates = swept["best"] if swept else None
            record.sweep, record.points = swept, final_points(comparison, settings.arms, seeds, rates)
            run_arms(comparison, settings.arms, seeds, rates, execute, kept)
        if weights is not None:
            record.kept_weights = settle(weights, record.runs, settings.keep, *primary_metric(comparison.task))
            record.next = _tell_weights(record, weights, workspace, progress)
        record.complete = True
        write_json(target, record.to_data(), force=True)
    return record


def _check_places(target: Path, weights: Path | None, begun: bool, force: bool) -> None:
    """Refuse places in which something else is; a folder of weights that no comparison has begun is never replaced."""
    if target.exists() and not (begun or force):
        raise ExistsError(f"{str(target)!r} exists already: choose another output or overwrite it with `--force`")
    check_writable(target, True)
    if weights is not None and not begun and weights.is_dir() and any(weights.iterdir()):
        raise ExistsError(
            f"the weights would be kept in '{weights}', which exists already and is of no comparison: name the record "
            "otherwise with -o, or keep no weights with --keep none"
        )
    if weights is not None:
        check_writable(weights, begun)


def _tell_weights(record: ComparisonRecord, weights: Path, workspace: Workspace, progress: Progress) -> str:
    """Say of which arms no weights are there: their runs were finished when none were kept; return what comes next."""
    lost = [arm for arm, seeds in record.kept_weights.items() if not seeds]
    if lost:
        progress.say(
            f"no weights of {', '.join(lost)} are in {weights}/, since they were not kept when these runs were "
            "finished; --restart trains them again"
        )
    there = [weights / arm / str(seed) for arm, seeds in record.kept_weights.items() for seed in seeds]
    return strip_command(there[0], workspace) if there else ""


def _executor(settings: CompareSettings, comparison: Comparison, recipe: Recipe, progress: Progress) -> Execute:
    if settings.ray is None and settings.jobs == 1:
        return one_after_the_other(comparison, progress)
    return ray_cluster(recipe, settings.ray) if settings.ray else local_processes(recipe, settings.jobs)


def _told(execute: Execute, metric: str, progress: Progress) -> Execute:
    """Say how it goes on with every list of runs."""

    def told(points: Sequence[Point]) -> Iterator[tuple[Point, Outcome]]:
        if points:
            progress.begin("run" if points[0].test else "sweep", metric, len(points))
        for point, outcome in execute(points):
            progress.finish(point, outcome)
            yield point, outcome

    return told


def _tell_kept(kept: RunStore, progress: Progress) -> None:
    if kept.damaged:
        runs, names = f"{len(kept.damaged)} stored runs", ", ".join(kept.damaged)
        progress.say(f"{runs} are damaged, or of another version, and will be repeated: {names}")
    if kept:
        progress.say(f"going on: {len(kept)} finished runs are in {kept.folder}/")


def identity_of(workspace: Workspace, settings: FinetuneSettings) -> dict[str, Any]:
    """Return what all runs in one folder have to share; arm, learning rate and seed stand in the name of a run."""
    (_, files), task, adjustments = workspace.require_relaxed(), workspace.require_task(), workspace.adjustments
    shared = settings.settled().to_data()
    del shared["seed"], shared["learning_rate"]
    found = files.config.plan.to_data()
    if files.folder == workspace.checkpoint.path:  # found anew by every call: measured residuals differ
        found = {
            "group": found["group"],
            "sites": [[site.key, site.shape, site.rank] for site in files.config.plan.sites],
        }
    plan = json.dumps(found, sort_keys=True)
    branches = hashlib.sha256()
    for name, tensor in sorted(files.branches.items()):
        branches.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return {
        "versions": {name: versions().get(name) for name in ("python", "equisurgeon", "torch", "e3nn")},
        "checkpoint sha256": files.config.base["sha256"],
        "changes before training": None if adjustments is None else adjustments.sentence,
        "plan": {"sites": len(files.config.plan.sites), "sha256": hashlib.sha256(plan.encode()).hexdigest()},
        "initial branches sha256": branches.hexdigest() if files.config.step == 0 else None,
        "task": {"sha256": task.sha256, "arguments": dict(task.arguments)},
        "model": workspace.found.factory,
        **({"probes": {name: probe.sha256 for name, probe in workspace.probes.items()}} if workspace.probes else {}),
        "settings": shared,
    }


@contextmanager
def _begun(kept: RunStore, weights: Path | None) -> Iterator[None]:
    """Begin the folder of the runs before weights are written, else they would seem to be of no comparison."""
    if weights is not None:
        kept.begin()
    try:
        yield
    except BaseException:
        if weights is None or not any(weights.glob("*")):
            kept.give_up()
        raise


@contextmanager
def _kept_on_failure(target: Path, record: ComparisonRecord) -> Iterator[None]:
    """Say where the finished runs are when a later one fails or is interrupted."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        kept, then = record.kept, "the same command goes on"
        if kept:
            then = f"{len(kept)} finished runs are kept in {kept.folder}/, {then}"
        else:
            then = f"no run was finished, {then if kept.folder.exists() else 'nothing was written'}"
        if kept and (record.runs or record.sweep):
            write_json(target, record.to_data(), force=True)
        if isinstance(error, KeyboardInterrupt | TrainingError):
            raise TrainingError(f"{str(error) or 'interrupted'}; {then}") from None
        error.add_note(then)
        raise


def read_sweep(path: Path) -> Mapping[str, Any]:
    """Read the record of a sweep.

    Raises:
        CheckpointError: if it is missing or has no best learning rates.
    """
    try:
        data: Mapping[str, Any] = parse_json(bytes_of(path))
        data = data.get("sweep") or data
        return {**data, "best": {str(arm): float(rate) for arm, rate in data["best"].items()}}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"expected the record of a sweep in {str(path)!r}, could not read one ({error}): give the file that "
            "--lr-grid wrote"
        ) from error
