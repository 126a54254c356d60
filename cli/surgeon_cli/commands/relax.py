"""``surgeon relax``: insert branches and write a relaxed folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import surgeon
from surgeon.algebra.schedule import Schedule
from surgeon_cli.bundles import unbundled
from surgeon_cli.narrowing import Narrowing, read_theta_shares
from surgeon_cli.options import (
    ActionOption,
    FindOptions,
    ForceOption,
    JsonOption,
    OptionalGroupOption,
    OutOption,
    ProbeOption,
    ReferenceOption,
    output_stem,
    with_probes,
    with_reference,
)
from surgeon_cli.screen import print_json, say

if TYPE_CHECKING:
    from surgeon.opening.relaxing import RelaxSettings


@dataclass(frozen=True)
class Inserting:
    """Where branches go and how they start."""

    include: Annotated[
        list[str] | None, typer.Option("--include", help="Relax only ops whose name matches; may be repeated.")
    ] = None
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", help="Leave ops alone whose name matches; may be repeated.")
    ] = None
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Insert what this plan says instead of looking for ops."),
    ] = None
    strip_mode: Annotated[
        Literal["drop", "fold"],
        typer.Option("--strip-mode", help="drop: the paper's method; fold: keep the equivariant part of W."),
    ] = "drop"
    schedule: Annotated[
        Literal["triangle", "one-sided", "cosine", "constant", "early"],
        typer.Option("--schedule", help="theta over time."),
    ] = "triangle"
    init_scale: Annotated[
        float, typer.Option("--init-scale", min=0.0, help="Scale of the initial W; 0 starts at W = 0.")
    ] = 0.0
    theta_site: Annotated[
        list[str] | None,
        typer.Option(
            "--theta-site", metavar="PATTERN=SHARE", help="Share of theta for matching sites; may be repeated."
        ),
    ] = None

    def settings(self, group: str | None, narrowing: Narrowing) -> RelaxSettings:
        """Return the engine's settings.

        Raises:
            UsageError: if an option cannot be read, or needs or excludes another one.
        """
        schedule = Schedule(self.schedule, sites=read_theta_shares(self.theta_site or []))
        return surgeon.RelaxSettings(
            group=group,
            plan=self.plan,
            include=self.include or [],
            exclude=self.exclude or [],
            strip_mode=self.strip_mode,
            schedule=schedule,
            init_scale=self.init_scale,
            **narrowing.settings(),
        )


@unbundled
def relax(
    path: Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint file or hf:// path.")],
    *,
    opening: FindOptions,
    inserting: Inserting,
    narrowing: Narrowing,
    group: OptionalGroupOption = None,
    out: OutOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")] = False,
    action: ActionOption = None,
    reference: ReferenceOption = None,
    probe: ProbeOption = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Insert a branch at every relaxable op and write a relaxed folder; the function of the network does not change.

    Examples:

        surgeon relax segnn.safetensors --group O3 -o relaxed/

        surgeon relax model.pt --group SO3 --task task.py --exclude 'embedding*' --dry-run

        surgeon relax model.pt --task task.py --plan plan.json

        surgeon relax model.pt --task task.py --max-extra-params 30%

        surgeon relax hf://owner/name --group O3 --task task.py
    """
    from surgeon_cli.plan_screen import show_plan, showing_refusals

    target = None if dry_run else out or Path(f"{output_stem(path)}-relaxed")
    options = with_reference(dataclasses.replace(opening.options(json_output), action=action), reference, path)
    options = with_probes(options, probe)
    settings = inserting.settings(group, narrowing)
    with showing_refusals(json_output):
        done = surgeon.relax_checkpoint(path, target, settings, options=options, force=force)
    if json_output:
        written = None if target is None else str(target)
        found = {"before": done.before, "probes": done.probes, "told": done.told}
        print_json({"written": written, "seconds": done.seconds, **found, "plan": done.plan.to_data()})
        return
    show_plan(done.plan, done.relaxation.model, done.parameters)
    for sentence in done.told:
        say(sentence)
    took = f"(opened in {done.seconds['open']:.1f} s, relaxed in {done.seconds['relax']:.1f} s)"
    say("dry run: nothing was written" if dry_run else f"wrote {target}/ {took}; next: {done.next}")
