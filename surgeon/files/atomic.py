"""Writing files and folders so that an output exists completely or not at all.

Everything is first written under a temporary name in the same folder and renamed at the end. A killed process
leaves at most ``.<name>.surgeon-tmp-<pid>-<host>-<random>`` behind; the next write to the same place removes it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from surgeon.errors import ExistsError, HubError, WriteError

_TEMPORARY = "surgeon-tmp"
_BACKUP = "surgeon-backup"

_REASONS = {
    errno.ENOSPC: "the disk is full: free some space or choose another place",
    errno.EDQUOT: "the disk quota is used up: free some space or choose another place",
    errno.EFBIG: "the file would be larger than the system allows: raise the limit (`ulimit -f`)",
    errno.EACCES: "permission is denied: choose a folder that you may write to",
    errno.EPERM: "the operation is not permitted: choose a folder that you may write to",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.ENOTDIR: "a part of the path is a file and not a folder: correct the path",
    errno.ENOENT: "its folder does not exist: create it first or correct the path",
    errno.EISDIR: "a folder of that name is in the way: choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.EBUSY: "it is in use or a mount point: choose another place",
    errno.EIO: "the device reports an input/output error: check the disk or choose another place",
}


def _write_error(path: Path, error: OSError) -> WriteError:
    detail = error.strerror or str(error) or type(error).__name__
    reason = _REASONS.get(error.errno or 0, f"the system says {detail!r}: correct this or choose another place")
    return WriteError(f"could not write {str(path)!r}: {reason}")


def _concerns(error: OSError, temporary: Path, target: Path) -> bool:
    """Tell whether an error comes from writing here, and not from some file that the caller was reading."""
    name = error.filename
    if not isinstance(name, str | bytes | os.PathLike):
        return True
    place = os.path.abspath(os.fsdecode(name))
    return place in (str(target), str(target.parent)) or Path(place).is_relative_to(temporary)


@contextmanager
def translated(target: Path, temporary: Path) -> Iterator[None]:
    """Turn errors of the operating system into one sentence that names ``target``."""
    try:
        yield
    except WriteError as error:
        raise WriteError(str(error).replace(str(temporary), str(target))) from error
    except (ExistsError, HubError):
        raise
    except OSError as error:
        if not _concerns(error, temporary, target):
            raise
        raise _write_error(target, error) from error


def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _sibling(target: Path, mark: str) -> Path:
    return target.with_name(f".{target.name}.{mark}-{os.getpid()}-{_host()}-{secrets.token_hex(4)}")


def _process_runs(pid: int) -> bool:
    if os.name != "posix":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def remove_entry(path: Path) -> None:
    """Delete a file or a folder with all it holds, as far as the system lets."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _remove_leftovers(target: Path) -> None:
    """Remove what dead processes of this host left for ``target``; put back what they had moved aside."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.({_TEMPORARY}|{_BACKUP})-(\d+)-{_host()}-[0-9a-f]+")
    with suppress(OSError):
        for entry in sorted(target.parent.iterdir()):
            match = pattern.fullmatch(entry.name)
            if match is None or _process_runs(int(match[2])):
                continue
            if match[1] == _BACKUP and not os.path.lexists(target):
                os.rename(entry, target)  # killed between the two renames of a swap
            else:
                remove_entry(entry)


def _refuse_existing(target: Path, force: bool) -> None:
    if not force and os.path.lexists(target):
        raise ExistsError(f"{str(target)!r} exists already: choose another output or overwrite it with `--force`")


def _refuse_existing_folder(target: Path, force: bool) -> None:
    if not target.is_dir():
        if os.path.lexists(target):
            raise WriteError(f"could not write {str(target)!r}: a file of that name is in the way: choose another name")
        return
    if not any(target.iterdir()):
        return
    _refuse_existing(target, force)
    for place, what in ((Path.cwd(), "the current folder"), (Path.home(), "the home folder")):
        if place.is_relative_to(target):
            raise WriteError(f"could not write {str(target)!r}: it contains {what}: choose another name")


def sync_file(path: Path) -> None:
    """Bring a file to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk, where the file system can."""
    with suppress(OSError):  # not every file system can; the files themselves are safe
        sync_file(path)


def sync_tree(path: Path) -> None:
    """Bring everything in a folder to the disk."""
    for folder, _, names in os.walk(path):
        for name in names:
            sync_file(Path(folder, name))
        sync_folder(Path(folder))


@contextmanager
def atomic_file(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Write a file completely or not at all.

    Yields:
        An empty temporary file in the same folder; what it holds at the end becomes ``path``.

    Raises:
        ExistsError: if ``path`` exists and ``force`` is False; checked before anything else.
        WriteError: if the system refuses; nothing is left behind and nothing existing was touched.
    """
    target = Path(os.path.abspath(path))
    _remove_leftovers(target)
    _refuse_existing(target, force)
    temporary = _sibling(target, _TEMPORARY)
    with translated(target, temporary):
        try:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            with open(temporary, "xb") as handle:
                mode = os.fstat(handle.fileno()).st_mode & 0o777
            yield temporary
            os.chmod(temporary, mode)  # a library may have replaced the file by a private one
            sync_file(temporary)
            _put_in_place(temporary, target, force)
        except BaseException:
            remove_entry(temporary)
            raise
    sync_folder(target.parent)


