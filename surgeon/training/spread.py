"""Runs of a comparison in other processes: on this machine through joblib, on a cluster through Ray.

What is sent is plain data, a path and settings. Every worker opens the relaxed folder by itself for each run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from surgeon.errors import TrainingError, UsageError
from surgeon.opening.description import check_code
from surgeon.opening.options import OpenOptions
from surgeon.opening.relaxing import RelaxSettings
from surgeon.opening.task_calls import can_act, task_forward
from surgeon.opening.tasks import sample_batches
from surgeon.opening.workspace import Workspace
from surgeon.plan import Plan
from surgeon.proof.amounts import MeasureSettings
from surgeon.proof.certify import certify
from surgeon.proof.equivariance import task_equivariance
from surgeon.support.imports import one_line
from surgeon.training.comparison import Comparison, outcome_of
from surgeon.training.kept import write_run
from surgeon.training.outcomes import ArmRun, Execute, Outcome, Point
from surgeon.training.settings import FinetuneSettings
from surgeon.training.starting import open_for_comparison


@dataclass(frozen=True)
class Recipe:
    """From what another process rebuilds a comparison.

    Attributes:
        path: the relaxed folder, or a checkpoint.
        options: how to find the model and the task; nothing is told.
        settings: everything but seed and learning rate.
        directory: the current folder, against which relative paths are read and in which modules are found.
        weights: where the best weights of every run are written; None for nowhere.
        plan: that of a checkpoint which was never relaxed, as JSON.
        relaxing: how its branches start.
    """

    path: str
    options: OpenOptions
    settings: FinetuneSettings
    directory: str
    weights: Path | None = None
    plan: str | None = None
    relaxing: RelaxSettings | None = None

    @classmethod
    def of(
        cls,
        workspace: Workspace,
        settings: FinetuneSettings,
        weights: Path | None = None,
        relaxing: RelaxSettings | None = None,
    ) -> Recipe:
        """Describe an opened folder, or a checkpoint that was relaxed in memory."""
        options = dataclasses.replace(
            workspace.options,
            task_arguments=dict(workspace.options.task_arguments),
            factory_arguments=dict(workspace.options.factory_arguments),
            probes=dict(workspace.options.probes),
            announce=None,
            stage=None,
        )
        path = workspace.path.absolute() if workspace.origin is None else workspace.origin
        relaxation, files = workspace.require_relaxed()
        plan = relaxation.plan.to_json() if files.folder == workspace.checkpoint.path else None
        return cls(str(path), options, settings, os.getcwd(), weights, plan, relaxing)


def comparison_of(workspace: Workspace, settings: FinetuneSettings, weights: Path | None = None) -> Comparison:
    """Return the comparison that starts from an opened relaxed folder.

    A folder that has not been trained gives its branches, so that a comparison starts where a single run would.

    Args:
        settings: everything but seed and learning rate.
        weights: the folder in which the best weights of every run are kept; None for none.

    Raises:
        CheckpointError: if a plain checkpoint was opened, or the model's code has changed since it was relaxed.
        TaskError: if no task is known.
    """
    relaxation, files = workspace.require_relaxed()
    task = workspace.require_task().task
    settings = dataclasses.replace(settings.settled(), schedule=relaxation.schedule)
    start: Mapping[str, Tensor] | None = files.branches if files.config.step == 0 else None
    original = workspace.original()[0]
    check_code(workspace, original)
    return Comparison(
        lambda: workspace.original()[0],
        relaxation.plan,
        task,
        settings,
        start,
        lambda run, model: _judged(workspace, original, run, model),
        {name: probe.task for name, probe in workspace.probes.items()},
        None if weights is None else functools.partial(write_run, weights, workspace),
    )


def _judged(workspace: Workspace, original: nn.Module, run: ArmRun, model: nn.Module) -> ArmRun:
    """Add the verdict of the certificate and the equivariance error of the stripped model."""
    task = workspace.require_task()
    batch = sample_batches(task, 1)[0]
    certificate = certify(original, model, lambda m: task_forward(task.task, m, batch))
    error = None
    if can_act(task.task) and workspace.relaxation is not None:
        group = workspace.relaxation.plan.group_object
        errors = task_equivariance(model, task, group, MeasureSettings(2, 1))
        error = max(summary.maximum for summary in errors.values())
    return dataclasses.replace(run, certificate=certificate.grade or "different", equivariance=error)


def work(recipe: Recipe, point: Point, threads: int) -> tuple[Point, Outcome]:
    """Carry out one run in a process that knows nothing but the arguments."""
    torch.set_num_threads(threads)
    with contextlib.chdir(recipe.directory):
        plan = None if recipe.plan is None else Plan.from_data(json.loads(recipe.plan))
        workspace = open_for_comparison(recipe.path, (), recipe.options, recipe.relaxing, plan)
        return outcome_of(comparison_of(workspace, recipe.settings, recipe.weights), point)


def work_beside_others(recipe: Recipe, point: Point, threads: int, parent: int) -> tuple[Point, Outcome]:
    """Carry out one run in one of several processes of this machine, on a GPU of its own as far as there are enough.

    Args:
        parent: process id of the one that asked; the run ends with it.
    """
    gpus = torch.cuda.device_count()
    if gpus > 1:
        torch.cuda.set_device(worker_number() % gpus)
    with ending_with(parent):
        return work(recipe, point, threads)


def worker_number() -> int:
    """Return the number of this process among those of joblib, which counts them one by one; 0 in any other process."""
    number = re.fullmatch(r"LokyProcess-(\d+)", multiprocessing.current_process().name)
    return int(number[1]) if number else 0


@contextlib.contextmanager
def ending_with(parent: int) -> Iterator[None]:
    """End this process if its parent is killed while the context is open: nobody waits for the run any more."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            if os.getppid() != parent:
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def local_processes(recipe: Recipe, jobs: int) -> Execute:
    """Return how to carry runs out in ``jobs`` processes of this machine, which share its threads and its GPUs.

    Raises:
        TrainingError: by the returned function, if a process dies.
    """

    def execute(points: Sequence[Point]) -> Iterator[tuple[Point, Outcome]]:
        from joblib import Parallel, delayed, parallel_config
        from joblib.externals.loky import get_reusable_executor
        from joblib.externals.loky.process_executor import TerminatedWorkerError

        if not points:
            return
        threads = max(1, torch.get_num_threads() // jobs)
        with parallel_config("loky", inner_max_num_threads=threads):
            parallel = Parallel(n_jobs=jobs, batch_size=1, pre_dispatch=jobs, return_as="generator_unordered")
            outcomes = parallel(delayed(work_beside_others)(recipe, point, threads, os.getpid()) for point in points)
        finished = False
        try:
            yield from outcomes
            finished = True
        except TerminatedWorkerError as error:
            raise TrainingError(
                f"a process of the comparison died ({one_line(error)}): if memory ran out, take fewer `--jobs`"
            ) from error
        finally:
            # an idle worker would keep its memory for minutes, and one that still trains is not waited for
            get_reusable_executor(max_workers=jobs).shutdown(wait=True, kill_workers=not finished)

    return execute


def ray_cluster(recipe: Recipe, address: str) -> Execute:
    """Return how to carry runs out on a Ray cluster, one core and, where the cluster has any, one GPU for each run.

    Every node needs equisurgeon and the same paths: checkpoint, relaxed folder, task.

    Args:
        address: of the cluster; "local" starts one on this machine, "auto" takes the one that runs here.

    Raises:
        UsageError: if Ray is not installed; by the returned function, if there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise UsageError("expected Ray for --ray, it is not installed: run `pip install 'equisurgeon[ray]'`") from error

    def execute(points: Sequence[Point]) -> Iterator[tuple[Point, Outcome]]:
        if not points:
            return
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                f"expected a Ray cluster at {address!r}, could not reach one ({one_line(error)})"
            ) from error
        try:
            # Not ray.util.joblib: its pool has as many workers as the cluster has cores at its start, GPUs or not.
            task = ray.remote(num_gpus=1 if ray.cluster_resources().get("GPU") else 0, max_retries=0)(work)
            pending = [task.remote(recipe, point, 1) for point in points]
            while pending:
                (done, *_), pending = ray.wait(pending)
                yield ray.get(done)
        finally:
            ray.shutdown()

    return execute
