"""A progress bar for training: theta, loss, penalty, clean validation metric, time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.text import Text

from surgeon.errors import printable
from surgeon.training.progress import Progress, StepEvent

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from surgeon.training.outcomes import Outcome, Point

PRINTED = 4
"""Lines per run when the output is not a terminal."""


class TrainingBar(Progress):
    """Shows on standard error how a training goes on; on a terminal as one live line, otherwise as a few per run."""

    def __init__(self, bars: Bars | None) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None, details="", epoch="-") if bars else None
        self._title, self._metric, self._total, self._started, self._done, self._begun = "", "", 0, 0, 0, 0.0

    def say(self, sentence: str) -> None:
        """Print a sentence; a metric's name can hold anything."""
        print(printable(sentence), file=sys.stderr)

    def begin(self, title: str, metric: str, runs: int = 0) -> None:
        """Count runs from 1; a sweep is counted by itself."""
        self._title, self._metric, self._total = title, metric, runs
        self._started, self._done, self._begun = 0, 0, time.monotonic()
        if not runs:
            self._reset(title)

    def start(self, point: Point) -> None:
        """Begin a new run under its own title."""
        self._started += 1
        self._reset(f"{self._title} {self._started} of {self._total}: {point}")

    def _reset(self, title: str) -> None:
        if self._bars is None:
            self.say(title)
        elif self._task is not None:
            self._bars.reset(self._task, description=title, details="", epoch="-", total=None)

    def step(self, event: StepEvent) -> None:
        """Show one optimiser step."""
        clean, relaxed = event.validation.get(self._metric), event.validation_relaxed.get(self._metric)
        details = f"loss {event.loss:.3e}"
        if event.theta is not None:
            details = f"theta {event.theta:.2f}  {details}  penalty {event.penalty:.2e}"
        if clean is not None:
            details += (
                f"  {self._metric} {clean:.4g}"
                if relaxed is None
                else f"  {self._metric} clean {clean:.4g}, relaxed {relaxed:.4g}"
            )
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=event.step, total=event.steps, details=details, epoch=event.epoch)
        elif event.step * PRINTED // event.steps != (event.step - 1) * PRINTED // event.steps:
            self.say(f"  epoch {event.epoch}, step {event.step}/{event.steps}: {details}")

    def stage(self, ended: str) -> None:
        """Print a line, or show it in place of what is said of the last step."""
        if self._bars is None:
            self.say(f"  {ended}")
        elif self._task is not None:
            self._bars.update(self._task, details=ended)

    def finish(self, point: Point, outcome: Outcome) -> None:
        """Print one line for every run of a comparison that is finished, and how long the others will take."""
        from surgeon.training.outcomes import Failure

        self._done += 1
        if isinstance(outcome, Failure):
            words = outcome.message.split(";")[0]
        else:
            value = outcome.validation[self._metric]
            words = f"validation {self._metric} {value:.4g} in {outcome.seconds:.1f} s"
        left = (time.monotonic() - self._begun) / self._done * (self._total - self._done)
        time_left = f"; about {left / 60:.1f} min left" if left > 90 else f"; about {left:.0f} s left"
        if self._done == self._total:  # of these: a sweep may go on with further rates
            time_left = ""
        self.say(f"{self._title} {self._done} of {self._total}: {point}: {words}{time_left}")


@contextmanager
def training_bar(quiet: bool) -> Iterator[TrainingBar | None]:
    """Yield a bar on standard error, or None if nothing shall be shown."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    class TwoLines(Bars):
        """The bar, and below it how it goes on: the first line keeps step and time left at any width."""

        def get_renderable(self) -> RenderableType:
            told = (printable(str(task.fields["details"])) for task in self.tasks)
            details = (Text(words, no_wrap=True, overflow="ellipsis") for words in told)
            return Group(*self.get_renderables(), *details)

    console = Console(stderr=True, highlight=False)
    if quiet:
        yield None
    elif not console.is_terminal:
        yield TrainingBar(None)
    else:
        columns = (
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=12),
            TextColumn("epoch {task.fields[epoch]}", table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
        )
        shared = sys.stdout.isatty()  # else what is printed goes where the user has sent it
        with TwoLines(*columns, console=console, transient=True, expand=True, redirect_stdout=shared) as bars:
            yield TrainingBar(bars)
