"""Upload a folder: only what changed, as one commit, and nothing that does not belong on the Hub."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from surgeon.errors import HubError, UsageError
from surgeon.files.address import HubPath, check_repo, check_revision, is_commit, is_hub_path
from surgeon.files.clean import CARD_FILE as CARD
from surgeon.files.content import sha256_of_file
from surgeon.files.relaxed import CONFIG_FILE
from surgeon.hub.card import card_text, read_comparison
from surgeon.hub.content import Content, content_of
from surgeon.opening.remote.client import (
    HubFile,
    Listing,
    RepositoryMissing,
    RevisionMissing,
    api,
    hub_errors,
    is_offline,
    list_files,
)
from surgeon.opening.remote.fetch import download, git_hash

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

TEXTS = (".json", ".jsonl", ".md")
COMPARED_ABOVE = 10_000_000
"""Bytes up to which the Hub takes a file without comparing its hash."""


@dataclass(frozen=True)
class Upload:
    """A file of a push.

    Attributes:
        name: in the repository.
        size: bytes.
        changed: False if the repository holds these bytes already.
    """

    name: str
    size: int
    changed: bool


@dataclass(frozen=True)
class PushOptions:
    """Where and how to upload.

    Attributes:
        private: create the repository for its owner only.
        revision: branch; it is created if it does not exist. None for the main branch.
        tag: name for the new state.
        create_pr: propose the change as a pull request instead of making it.
        message: of the commit.
        with_training_state: also upload what a resume needs.
        parent_commit: refuse if the branch has moved on from this commit; default: from where it is now.
        comparison: what ``surgeon finetune --compare`` wrote; the card shows its arms with their spread.
        dry_run: look only.
    """

    private: bool = False
    revision: str | None = None
    tag: str | None = None
    create_pr: bool = False
    message: str | None = None
    with_training_state: bool = False
    parent_commit: str | None = None
    comparison: str | Path | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    Attributes:
        repo: ``owner/name``.
        commit: the repository's state afterwards; None for a dry run.
        files: all files of the folder.
        left_out: files of the folder that are not uploaded.
        pull_request: address of the pull request, if one was asked for.
    """

    repo: str
    commit: str | None
    files: tuple[Upload, ...]
    left_out: tuple[str, ...]
    pull_request: str | None = None


def push_to_hub(folder: str | Path, repo: str, options: PushOptions | None = None) -> Pushed:
    """Upload a relaxed, run or clean folder to a repository, which is created if it does not exist.

    Files that the repository holds already are skipped, so an interrupted push is simply repeated. The model card is
    written anew; text of the user's in the card on the Hub is kept.

    Args:
        folder: what ``surgeon relax``, ``finetune``, ``strip`` or ``export`` wrote.
        repo: ``owner/name``.
        options: where and how.

    Raises:
        CheckpointError: if the folder cannot be uploaded, or the comparison cannot be read.
        HubError: if the Hub refuses, or somebody has changed the repository meanwhile.
        UsageError: if the options contradict each other or the repository.

    Example:
        >>> surgeon.push_to_hub("net-run", "owner/net-relaxed", PushOptions(private=True))  # doctest: +SKIP
    """
    options = options or PushOptions()
    target = _target(repo, options)
    content = content_of(folder, options.with_training_state)
    compared = None if options.comparison is None else read_comparison(options.comparison)
    if is_offline():
        raise HubError("could not push: the network is switched off (HF_HUB_OFFLINE): unset it")
    remote, branch_exists = _remote(target)
    _check_remote(target, remote, content, options)
    text = card_text(content, target.repo, _remote_card(remote) or content.card, compared)
    files = {**content.files, CARD: text.encode()}
    uploads = tuple(_upload(name, value, remote) for name, value in files.items())
    pushed = Pushed(target.repo, None, uploads, content.left_out)
    if options.dry_run:
        return pushed
    if remote is None:
        with hub_errors(f"create {target.repo}"):
            api().create_repo(target.repo, private=options.private, exist_ok=True)
    if options.revision is not None and not branch_exists:
        with hub_errors(f"create the branch {options.revision} of {target.repo}"):
            api().create_branch(target.repo, branch=options.revision, exist_ok=True)
    operations = _operations(files, {upload.name for upload in uploads if upload.changed})
    content_of(folder, options.with_training_state)  # what has changed since it was checked is not uploaded
    if operations or remote is None:
        pushed = _commit(pushed, operations, target, remote, options)
    else:
        pushed = replace(pushed, commit=remote.commit)
    if options.tag is not None and pushed.commit is not None:
        _tag(target, options.tag, pushed.commit)
    return pushed


