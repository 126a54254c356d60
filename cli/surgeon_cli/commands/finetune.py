"""``surgeon finetune``: train a relaxed folder, or compare arms."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import surgeon
from surgeon.errors import UsageError
from surgeon.files.outputs import is_first_process
from surgeon.training.arms import ARMS
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import (
    ForceOption,
    JsonOption,
    OptionalGroupOption,
    OutOption,
    PathArgument,
    ProbeOption,
    ReferenceOption,
    ReopenOptions,
    folder_or_only,
    output_stem,
    with_probes,
    with_reference,
)
from surgeon_cli.progress import training_bar
from surgeon_cli.screen import comparison_table, other_metrics_table, print_json, print_table, say, show, sweep_table
from surgeon_cli.training_options import Comparing, Keeping, Rare, Searching, Training, chosen_settings

if TYPE_CHECKING:
    from surgeon.training.finetune import Finetuned
    from surgeon.training.record import ComparisonRecord
    from surgeon.training.search import SearchRecord


ArmOption = Annotated[
    str | None,
    typer.Option(
        "--arm", help=f"One of {', '.join(ARMS)}, or plain@soap and the like; default: as the folder strips, or plain."
    ),
]


@unbundled
def finetune(
    path: PathArgument = None,
    *,
    out: OutOption = None,
    arm: ArmOption = None,
    group: OptionalGroupOption = None,
    reference: ReferenceOption = None,
    probe: ProbeOption = None,
    training: Training,
    keeping: Keeping,
    searching: Searching,
    comparing: Comparing,
    opening: ReopenOptions,
    rare: Rare,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Fine-tune a relaxed folder while theta goes 0 -> 1 -> 0, or a checkpoint; what is given stays as it is.

    A checkpoint that was never relaxed is trained as it is, unless --arm says otherwise, by the optimiser that its task
    prefers: SOAP for MACE and SevenNet. Every arm leaves a run folder, for `surgeon strip`.

    The run folder holds the best weights by clean validation and what a resume needs: after an interruption the same
    command goes on. With --compare arms are trained side by side; a record is written, with every run in a folder
    beside it, and the weights of the best seed of every arm as ARM/SEED in a folder named as the record. With --auto
    arms, optimisers and learning rates are tried on validation data, and the best is trained to the end as one run.

    Examples:

        surgeon finetune mace.model --task mace:frames.xyz --trust-pickle --epochs 30

        surgeon finetune segnn-relaxed --epochs 20 --lr 1e-3

        surgeon finetune segnn.safetensors --auto --budget 10x --epochs 30

        surgeon finetune segnn-relaxed --compare plain,drop,fold,overparam --seeds 3
    """
    _refuse_mixtures(arm, keeping, searching, comparing)
    folder, settings = folder_or_only(path, json_output, trained=False), chosen_settings(training, rare)
    options = with_probes(with_reference(opening.options(json_output), reference, folder), probe)
    stem, first = output_stem(folder).removesuffix("-relaxed"), is_first_process()
    given: dict[str, Any] = {"options": options, "force": force}
    with training_bar(json_output or not first) as bar:
        if comparing.compare is not None:
            record, asked = out or Path(f"{stem}-compare.json"), comparing.settings(settings)
            found = surgeon.compare(folder, record, asked, restart=comparing.restart, progress=bar, **given)
        else:
            target, given["relaxing"] = out or Path(f"{stem}-run"), surgeon.RelaxSettings(group=group)
            if searching.auto:
                among = searching.settings(settings, comparing.grid)
                searched, done = surgeon.finetune_auto(folder, target, among, progress=bar, **given)
            else:
                given |= {"arm": arm, "save_every": keeping.save_every, "trackers": keeping.track or []}
                done = surgeon.finetune(folder, target, settings, progress=bar, **given)
    if comparing.compare is not None:
        _show_comparison(found, record, asked.seeds, json_output)
    elif searching.auto:
        _show_search(searched, done, json_output)
    elif first:
        _show_run(done, json_output)


def _refuse_mixtures(arm: str | None, keeping: Keeping, searching: Searching, comparing: Comparing) -> None:
    """Refuse options of one way of training together with another."""
    if (comparing.compare is not None) + (arm is not None) + searching.auto > 1:
        raise UsageError("expected one of --arm, --auto and --compare, got more: leave the others out")
    if searching.auto:
        keeping.refuse()
    else:
        searching.refuse()
    if comparing.compare is None:
        comparing.refuse(search=searching.auto)


def _show_run(done: Finetuned, json_output: bool) -> None:
    from surgeon.proof.words import PROBED, probe_rows

    result, arm, metric = done.result, done.arm, done.metric
    if json_output:
        print_json({"written": str(done.folder), "arm": arm.name, "probes": done.probes, **dataclasses.asdict(result)})
        return
    if result.stopped:
        say(f"stopped early: {result.stopped}")
    say(f"arm {arm.name}: {arm.summary}")
    say(
        f"{result.steps} steps in {result.seconds:.1f} s; clean validation {metric}: "
        f"{result.history[0]['validation'][metric]:.6g} before, {result.validation[metric]:.6g} at the best epoch "
        f"{result.best_epoch}"
    )
    if result.best_epoch == 0:
        say(
            "note: nothing was gained: no epoch was better on validation than the weights that the training began "
            "with, and these are the result"
        )
    if done.worse:
        say(
            f"note: in {done.worse} evaluation{'' if done.worse == 1 else 's'} the relaxed model was worse on "
            "validation than the same model without its branches; --adaptive-theta, or a "
            "smaller --branch-factor, may help"
        )
    print_table("on other data", [PROBED, *probe_rows(done.probes)])
    say(f"wrote {done.folder}/; next: {done.next}")


def _show_search(found: SearchRecord, done: Finetuned, json_output: bool) -> None:
    if json_output:
        print_json({"written": str(done.folder), "search": dataclasses.asdict(found), "arm": done.arm.name})
        return
    headings = ("arm", "lr", "epochs", "steps", f"validation {found.metric}", "outcome")
    rows = (
        (
            row["arm"],
            f"{row['learning_rate']:g}",
            f"{row['epochs']}",
            f"{row['steps']}",
            f"{row['value']:.5g}",
            row["outcome"],
        )
        for row in sorted(found.rows, key=lambda row: (-row["epochs"], row["outcome"]))
    )
    print_table("settings that were tried", [headings, *rows])
    for sentence in found.sentences():
        say(sentence)
    _show_run(done, json_output)


def _show_comparison(found: ComparisonRecord, target: Path, seeds: int, json_output: bool) -> None:
    from surgeon.training.compare import runs_beside, weights_beside
    from surgeon.training.statistics import summarise_runs

    if json_output:
        print_json(found.to_data())
        return
    swept = found.sweep
    if swept and {"grid", "runs", "seeds", "metric"} <= swept.keys():
        show(sweep_table(swept))
    show(comparison_table(found.rows(), found.metric, seeds))
    others = [name for name in found.runs[0].test if name not in (found.metric, "loss")]
    if others:
        show(other_metrics_table({name: summarise_runs(found.runs, name) for name in others}))
    for sentence in found.sentences():
        say(sentence)
    say(f"wrote {target}; every run is in {runs_beside(target)}/")
    weights = weights_beside(target)
    folders = [str(weights / arm / str(seed)) for arm, seeds in found.kept_weights.items() for seed in seeds]
    if folders:
        say(f"kept the weights in {', '.join(folders)}; next: {found.next}")
