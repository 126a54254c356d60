"""``surgeon diagnose``: will relaxation change anything?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from surgeon.training.diagnosis.diagnose import diagnose as diagnose_path
from surgeon.training.diagnosis.result import Curvature, Diagnosis, DiagnosisSettings
from surgeon.training.statistics import Estimate
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import (
    ActionOption,
    ForceOption,
    JsonOption,
    OptionalGroupOption,
    PathArgument,
    ReopenOptions,
    folder_or_only,
)
from surgeon_cli.screen import console, print_json, say

MOST_SITES = 8

SECONDS = 60.0
"""Time for the overall figure."""

SMALLEST_SHARE = 0.01
"""Sites with less of the direction's squared norm are not named on screen."""


@dataclass(frozen=True)
class Diagnosing:
    """Where to look, and how much."""

    include: Annotated[
        list[str] | None, typer.Option("--include", help="Look only at ops whose name matches; may be repeated.")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave out ops whose name matches; may be repeated.")
    ] = None
    products: Annotated[int, typer.Option("--products", help="Hessian-vector products at most, at least 10.")] = 30
    train_batches: Annotated[
        int, typer.Option("--train-batches", min=1, help="Training batches on which the direction is sought.")
    ] = 8
    held_out_batches: Annotated[
        int, typer.Option("--held-out-batches", min=1, help="Validation batches on which it is judged.")
    ] = 32
    per_site: Annotated[bool, typer.Option("--per-site", help="Also seek a direction for every op alone.")] = False
    seed: Annotated[int, typer.Option("--seed", help="Of the training batches and of the first direction.")] = 0

    seconds: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            help="About how long it may take: fewer batches and products are used if need be. "
            f"Default: {SECONDS:g}, with --per-site as long as it takes.",
        ),
    ] = None

    def settings(self) -> DiagnosisSettings:
        """Return the engine's settings."""
        seconds = SECONDS if self.seconds is None and not self.per_site else self.seconds
        counts = (self.products, self.train_batches, self.held_out_batches)
        return DiagnosisSettings(*counts, self.per_site, self.seed, seconds)


@unbundled
def diagnose(
    path: PathArgument = None,
    *,
    opening: ReopenOptions,
    diagnosing: Diagnosing,
    group: OptionalGroupOption = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Also write the record as JSON.")
    ] = None,
    action: ActionOption = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Ask whether relaxation will change anything: does the loss bend down where W breaks the symmetry?

    Nothing is changed. The most favourable direction is sought on a few training batches and judged on validation
    batches.

    Examples:

        surgeon diagnose segnn.safetensors --group O3 --task task.py

        surgeon diagnose segnn-relaxed --per-site -o diagnosis.json
    """
    settings, chosen = diagnosing.settings(), folder_or_only(path, json_output)
    with _progress(json_output) as on_product:
        diagnosis = diagnose_path(
            chosen,
            settings,
            group=group,
            include=diagnosing.include or [],
            exclude=diagnosing.exclude or [],
            options=dataclasses.replace(opening.options(json_output), action=action),
            on_product=on_product,
            out=out,
            force=force,
        )
    if json_output:
        print_json(diagnosis.to_data())
        return
    _show(diagnosis)
    if out is not None:
        say(f"wrote {out}")


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """Yield what shows the number of products on a terminal's standard error; None if nothing is to be shown."""
    screen = Console(stderr=True, highlight=False)
    if quiet or not screen.is_terminal:
        yield None
        return
    with Progress(console=screen, transient=True) as bar:
        task = bar.add_task("Hessian-vector products", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(diagnosis: Diagnosis) -> None:
    out = console()
    out.print(_overall(diagnosis))
    if diagnosis.per_site:
        out.print(_sites(diagnosis.per_site, diagnosis.curvature.shares))
    else:
        largest = sorted(diagnosis.curvature.shares.items(), key=lambda pair: -pair[1])[:MOST_SITES]
        named = [f"{key} ({share:.0%})" for key, share in largest if share >= SMALLEST_SHARE]
        say("the direction lies in " + ", ".join(named))
    for note in diagnosis.notes:
        say(f"note: {note}")
    curvature = diagnosis.curvature
    state = "converged" if curvature.converged else "not converged"
    say(
        f"{curvature.products} Hessian-vector products by {diagnosis.method} over {diagnosis.parameters:,} entries of "
        f"W, {state}, {diagnosis.seconds:.1f} s"
    )
    for sentence in diagnosis.sentences():
        say(sentence)


def _overall(diagnosis: Diagnosis) -> Table:
    """Return the table of everything that is relative to the loss."""
    curvature, slope = diagnosis.curvature, diagnosis.slope
    table = Table(title="change of the loss, in %, in directions that break the symmetry", title_justify="left")
    table.add_column("when outputs of ops move by")
    table.add_column("training batches", justify="right")
    table.add_column("held-out batches (95 % interval)", justify="right")
    residual = f" (residual {100 * curvature.residual:.1g})"
    table.add_row("1 %, second order", f"{100 * curvature.train:+.3g}{residual}", _interval(curvature.held_out))
    for step in curvature.steps:
        moved = f"{100 * step.movement:g} %, the loss itself"
        table.add_row(moved, f"{100 * step.train:+.3g}", f"{100 * step.held_out:+.3g}")
    table.add_row("1 %, first order, along the gradient", f"{100 * slope.train:+.3g}", _interval(slope.held_out))
    return table


def _sites(per_site: Mapping[str, Curvature], shares: Mapping[str, float]) -> Table:
    table = Table(title="each op alone, 1 %, second order", title_justify="left")
    table.add_column("op", overflow="fold")
    for heading in ("share of the common direction", "training", "held-out (95 % interval)", "converged", "verdict"):
        table.add_column(heading, justify="right")
    for key, found in per_site.items():
        converged = "yes" if found.converged else "no"
        numbers = (f"{shares.get(key, 0.0):.0%}", f"{100 * found.train:+.3g}", _interval(found.held_out))
        table.add_row(key, *numbers, converged, found.verdict)
    return table


def _interval(estimate: Estimate) -> str:
    mean = f"{100 * estimate.mean:+.3g}"
    return mean if math.isnan(estimate.half_width) else f"{mean} ± {100 * estimate.half_width:.2g}"
