"""Find and load the task: the one that the user gives, the one a relaxed folder was made with, or an adapter's own."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from torch import nn

from surgeon.errors import CheckpointError, TaskError, TrustError
from surgeon.files.address import HubPath
from surgeon.files.content import sha256_of_file
from surgeon.files.relaxed import RelaxedConfig
from surgeon.opening.options import OpenOptions
from surgeon.opening.task_calls import task_batches
from surgeon.opening.trust import check_task, remember_task
from surgeon.plan import Task
from surgeon.registry import adapter_with_task, has_task, installed_adapters
from surgeon.support.imports import call_with, close_names, failing_line, import_attribute, importable, one_line


@dataclass(frozen=True)
class LoadedTask:
    """A task and where it came from.

    Attributes:
        path: the file it was read from; None for ``module:attribute``.
        sha256: of the file's bytes; empty if there is no file.
        arguments: what ``make_task`` was called with.
        spec: what the user wrote, with the data's absolute path if an adapter's task was named.
        data: the file that an adapter's task reads; its hash is ``sha256``.
    """

    task: Task
    path: Path | None
    sha256: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    spec: str = ""
    data: Path | None = None

    @property
    def file(self) -> Path | None:
        """The file that must not be overwritten: the task's own, or its data."""
        return self.path or self.data

    def for_model(self, model: nn.Module) -> LoadedTask:
        """Return the task for an opened model; most tasks do not depend on it.

        Raises:
            TaskError: if the task is for other models than this one.
        """
        bind = getattr(self.task, "for_model", None)
        return self if bind is None else replace(self, task=_checked(bind(model), self.spec))


def given_task(options: OpenOptions) -> LoadedTask | None:
    """Return the task that the user gives, whose file is remembered as given by hand; None if there is none."""
    return named_task(options.task, options.task_arguments) if options.task else None


def named_task(spec: str, arguments: Mapping[str, Any] | None = None) -> LoadedTask:
    """Return a task that the user names, whose file is remembered as given by hand; errors as for :func:`load_task`."""
    task = load_task(spec, arguments)
    if task.path is not None:
        remember_task(task.path, task.sha256)
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
    checked, unchanged = None, not is_file or sha256_of_file(spec) == recorded  # a changed file is not even run
    if not is_adapters_task(spec) and (unchanged or options.accept_changed_task):
        if is_file:
            accepted = options.trust_task or not unchanged
            checked = check_task(Path(spec), f"the task file of {str(folder)!r},", allowed=accepted, ask=options.ask)
        if options.announce:
            options.announce(spec)
    task = load_task(spec, config.task["args"], checked) if unchanged or options.accept_changed_task else None
    if task is None or (task.sha256 != recorded and not options.accept_changed_task):
        raise TaskError(
            f"expected the task file {spec!r} as it was when the model was relaxed, but it has changed: "
            "check it and give `--accept-changed-task`"
        )
    return task


def load_task(spec: str | Path, arguments: Mapping[str, Any] | None = None, sha256: str | None = None) -> LoadedTask:
    """Load a task from a Python file, from ``module:attribute``, or an adapter's own from ``adapter:datafile``.

    A file defines ``task`` (an object) or ``make_task(**arguments)``; its folder is importable meanwhile. An attribute
    is a task object, or a class or function that makes one; the current folder is importable meanwhile.

    Args:
        spec: the file, ``module:attribute``, or ``adapter:datafile`` if an installed adapter of that name has a task.
        arguments: what to call ``make_task`` with, JSON-compatible.
        sha256: of the file as it was when it was allowed; another one is not run.

    Raises:
        TaskError: if it is missing, fails, defines no task, or the task lacks ``batches`` or ``loss``.
    """
    given = dict(arguments or {})
    text = str(spec)
    offered = None if isinstance(spec, Path) else _task_of_adapter(text, given)
    if offered is not None:
        return offered
    if isinstance(spec, Path) or text.endswith(".py") or ":" not in text or Path(text).is_file():
        path = Path(text).absolute()
        task, run = _task_of_file(path, given, sha256)
        return LoadedTask(task, path, run, given, text)
    name, _, rest = text.partition(":")
    if rest and not rest.isidentifier():  # a file of data
        ready = [each for each, adapter in installed_adapters().items() if has_task(adapter)]
        raise TaskError(f"there is no ready task {name!r}, for `--task {text}`: there is {close_names(name, ready)}")
    with importable(Path.cwd()):
        found = import_attribute(text, "a task", TaskError)
        if inspect.isclass(found) or (callable(found) and not hasattr(found, "batches")):
            task = call_with(found, given, text, TaskError)
        else:
            _refuse_arguments(given, text)
            task = found
    source = getattr(sys.modules.get(text.partition(":")[0]), "__file__", None)
    return LoadedTask(_checked(task, text), None, _sha256(Path(source)) if source else "", given, text)


