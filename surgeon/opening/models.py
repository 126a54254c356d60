"""Find and build the model of a checkpoint: from the user, from the file's own statement, or from its keys."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckpointError, ModelNotFoundError, SurgeonError, TaskError, TrustError, UsageError
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import STATEMENT_SUFFIX
from surgeon.files.loading import load_into
from surgeon.files.stored import forms, renamed
from surgeon.opening.tasks import LoadedTask, load_task
from surgeon.opening.trust import check_task
from surgeon.opening.unfilled import build_unfilled
from surgeon.registry import DescribesModels, RecognisesWeights
from surgeon.support.imports import call_with, import_attribute, importable, registered

STATEMENT_KEY = "surgeon.model"
ENTRY_POINT_GROUP = "surgeon.models"

_LARGE_BYTES = 16 * 2**20
"""Of a checkpoint from which on the random weights of a new network take noticeable time (some 30 ms)."""

Rebuilder = Callable[[Mapping[str, Tensor]], nn.Module | None]
Announce = Callable[[str], None]
Trust = Callable[[Path, str], None]


@dataclass(frozen=True)
class FoundModel:
    """A model with the checkpoint's weights, and how it was found.

    Attributes:
        model: the module, in the mode in which its factory left it.
        source: how it was found, in words for the screen.
        factory: JSON data from which it can be found again; None if only the checkpoint itself can tell.
        rebuild: builds the same model once more, with the same weights or with those it is given.
        task: the task file beside the checkpoint, if the model came from it.
    """

    model: nn.Module
    source: str
    factory: dict[str, Any] | None
    rebuild: Callable[..., nn.Module] = field(repr=False)
    task: LoadedTask | None = None

    @property
    def words(self) -> str:
        """How it was found, without any path of this machine."""
        if self.factory is None:
            return self.source
        return "model() of the task" if "task" in self.factory else f"the factory {self.factory['factory']}"


@dataclass(frozen=True)
class _Way:
    """One way to build the architecture, without weights."""

    build: Callable[[], nn.Module | None]
    source: str
    factory: dict[str, Any] | None = None
    task: LoadedTask | None = None


def find_model(
    checkpoint: Checkpoint,
    *,
    task: LoadedTask | None = None,
    factory: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    build: Callable[[], nn.Module] | None = None,
    trust_remote_code: bool = False,
    rebuilders: Sequence[Rebuilder] = (),
    describers: Sequence[DescribesModels] = (),
    recognisers: Sequence[RecognisesWeights] = (),
    local: bool = True,
    trust: Trust = check_task,
    announce: Announce | None = None,
) -> FoundModel:
    """Build the model of a checkpoint and load its weights strictly; the first way that applies is taken.

    1. ``build``, ``factory`` or ``task.model()``; a trusted module itself, from plain data if an adapter describes it;
    2. the checkpoint's statement: metadata key ``surgeon.model`` or the file ``CKPT.model.json``;
    3. without a task of the user's, ``task.py`` in the folder of a local checkpoint, if the user allows that file;
    4. the first rebuilder that recognises keys and shapes; and then that ``task.py``.

    Args:
        checkpoint: as opened.
        task: what the user gave as task.
        factory: what the user gave as ``module:function``; the current folder is importable meanwhile.
        arguments: what to call ``factory`` with.
        build: what the user gave as a function, in Python.
        trust_remote_code: import a factory that is named inside the checkpoint even if no installed package registers
            it in the entry-point group ``surgeon.models``.
        rebuilders: each returns a model for the tensors it recognises, else None.
        describers: adapters that turn a whole module into plain data.
        recognisers: adapters that say what a state dict is that nothing can build.
        local: False for a checkpoint from the Hub or a cache, whose folder must not be executed.
        trust: called with the path of ``task.py`` and words for it; raises :class:`TrustError` if it must not run.
        announce: told the path of ``task.py`` before it is executed.

    Raises:
        ModelNotFoundError: if no way applies.
        TrustError: if nothing allows to import the factory that the checkpoint names, or to run that ``task.py``.
        CheckpointError: if the weights do not fit the model, or the statement is malformed.
        UsageError: if ``factory`` cannot be imported or called.
        TaskError: if the task's ``model`` does not build a module.
    """
    neighbour = functools.partial(_from_neighbour, checkpoint, local, trust, announce)
    ways: tuple[Callable[[], _Way | None], ...] = (
        lambda: None if build is None else _from_function(build),
        lambda: _from_user(task, factory, arguments),
        lambda: _from_description(checkpoint, describers),
        lambda: _from_module(checkpoint),
        lambda: _from_statement(checkpoint, trust_remote_code),
        lambda: neighbour() if task is None else None,
        lambda: _from_rebuilders(checkpoint, rebuilders),
        neighbour,
    )
    for find in ways:
        way = find()
        if way is not None:
            return _finished(checkpoint, way)
    raise _not_found(checkpoint, recognisers)


def _not_found(checkpoint: Checkpoint, recognisers: Sequence[RecognisesWeights]) -> ModelNotFoundError:
    """Return the error that says what the checkpoint is, if an adapter knows, or lists all ways."""
    said = next(filter(None, (adapter.recognise(checkpoint.tensors) for adapter in recognisers)), None)
    if said is not None:
        return ModelNotFoundError(f"{str(checkpoint.path)!r} does not say how to build its model: {said}")
    keys = list(checkpoint.tensors)
    return ModelNotFoundError(
        f"nothing says how to build the model of {str(checkpoint.path)!r}: give `--task FILE` or "
        f"`--model module:function`, store a statement in the metadata key {STATEMENT_KEY} or in "
        f"{checkpoint.path.name}.model.json, install an adapter that recognises it, or put a task.py with `model` "
        f"beside it; its {len(keys)} keys begin with {', '.join(keys[:10])}"
    )


def _finished(checkpoint: Checkpoint, way: _Way) -> FoundModel:
    large = sum(tensor.nbytes for tensor in forms(checkpoint.tensors).values()) >= _LARGE_BYTES

    def rebuild(tensors: Mapping[str, Tensor] = checkpoint.tensors) -> nn.Module:
        model = build_unfilled(way.build) if large else way.build()
        if not isinstance(model, nn.Module):
            raise ModelNotFoundError(f"{way.source} built a model before and now returned {type(model).__name__}")
        where = str(checkpoint.path)
        prefixed = renamed(tensors, {checkpoint.prefix + key: key for key in tensors})
        # a prefix can also be the model's own: a child that is called "module"
        own = checkpoint.prefix and model.state_dict().keys() == prefixed.keys()
        load_into(model, prefixed if own else tensors, where)
        return model

    return FoundModel(rebuild(), way.source, way.factory, rebuild, way.task)


def _module_of(result: Any, name: str, error_class: type[SurgeonError]) -> nn.Module:
    if not isinstance(result, nn.Module):
        raise error_class(f"expected {name} to return a torch.nn.Module, got {type(result).__name__}: return the model")
    return result


def _from_function(build: Callable[[], nn.Module]) -> _Way:
    name = getattr(build, "__qualname__", type(build).__name__)
    return _Way(lambda: _module_of(call_with(build, {}, name, UsageError), name, UsageError), f"the function {name}")


def _from_user(task: LoadedTask | None, factory: str | None, arguments: Mapping[str, Any] | None) -> _Way | None:
    if factory is not None:
        given = dict(arguments or {})
        with importable(Path.cwd()):
            function = _callable(factory, UsageError)

        def build() -> nn.Module:
            with importable(Path.cwd()):
                return _module_of(call_with(function, given, factory, UsageError), factory, UsageError)

        return _Way(build, f"factory {factory}", {"factory": factory, "args": given})
    if arguments:
        raise UsageError(f"model arguments ({', '.join(arguments)}) need a factory: add `--model module:function`")
    return None if task is None else _from_task(task, "task")


def _callable(factory: str, error_class: type[SurgeonError]) -> Callable[..., Any]:
    function = import_attribute(factory, "a model factory", error_class)
    if not callable(function):
        raise error_class(f"expected {factory} to be a function or class, got {type(function).__name__}: name one")
    made: Callable[..., Any] = function
    return made


def _from_task(task: LoadedTask, what: str) -> _Way | None:
    model = getattr(task.task, "model", None)
    if model is None:
        return None
    name = str(task.path or task.spec)
    if not callable(model):
        raise TaskError(f"expected `model` of {name} to be a method, got {type(model).__name__}: let it build one")
    title = f"model() of {name}"

    def build() -> nn.Module:
        with importable(task.path.parent if task.path else Path.cwd()):
            return _module_of(call_with(model, {}, title, TaskError), title, TaskError)

    return _Way(build, f"{what} {name}", {"task": name, "args": dict(task.arguments)}, task)


def _from_description(checkpoint: Checkpoint, describers: Sequence[DescribesModels]) -> _Way | None:
    if checkpoint.module is None:
        return None
    for adapter in describers:
        described = adapter.describe(checkpoint.module)
        if described is None:
            continue
        factory, arguments = described["factory"], dict(described["args"])
        function = _callable(factory, CheckpointError)

        def build(
            function: Callable[..., Any] = function, factory: str = factory, arguments: dict[str, Any] = arguments
        ) -> nn.Module:
            return _module_of(call_with(function, arguments, factory, CheckpointError), factory, CheckpointError)

        return _Way(build, f"factory {factory}, as the module says", {"factory": factory, "args": arguments})
    return None


def _from_module(checkpoint: Checkpoint) -> _Way | None:
    module = checkpoint.module
    if module is None:
        return None
    # a copy, so that surgery leaves the module of the checkpoint as it was read
    return _Way(lambda: copy.deepcopy(module), f"the module inside {checkpoint.path.name}")


def _statement(checkpoint: Checkpoint) -> tuple[str, dict[str, Any]] | None:
    """Return what the checkpoint says about its model, and where it says so."""
    sidecar = checkpoint.path.with_name(checkpoint.path.name + STATEMENT_SUFFIX)
    if STATEMENT_KEY in checkpoint.metadata:
        where, text = f"metadata of {checkpoint.path.name}", checkpoint.metadata[STATEMENT_KEY]
    elif sidecar.is_file():
        where = sidecar.name
        try:
            text = sidecar.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"could not read {str(sidecar)!r}: {error}: correct or remove it") from error
    else:
        return None
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"expected JSON in the {where}, got {text[:40]!r} ({error}): correct it") from error
    fits = isinstance(data, dict) and set(data) <= {"factory", "args"} and isinstance(data.get("factory"), str)
    if not fits or not isinstance(data.get("args", {}), dict):
        raise CheckpointError(
            f'expected {{"factory": "module:function", "args": {{...}}}} in the {where}, got {text[:80]!r}: correct it'
        )
    return where, data


def _from_statement(checkpoint: Checkpoint, trust_remote_code: bool) -> _Way | None:
    found = _statement(checkpoint)
    if found is None:
        return None
    where, data = found
    factory, arguments = data["factory"], data.get("args", {})
    registered = is_registered(factory)
    if not (registered or trust_remote_code):
        raise TrustError(
            f"the {where} names the factory {factory!r}, which no installed package registers in the entry-point group "
            f"{ENTRY_POINT_GROUP!r}: install its package, or import it with `--trust-remote-code` if you trust it"
        )
    function = _statement_factory(factory, registered)

    def build() -> nn.Module:
        return _module_of(call_with(function, arguments, factory, CheckpointError), factory, CheckpointError)

    return _Way(build, f"factory {factory}, named in the {where}", {"factory": factory, "args": arguments})


def is_registered(factory: str) -> bool:
    """Tell whether an installed package registers a factory, so that a file may name it."""
    return factory in {entry.value.replace(" ", "") for entry in registered(ENTRY_POINT_GROUP)}


def _statement_factory(factory: str, registered: bool) -> Callable[..., Any]:
    if registered:  # without the current folder, where another module of that name could lie
        return _callable(factory, CheckpointError)
    with importable(Path.cwd()):
        return _callable(factory, CheckpointError)


def _from_rebuilders(checkpoint: Checkpoint, rebuilders: Sequence[Rebuilder]) -> _Way | None:
    for rebuilder in rebuilders:
        if rebuilder(checkpoint.tensors) is not None:
            name = getattr(rebuilder, "__qualname__", type(rebuilder).__name__)

            def build(chosen: Rebuilder = rebuilder) -> nn.Module | None:
                return chosen(checkpoint.tensors)

            return _Way(build, f"keys and shapes, recognised by {getattr(rebuilder, '__module__', '')}.{name}")
    return None


def _from_neighbour(checkpoint: Checkpoint, local: bool, trust: Trust, announce: Announce | None) -> _Way | None:
    folder = checkpoint.path.absolute().parent
    in_cache = any(part.startswith("models--") for part in folder.parts)  # layout of the Hub's cache
    path = folder / "task.py"
    if not local or in_cache or not path.is_file():
        return None
    trust(path, "the task file beside the checkpoint,")
    if announce is not None:
        announce(str(path))
    return _from_task(load_task(path), "task file beside the checkpoint,")
