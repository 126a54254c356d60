"""The task of a relaxed folder: code that lies elsewhere, and may have changed since."""

from __future__ import annotations

from pathlib import Path

from surgeon.errors import TaskError, TrustError
from surgeon.files.address import HubPath
from surgeon.files.content import sha256_of_file
from surgeon.files.relaxed import RelaxedConfig
from surgeon.opening.options import OpenOptions
from surgeon.opening.tasks import LoadedTask, is_adapters_task, load_task
from surgeon.opening.trust import check_task, remember_task


def given_task(options: OpenOptions) -> LoadedTask | None:
    """Return the task that the user gives, whose file is remembered as given by hand; None if there is none."""
    if not options.task:
        return None
    task = load_task(options.task, options.task_arguments)
    if task.path is not None:
        remember_task(task.path)
    return task


def task_of_folder(
    folder: Path, config: RelaxedConfig, options: OpenOptions, origin: HubPath | None
) -> LoadedTask | None:
    """Return the task the user gives, else the one that the folder was made with, if it is still the same.

    A task is code, so what a folder from the Hub says about one does not count, and what any other says only if the
    user gave that file on this machine, or allows it now.

    Raises:
        TaskError: if the file is gone or has changed.
        TrustError: if nobody has allowed to run it.
    """
    if options.task:
        return given_task(options)
    if config.task is None or origin is not None:
        return None
    spec, recorded = config.task["path"], config.task["sha256"]
    if spec.endswith(".py") and not Path(spec).is_file():
        raise TaskError(f"expected the task file {spec!r}, but it is not there any more: give `--task FILE`")
    if Path(spec).resolve().is_relative_to(folder.resolve()):
        raise TaskError(
            f"the relaxed folder names the task file {spec!r} inside itself, which may come from somebody else: "
            "check it and give it as `--task FILE`"
        )
    is_file = Path(spec).is_file()
    if not (is_file or is_adapters_task(spec) or options.trust_remote_code):
        raise TrustError(
            f"{str(folder)!r} names the task {spec!r}, which is code: give it again as `--task {spec}`, or import it "
            "with `--trust-remote-code` if you trust it"
        )
    unchanged = not is_file or sha256_of_file(spec) == recorded  # a changed file is not even run
    if not is_adapters_task(spec) and (unchanged or options.accept_changed_task):
        if is_file:
            accepted = options.trust_task or not unchanged
            check_task(Path(spec), f"the task file of {str(folder)!r},", allowed=accepted, ask=options.ask)
        if options.announce:
            options.announce(spec)
    task = load_task(spec, config.task["args"]) if unchanged or options.accept_changed_task else None
    if task is None or (task.sha256 != recorded and not options.accept_changed_task):
        raise TaskError(
            f"expected the task file {spec!r} as it was when the model was relaxed, but it has changed: "
            "check it and give `--accept-changed-task`"
        )
    return task
