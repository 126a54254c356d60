"""``surgeon push`` and ``surgeon pull``: the Hugging Face Hub."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import surgeon
from surgeon.files.address import HubPath
from surgeon_cli.bundles import unbundled
from surgeon_cli.options import ForceOption, JsonOption, OutOption
from surgeon_cli.screen import print_json, say

if TYPE_CHECKING:
    from surgeon.hub.pushing import Pushed, PushOptions


@dataclass(frozen=True)
class Pushing:
    """Where and how to upload."""

    private: Annotated[bool, typer.Option("--private", help="Create the repository for its owner only.")] = False
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch to write to; created if there is none.")
    ] = None
    tag: Annotated[str | None, typer.Option("--tag", help="Also mark the new state with a tag.")] = None
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Propose the change as a pull request.")] = False
    message: Annotated[str | None, typer.Option("--message", "-m", help="Message of the commit.")] = None
    with_training_state: Annotated[
        bool, typer.Option("--with-training-state", help="Also upload what a resume elsewhere needs.")
    ] = False
    parent_commit: Annotated[
        str | None,
        typer.Option("--parent-commit", metavar="COMMIT", help="Refuse if the branch has moved on from this commit."),
    ] = None
    comparison: Annotated[
        Path | None,
        typer.Option("--comparison", metavar="FILE", help="What --compare wrote: its table goes into the card."),
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be uploaded; write nothing.")] = False

    def options(self) -> PushOptions:
        """Return the engine's options."""
        return surgeon.PushOptions(**dataclasses.asdict(self))


@unbundled
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Relaxed folder, run folder or clean folder.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository; created if there is none.")],
    *,
    pushing: Pushing,
    json_output: JsonOption = False,
) -> None:
    """Upload a folder to the Hugging Face Hub with a model card; files that are there already are skipped.

    Log in with `hf auth login`, or set HF_TOKEN.

    Examples:

        surgeon push net-run owner/net-relaxed --private --dry-run

        surgeon push net-run owner/net-relaxed --with-training-state

        surgeon push net-clean owner/net-finetuned --tag v1
    """
    pushed = surgeon.push_to_hub(folder, repo, pushing.options())
    if json_output:
        print_json(dataclasses.asdict(pushed))
        return
    _show(pushed, pushing)


def _show(pushed: Pushed, pushing: Pushing) -> None:
    for upload in pushed.files:
        what = "is there already" if not upload.changed else "would be uploaded" if pushing.dry_run else "uploaded"
        say(f"{upload.name}: {upload.size:,} bytes, {what}")
    for name in pushed.left_out:
        say(f"{name}: left out")
    if pushing.dry_run:
        total = sum(upload.size for upload in pushed.files if upload.changed)
        say(f"dry run: nothing was written; {total:,} bytes would go to {pushed.repo}")
    elif pushed.pull_request is not None:
        say(f"proposed as {pushed.pull_request}")
    else:
        say(f"hf://{pushed.repo}@{pushed.commit}")


@unbundled
def pull(
    path: Annotated[str, typer.Argument(metavar="HF://OWNER/NAME", help="Repository, with @revision if wanted.")],
    *,
    out: OutOption = None,
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit.")] = None,
    force: ForceOption = False,
    json_output: JsonOption = False,
) -> None:
    """Download a relaxed model, with its training state if it has one, or clean weights, into a folder.

    Examples:

        surgeon pull hf://owner/net-relaxed

        surgeon pull hf://owner/net-relaxed@v1 -o net-run

        surgeon finetune net-run -o net-run --task task.py
    """
    address = HubPath.parse(path)
    if revision is not None:
        address = dataclasses.replace(address, revision=revision)
    pulled = surgeon.pull(address, out, force=force)
    if json_output:
        print_json(
            {
                "written": str(pulled.folder),
                "from": str(pulled.path),
                "files": pulled.files,
                "left_out": pulled.left_out,
            }
        )
        return
    say(f"wrote {pulled.folder}/ from {pulled.path}: {', '.join(pulled.files)}")
    if pulled.left_out:
        say(f"left out: {', '.join(pulled.left_out)}")