def _target(repo: str, options: PushOptions) -> HubPath:
    target = HubPath.parse(repo) if is_hub_path(repo) else HubPath(check_repo(repo))
    if target.file is not None or target.revision is not None:
        raise UsageError(f"expected owner/name, got {repo!r}: a branch is given as --revision")
    for name in (options.revision, options.tag):
        if name is not None and (is_commit(check_revision(name)) or name.startswith("refs/")):
            raise UsageError(f"expected the name of a branch or tag to write to, got {name!r}: choose another")
    if options.create_pr and options.tag is not None:
        raise UsageError("expected either --create-pr or --tag, got both: tag it once the pull request is merged")
    if options.parent_commit is not None and not is_commit(options.parent_commit):
        raise UsageError(f"expected a commit of 40 hex digits as parent, got {options.parent_commit!r}: write it out")
    return replace(target, revision=options.revision)


def _remote(target: HubPath) -> tuple[Listing | None, bool]:
    """Return the repository's branch, else its main branch, else None; and whether the branch itself exists."""
    try:
        return list_files(target), True
    except RevisionMissing:
        return list_files(replace(target, revision=None)), False
    except RepositoryMissing:
        return None, False


def _check_remote(target: HubPath, remote: Listing | None, content: Content, options: PushOptions) -> None:
    if remote is None:
        return
    if options.private and not remote.private:
        raise UsageError(
            f"expected a private repository, but {target.repo} exists and is public: nothing was uploaded, leave out "
            "--private or choose another name"
        )
    if content.kind == "clean" and CONFIG_FILE in remote.files:
        raise UsageError(
            f"expected a repository without a relaxed model for clean weights, but {target} holds one: nothing was "
            "uploaded, choose another name or a new branch"
        )
    if options.parent_commit is not None and options.parent_commit != remote.commit:
        raise HubError(
            f"expected {target} at commit {options.parent_commit[:12]}, but it is at {remote.commit[:12]}: somebody "
            "changed it meanwhile, look at what they did"
        )


def _remote_card(remote: Listing | None) -> str:
    if remote is None or CARD not in remote.files:
        return ""
    return (download(remote, [CARD]) / CARD).read_text(encoding="utf-8", errors="replace")


def _upload(name: str, value: Path | bytes, remote: Listing | None) -> Upload:
    size = len(value) if isinstance(value, bytes) else value.stat().st_size
    there = remote.files.get(name) if remote is not None else None
    return Upload(name, size, there is None or not _same(value, size, there))


def _same(value: Path | bytes, size: int, there: HubFile) -> bool:
    if there.size != size:
        return False
    if there.sha256 is None:
        return git_hash(value if isinstance(value, bytes) else value.read_bytes()) == there.git_hash
    return there.sha256 == (hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else sha256_of_file(value))


def _operations(files: Mapping[str, Path | bytes], changed: Collection[str]) -> list[CommitOperationAdd]:
    """Return what is committed: small files and texts as they are now, others by their hash, which the Hub compares."""
    from huggingface_hub import CommitOperationAdd

    held = {name: files[name] for name in files if name in changed}
    for name, value in held.items():
        if isinstance(value, Path) and (value.suffix in TEXTS or value.stat().st_size <= COMPARED_ABOVE):
            held[name] = value.read_bytes()
    return [
        CommitOperationAdd(name, io.BytesIO(value) if isinstance(value, bytes) else str(value))
        for name, value in held.items()
    ]


def _commit(
    pushed: Pushed,
    operations: Sequence[CommitOperationAdd],
    target: HubPath,
    remote: Listing | None,
    options: PushOptions,
) -> Pushed:
    with hub_errors(f"push to {target}"):
        done = api().create_commit(
            target.repo,
            operations,
            commit_message=options.message or "Upload with equisurgeon",
            revision=target.revision,
            create_pr=options.create_pr,
            parent_commit=None if remote is None else remote.commit,
        )
    return replace(pushed, commit=done.oid, pull_request=done.pr_url)


def _tag(target: HubPath, tag: str, commit: str) -> None:
    from huggingface_hub import errors

    with hub_errors(f"tag {target} as {tag}"):
        try:
            api().create_tag(target.repo, tag=tag, revision=commit)
        except errors.HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            there = api().model_info(target.repo, revision=tag).sha
            if there != commit:
                raise HubError(
                    f"expected the tag {tag} of {target.repo} to be free, but it marks commit {str(there)[:12]}: the "
                    "files are uploaded, choose another name for the tag"
                ) from None
