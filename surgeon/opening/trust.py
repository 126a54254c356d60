"""What is refused of files that somebody else may have written: code that nobody allowed, paths that lead outside."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath

from surgeon.errors import CheckpointError, TrustError, WriteError
from surgeon.files.content import sha256_of_file, write_text
from surgeon.files.relaxed import RelaxedConfig

Ask = Callable[[str], bool]
"""Puts a question to the user; True is yes."""


def state_folder() -> Path:
    """Return where this machine's user keeps what is remembered: ``SURGEON_HOME``, or in ``XDG_STATE_HOME``."""
    own = os.environ.get("SURGEON_HOME")
    state = os.environ.get("XDG_STATE_HOME")
    return Path(own) if own else (Path(state) if state else Path.home() / ".local" / "state") / "equisurgeon"


def remember_task(path: Path, sha256: str | None = None) -> None:
    """Remember that the user gave a task file by hand: these bytes at this place.

    The place counts, too, since a task imports what lies beside it. A machine where nothing can be written forgets.

    Args:
        sha256: hash of the bytes; default is of those that are there now.
    """
    entry = _entry(path, sha256 or sha256_of_file(path))
    with suppress(OSError, WriteError):
        entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(entry, f"{_place(path)}\n", force=True)


def is_remembered(path: Path, sha256: str | None = None) -> bool:
    """Tell whether the user gave this file, where it is now and with these bytes (else those of now), by hand."""
    entry = _entry(path, sha256 or sha256_of_file(path))
    return entry.is_file() and not writable_by_others(entry)


def check_task(path: Path, what: str, *, allowed: bool = False, ask: Ask | None = None) -> str:
    """Refuse to run a task file that was found and not given, unless the user has given it before.

    Args:
        what: where it was found, in words.
        allowed: the user says that it may run; it is remembered.
        ask: how to ask the user, if that is possible.

    Returns:
        Its SHA-256: what has another one when it is run was not checked.

    Raises:
        TrustError: if others may write the file, or nobody has allowed it.
    """
    others = writable_by_others(path)
    if others:
        raise TrustError(
            f"{what} {str(path)!r} is code that somebody else could have written, since {others}: take away their "
            f"permission, or check it and give it as `--task {path}`"
        )
    sha256 = sha256_of_file(path)
    if is_remembered(path, sha256):
        return sha256
    if not (allowed or (ask is not None and ask(f"{what} {path} is code that was never given here. Run it?"))):
        raise TrustError(
            f"{what} {str(path)!r} is code that was never given on this machine: check it and give it as "
            f"`--task {path}`, which is remembered, or add `--trust-task`"
        )
    remember_task(path, sha256)
    return sha256


def refuse_named_code(group: str, allowed: bool, where: str, how: str) -> None:
    """Refuse a group in a file that is ``module:function``, unless the user allows it.

    Args:
        group: what the file says.
        allowed: whether the user does.
        where: what the message calls the file.
        how: the user can allow it.

    Raises:
        TrustError: if it is refused; nothing was imported.
    """
    if ":" in group and not allowed:
        raise TrustError(f"{where} names {group!r} as its group, which is code: if you trust it, give {how}")


def check_config(config: RelaxedConfig, where: str, trust_remote_code: bool = False, remote: bool = True) -> None:
    """Refuse the configuration of a relaxed folder that names code, or from the Hub files outside its folder.

    Args:
        where: what the message calls the source.
        trust_remote_code: whether the user allows code that is named inside files.
        remote: whether it comes from the Hub.

    Raises:
        TrustError: if the group is code.
        CheckpointError: if the base's file is not a plain name.
    """
    how = "`--trust-remote-code`" + (" and a commit after the @" if remote else "")
    refuse_named_code(config.plan.group, trust_remote_code, where, how)
    if not remote:
        return
    name = str(config.base["file"])
    if config.base["repo"] is None and (PurePosixPath(name).name != name or "\\" in name or ":" in name):
        raise CheckpointError(
            f"expected the plain name of the base's file in {where}, got {name!r}, which is a path: do not use it"
        )


def writable_by_others(path: Path) -> str:
    """Say why a file could be somebody else's: owner and permissions of file and folder; empty if it could not."""
    if os.name != "posix":
        return ""
    places = [(path.resolve(), "the file"), (path.resolve().parent, "its folder"), (_place(path).parent, "its folder")]
    for place, name in places:
        found = place.stat()
        if found.st_uid not in (os.getuid(), 0):
            return f"{name} belongs to another user"
        if found.st_mode & stat.S_IWOTH:
            return f"everybody may write {'to ' * (name != 'the file')}{name}"
        if found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid):
            return f"its group may write {'to ' * (name != 'the file')}{name}"
    return ""


def _is_private(group: int) -> bool:
    """Tell whether a group is the user's alone, as on systems where new files may be written by their group."""
    import grp
    import pwd

    try:
        own, found = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return own.pw_gid == group and found.gr_name == own.pw_name and set(found.gr_mem) <= {own.pw_name}


def _place(path: Path) -> Path:
    """Return where a file is, beside what it imports: of a link its own place, not that of the file it leads to."""
    return path.absolute().parent.resolve() / path.name


def _entry(path: Path, sha256: str) -> Path:
    known = f"{_place(path)}\n{sha256}"
    return state_folder() / "tasks" / hashlib.sha256(known.encode()).hexdigest()
