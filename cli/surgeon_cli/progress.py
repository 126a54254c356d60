"""A progress bar for training: theta, loss, penalty, clean validation metric, time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from surgeon.training.engine import StepEvent

PRINTED = 4
"""Lines per run when the output is not a terminal."""


class TrainingBar:
    """Shows step events; on a terminal as one live line, otherwise as a few lines per run."""

    def __init__(self, progress: Progress | None, metric: str) -> None:
        self._progress = progress
        self._metric = metric
        self._task = progress.add_task("", total=None, details="") if progress else None

    def start(self, title: str) -> None:
        """Begin a new run under this title."""
        if self._progress is None:
            print(title, file=sys.stderr)
        elif self._task is not None:
            self._progress.reset(self._task, description=title, details="", total=None)

    def __call__(self, event: StepEvent) -> None:
        """Show one optimiser step."""
        clean, relaxed = event.validation.get(self._metric), event.validation_relaxed.get(self._metric)
        shown = "" if clean is None else f"  {self._metric} clean {clean:.4g}, relaxed {relaxed:.4g}"
        details = f"theta {event.theta:.2f}  loss {event.loss:.3e}  penalty {event.penalty:.2e}{shown}"
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=event.step, total=event.steps, details=details)
        elif event.step * PRINTED // event.steps != (event.step - 1) * PRINTED // event.steps:
            print(f"  epoch {event.epoch}, step {event.step}/{event.steps}: {details}", file=sys.stderr)


@contextmanager
def training_bar(metric: str, quiet: bool) -> Iterator[TrainingBar | None]:
    """Yield a bar on standard error, or None if nothing shall be shown."""
    console = Console(stderr=True, highlight=False)
    if quiet:
        yield None
    elif not console.is_terminal:
        yield TrainingBar(None, metric)
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            yield TrainingBar(progress, metric)