def _put_in_place(temporary: Path, target: Path, force: bool) -> None:
    """Rename a file; without ``force`` in one call that fails if another process has written ``target`` meanwhile."""
    if not force:
        try:
            os.link(temporary, target)
        except FileExistsError:
            _refuse_existing(target, force)
        except OSError:  # a file system without hard links
            _refuse_existing(target, force)
        else:
            os.unlink(temporary)
            return
    os.replace(temporary, target)


@contextmanager
def atomic_folder(path: str | Path, *, force: bool = False) -> Iterator[Path]:
    """Write a folder completely or not at all; an empty existing folder counts as free.

    Args:
        force: replace an existing folder; it is moved aside and deleted only once the new one is in place.

    Yields:
        An empty temporary folder; what it holds at the end becomes ``path``.

    Raises:
        ExistsError: if ``path`` holds something and ``force`` is False; checked before anything else.
        WriteError: if the system refuses, or the folder contains the current or the home folder.
    """
    target = Path(os.path.realpath(path))
    _remove_leftovers(target)
    temporary = _sibling(target, _TEMPORARY)
    with translated(target, temporary):
        _refuse_existing_folder(target, force)
        try:
            os.mkdir(temporary)
            yield temporary
            sync_tree(temporary)
            _refuse_existing_folder(target, force)
            _swap_in(temporary, target, force)
        except BaseException:
            remove_entry(temporary)
            raise
    sync_folder(target.parent)


def _swap_in(temporary: Path, target: Path, force: bool) -> None:
    """Rename ``temporary`` to ``target``, moving aside what is there and putting it back on failure.

    Renaming a folder fails if another process has filled ``target`` meanwhile; without ``force`` that one stays.
    """
    if not force or not target.is_dir() or not any(target.iterdir()):
        try:
            os.replace(temporary, target)
        except OSError:
            _refuse_existing_folder(target, force)
            raise
        return
    backup = _sibling(target, _BACKUP)
    os.rename(target, backup)
    try:
        os.replace(temporary, target)
    except BaseException:
        os.rename(backup, target)
        raise
    remove_entry(backup)


def put_back(parent: Path, name: str | None = None) -> None:
    """Rename folders that a process moved aside to replace them, and was killed before it did, to what they were.

    Args:
        parent: the folder they lie in.
        name: of the only one to look for; default all.

    Raises:
        WriteError: if one cannot be put back, or may still be at work in a process that lives or on another machine.
    """
    pattern = re.compile(rf"\.({'.+' if name is None else re.escape(name)})\.{_BACKUP}-(\d+)-([0-9a-f]+)-[0-9a-f]+")
    entries = sorted(parent.iterdir()) if parent.is_dir() else []
    for match in filter(None, (pattern.fullmatch(entry.name) for entry in entries)):
        target = parent / match[1]
        if os.path.lexists(target):
            continue
        if match[3] != _host() or _process_runs(int(match[2])):
            raise WriteError(
                f"expected {str(target)!r}, but process {match[2]} has moved it to {match[0]!r} to replace it: wait "
                "until it has ended, or rename it back if it was killed"
            )
        with translated(target, parent / match[0]):
            try:
                os.rename(parent / match[0], target)
            except FileNotFoundError:
                if not target.is_dir():  # else another process has just put it back
                    raise


def check_writable(path: str | Path, force: bool = False) -> None:
    """Check now that ``path`` can be written later, so that a long run does not fail at its end.

    Args:
        path: the file or folder that will be written.
        force: whether an existing one may be replaced.

    Raises:
        ExistsError: if it exists (a folder: and is not empty) and ``force`` is False.
        WriteError: if its folder does not exist or cannot be written to.
    """
    target = Path(os.path.abspath(path))
    _remove_leftovers(target)
    probe = _sibling(target, _TEMPORARY)
    with translated(target, probe):
        if target.is_dir():
            _refuse_existing_folder(target, force)
        else:
            _refuse_existing(target, force)
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        finally:
            remove_entry(probe)