def is_adapters_task(spec: str) -> bool:
    """Tell whether a spec names the ready task of an installed adapter, so that nothing of the user's is executed."""
    return ":" in spec and not Path(spec).is_file() and adapter_with_task(spec.partition(":")[0]) is not None


def _task_of_adapter(spec: str, arguments: dict[str, Any]) -> LoadedTask | None:
    """Return the ready task of the adapter that is named before the colon; None if there is none."""
    name, colon, data = spec.partition(":")
    adapter = adapter_with_task(name) if colon and not Path(spec).is_file() else None
    if adapter is None:
        return None
    path = Path(data).absolute()
    if not path.is_file():
        names = sorted(other.name for other in path.parent.glob("*" + path.suffix))
        raise TaskError(
            f"there is no data file {str(path)!r} for the task of {name}: its folder holds "
            f"{close_names(path.name, names)}; give `--task {name}:FILE`"
        )
    task = _checked(adapter.task(path, arguments), spec)
    return LoadedTask(task, None, _sha256(path), arguments, f"{name}:{path}", path)


def task_beside(
    model: nn.Module,
    checkpoint: Path,
    arguments: Mapping[str, Any] | None = None,
    announce: Callable[[str], None] | None = None,
) -> LoadedTask | None:
    """Return the ready task on the data that an adapter finds for a local checkpoint of its family, else None.

    Args:
        checkpoint: the file that it was opened from.
        arguments: for the task.
        announce: told which task was taken.

    Raises:
        TaskError: if the adapter has no task, or its task refuses the data or the arguments.
    """
    for name, adapter in installed_adapters().items():
        data = adapter.data_of(model, checkpoint)
        if data is not None:
            loaded = load_task(f"{name}:{data}", arguments)
            if announce is not None:
                announce(loaded.spec)
            return loaded
    return None


def _sha256(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except CheckpointError as error:
        raise TaskError(str(error)) from error


def _refuse_arguments(arguments: Mapping[str, Any], where: str) -> None:
    if arguments:
        raise TaskError(
            f"{where} is a ready task and takes no arguments, got {', '.join(arguments)}: "
            "leave them out or define `make_task`"
        )


def _task_of_file(path: Path, arguments: Mapping[str, Any], allowed: str | None) -> tuple[Task, str]:
    """Return the task in a file, and the SHA-256 of the bytes that were run."""
    if not path.is_file():
        names = sorted(other.name for other in path.parent.glob("*.py"))
        beside = close_names(path.name, names) if names else "no Python file"
        raise TaskError(
            f"there is no task file {str(path)!r}: its folder holds {beside}; `surgeon init CKPT` writes a first one; "
            "or give a Python file or `module:attribute`"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TaskError(f"could not read {str(path)!r}: {error.strerror or error}: check the path") from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != (allowed or sha256):
        raise TaskError(f"{str(path)!r} has changed since it was checked, and was not run: give the command again")
    with importable(path.parent):
        module = _import_file(path, content)
        maker = getattr(module, "make_task", None)
        task = getattr(module, "task", None)
        if maker is not None and (arguments or task is None):
            task = call_with(maker, arguments, f"make_task of {str(path)!r}", TaskError)
        elif task is not None:
            _refuse_arguments(arguments, f"`task` of {str(path)!r}")
        else:
            names = [name for name in vars(module) if not name.startswith("_")]
            raise TaskError(
                f"expected {str(path)!r} to define `task` or `make_task`, found {', '.join(names[:10]) or 'nothing'}: "
                "add one of the two"
            )
    return _checked(task, str(path)), sha256


class _SourceLoader(SourceFileLoader):
    """Runs these bytes: Python's own loader would run a compiled file in ``__pycache__``, whatever the source says."""

    def __init__(self, name: str, path: Path, content: bytes) -> None:
        super().__init__(name, str(path))
        self._content = content

    def get_code(self, fullname: str) -> CodeType:
        """Compile the bytes."""
        return self.source_to_code(self._content, self.path)


def _import_file(path: Path, content: bytes) -> ModuleType:
    """Execute a file as a module with a name of its own, so that equally named files do not meet."""
    if path.suffix != ".py":
        raise TaskError(f"expected a Python file, got {str(path)!r}: its name must end in .py")
    name = f"surgeon_task_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    loader = _SourceLoader(name, path, content)
    module_spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert module_spec is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        line = failing_line(error, path)
        place = f" at line {line}" if line else ""
        raise TaskError(f"task file {str(path)!r} failed{place} with {one_line(error)}: correct the file") from error
    return module


def _checked(task: Any, where: str) -> Task:
    if inspect.isclass(task):
        raise TaskError(f"expected a task object in {where}, got the class {task.__name__}: write {task.__name__}()")
    missing = [name for name in ("batches", "loss") if not callable(getattr(task, name, None))]
    if missing:
        has = ", ".join(name for name in dir(task) if not name.startswith("_")) or "nothing"
        raise TaskError(
            f"expected the task of {where} to have the methods batches and loss, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {type(task).__name__} has {has}"
        )
    checked: Task = task
    return checked


class _WithAction:
    """A task whose action on batches, and perhaps on outputs, comes from somewhere else."""

    def __init__(self, task: Task, act: Any, act_output: Any) -> None:
        self._task = task
        self.act = act
        if act_output is not None:
            self.act_output = act_output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def with_action(loaded: LoadedTask, spec: str) -> LoadedTask:
    """Return a task that acts as an object elsewhere says.

    Args:
        spec: ``module:name`` of an object with ``act(g, batch)`` and ``act_output(g, outputs)``, or of the function
            ``act`` alone, beside which the task's own ``act_output`` counts, if it has one.

    Raises:
        TaskError: if there is no such object, or it is neither.
    """
    with importable(Path.cwd()):
        found = import_attribute(spec, "an action", TaskError)
    act = getattr(found, "act", found)
    if not callable(act):
        raise TaskError(
            f"expected {spec} to be a function act(g, batch) or an object with `act`, got {type(found).__name__}: "
            "define one"
        )
    return replace(loaded, task=_WithAction(loaded.task, act, getattr(found, "act_output", None)))


def sample_batches(task: LoadedTask, count: int) -> list[Any]:
    """Return the first ``count`` batches of the validation split."""
    return list(itertools.islice(task_batches(task.task, "validation", 0), count))


def planning_batches(task: LoadedTask, further: int) -> tuple[Any, list[Any]]:
    """Return the batch that planning measures on, the task's ``sample()`` or the first of the validation split.

    Args:
        further: how many more to return, of the validation split.

    Raises:
        TaskError: if ``sample()`` fails.
    """
    own = getattr(task.task, "sample", None)
    if not callable(own):
        batch, *rest = sample_batches(task, 1 + further)
        return batch, rest
    try:
        batch = own()
    except Exception as error:
        raise TaskError(
            f"the task's sample() failed ({one_line(error)}): it is called without arguments and returns one batch, "
            "correct it, or give the method another name"
        ) from error
    return batch, sample_batches(task, further)
