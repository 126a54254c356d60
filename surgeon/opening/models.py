"""Find and build the model of what was opened: by what the user says, what the file says, or what an adapter knows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from torch import Tensor, nn

from surgeon.errors import CheckpointError, ModelNotFoundError, SurgeonError, TaskError, TrustError, UsageError
from surgeon.files.address import HubPath
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.clean import STATEMENT_SUFFIX
from surgeon.files.relaxed import BASE_FILE, RelaxedFiles
from surgeon.opening.allowance import ENTRY_POINT_GROUP, Allowance, is_registered
from surgeon.opening.loader import LOADER, as_loaded, own_loader, refuse_converted
from surgeon.opening.loading import computed_again, fitting, load_into, refuse_unusable
from surgeon.opening.options import OpenOptions
from surgeon.opening.originals import is_there, open_original, original_source
from surgeon.opening.remote.fetch import open_anywhere
from surgeon.opening.tasks import LoadedTask, load_task
from surgeon.opening.trust import check_task
from surgeon.registry import Adapter, installed_adapters
from surgeon.support.copies import copied
from surgeon.support.e3nn_compat import results_kept
from surgeon.support.imports import call_with, import_attribute, importable
from surgeon.support.modes import drop_computed
from surgeon.support.modules import unwrapped
from surgeon.support.plain import parse_json

DEPLOYED = "all weights in it are frozen, as in files that are saved for use: they are trained all the same"

STATEMENT_KEY = "surgeon.model"


@dataclass(frozen=True)
class FoundModel:
    """A model with the checkpoint's weights, and how it was found.

    Attributes:
        model: the module, in the mode in which its factory left it.
        source: how it was found, in words for the screen.
        factory: JSON data from which it can be found again; None if only the checkpoint itself can tell.
        rebuild: builds the same model once more, with the same weights or with those of the checkpoint it is given.
        task: the task file beside the checkpoint, if the model came from it.
        notes: what the user should know of it, in sentences.
        checkpoint: the one whose weights it has: as read, or as the task's own loader gives it.
    """

    model: nn.Module
    source: str
    factory: dict[str, Any] | None
    rebuild: Callable[..., nn.Module] = field(repr=False)
    task: LoadedTask | None = None
    notes: tuple[str, ...] = ()
    checkpoint: Checkpoint | None = None

    @property
    def words(self) -> str:
        """How it was found, without any path of this machine."""
        if self.factory is None:
            return self.source
        if "task" in self.factory:
            return LOADER if self.source.startswith(LOADER) else "model() of the task"
        return f"the factory {self.factory['factory']}"


@dataclass(frozen=True)
class _Way:
    """One way to build the architecture, without weights."""

    build: Callable[[], nn.Module | None]
    source: str
    factory: dict[str, Any] | None = None
    task: LoadedTask | None = None
    note: str = ""
    given: bool = False
    """By the user, whose code can do more than build."""


def find_for_folder(
    files: RelaxedFiles, task: LoadedTask | None, options: OpenOptions, origin: HubPath | None
) -> tuple[Checkpoint, FoundModel]:
    """Return the checkpoint that stands for a relaxed folder's base weights, and its model.

    Args:
        files: the folder; the factory that it names is a statement like any other in a file.
        task: what the user gave, or what the folder was made with.
        options: how to find the model, and what is trusted.
        origin: where the folder was downloaded from.

    Raises:
        SurgeonError: as for :func:`find_model`.
    """
    metadata, name = dict(files.base_metadata), str(origin or files.folder)
    model = files.config.model
    factory = None if model is None else model["factory"]
    if model is not None:
        metadata[STATEMENT_KEY] = json.dumps(model)
    checkpoint = Checkpoint(files.folder / BASE_FILE, files.base, "safetensors", metadata=metadata, origin=origin)

    def path() -> Path:
        return open_original(files.config.base, options, origin).path

    try:
        return checkpoint, find_model(checkpoint, options, task, original=path)
    except TrustError as error:
        raise TrustError(
            f"the relaxed folder {name!r} names the factory {factory!r}, which no installed package "
            f"registers: give it again as `--model {factory}`, or import it with `--trust-remote-code` if you trust it"
        ) from error
    except ModelNotFoundError as error:
        original = _original_module(files, name, options, origin, error)
    checkpoint = dataclasses.replace(original, tensors=files.base, prefix="")
    return checkpoint, find_model(checkpoint, options, task)


def _original_module(
    files: RelaxedFiles, name: str, options: OpenOptions, origin: HubPath | None, error: ModelNotFoundError
) -> Checkpoint:
    """Open the original, which may be a whole module and so its own architecture."""
    known = origin is None or options.original is not None
    source = original_source(files.config.base, options, origin) if known else None
    if source is None or not is_there(source):
        where = "" if source is None else f", and its original {str(source)!r} is not there"
        raise ModelNotFoundError(
            f"nothing says how to build the model of {name!r}{where}: give `--task FILE`, "
            "`--model module:function`, or `--original FILE`"
        ) from error
    if not options.trust_pickle:
        raise ModelNotFoundError(
            f"nothing says how to build the model of {name!r}: give `--task FILE` or `--model module:function`, "
            f"or `--trust-pickle` if its original {PurePath(str(source)).name} is a whole pickled module"
        ) from error
    return open_anywhere(source, trust_pickle=True)


def find_model(
    checkpoint: Checkpoint,
    options: OpenOptions | None = None,
    task: LoadedTask | None = None,
    adapters: Iterable[Adapter] | None = None,
    original: Callable[[], Path] | None = None,
    beside: bool = True,
) -> FoundModel:
    """Build the model of a checkpoint and load its weights strictly; the first way that applies is taken.

    1. ``build``, ``factory``, ``task.model()`` or ``task.load_model(path)``; a trusted module itself, from plain data
       if an adapter describes it;
    2. the checkpoint's statement: metadata key ``surgeon.model`` or the file ``CKPT.model.json``;
    3. without a task of the user's, ``task.py`` in the folder of a local checkpoint, if the user allows that file;
    4. the first adapter that recognises keys and shapes; and then that ``task.py``.

    Where the task has ``load_model``, the weights are those that it gives.

    Args:
        checkpoint: as opened; beside one from the Hub or a cache no ``task.py`` is run.
        options: what the user gave, and what is trusted.
        task: what the user gave as task.
        adapters: default all installed ones.
        original: finds the file that ``load_model`` opens, where the checkpoint is a copy of its weights.
        beside: whether a ``task.py`` beside it counts.

    Raises:
        ModelNotFoundError: if no way applies.
        TrustError: if nothing allows to import the factory that the checkpoint names, or to run that ``task.py``.
        CheckpointError: if the weights do not fit the model, or the statement is malformed.
        UsageError: if ``factory`` cannot be imported or called.
        TaskError: if the task's ``model`` does not build a module.
    """
    given = options or OpenOptions()
    known = [*(installed_adapters().values() if adapters is None else adapters)]
    path = original or (lambda: checkpoint.path)
    ways: tuple[Callable[[], _Way | None], ...] = (
        lambda: _from_user(task, given, path),
        lambda: _from_module(checkpoint, known),
        lambda: _from_statement(checkpoint, given.trust_remote_code),
        lambda: _from_neighbour(checkpoint, given, path) if beside and task is None else None,
        lambda: _from_tensors(checkpoint, known),
        lambda: _from_neighbour(checkpoint, given, path) if beside else None,
    )
    way = next(filter(None, (find() for find in ways)), None)
    if way is None:
        raise _not_found(checkpoint, known)
    return _finished(checkpoint if original else as_loaded(checkpoint, task or way.task), way)


def _not_found(checkpoint: Checkpoint, adapters: Iterable[Adapter]) -> ModelNotFoundError:
    """Return the error that says what the checkpoint is, if an adapter knows, or lists all ways."""
    asked = (adapter.recognise(checkpoint.tensors) for adapter in adapters)
    said = next(filter(None, asked), None)
    if said is not None:
        return ModelNotFoundError(f"{str(checkpoint.path)!r} does not say how to build its model: {said}")
    keys = list(checkpoint.tensors)
    return ModelNotFoundError(
        f"nothing says how to build the model of {str(checkpoint.path)!r}, whose {len(keys)} keys begin with "
        f"{', '.join(keys[:10])}: give `--task FILE` or `--model module:function`, store a statement in the metadata "
        f"key {STATEMENT_KEY} or in CKPT.model.json, install an adapter that recognises it, or put a task.py with "
        "`model` beside it"
    )


def _finished(checkpoint: Checkpoint, way: _Way) -> FoundModel:
    def loaded(weights: Checkpoint = checkpoint) -> nn.Module:
        with results_kept():
            model = way.build()
        if not isinstance(model, nn.Module):
            raise ModelNotFoundError(f"{way.source} built a model before and now returned {type(model).__name__}")
        model = unwrapped(model)
        refuse_unusable(model, way.source)
        tensors = _under_names_of(model, weights)
        where = str(weights.origin or weights.path)
        if way.given and weights is checkpoint:
            refuse_converted(model, fitting(model, tensors, where)[1], way.source, where)
        load_into(model, tensors, where)
        return model

    def rebuild(weights: Checkpoint = checkpoint) -> nn.Module:
        return _unfrozen(loaded(weights))

    model = loaded()
    deployed = _is_deployed(model if checkpoint.module is None else checkpoint.module)
    computed = computed_again(model, _under_names_of(model, checkpoint))
    kept = checkpoint.converted and f"{checkpoint.converted}: results have them as they are there, in safetensors only"
    notes = tuple(filter(None, (way.note, DEPLOYED if deployed else "", computed, kept)))
    return FoundModel(_unfrozen(model), way.source, way.factory, rebuild, way.task, notes, checkpoint)


def _under_names_of(model: nn.Module, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Return a checkpoint's tensors; a prefix can also be the model's own: a child that is called "module"."""
    drop_computed(model)
    own = checkpoint.prefix and model.state_dict().keys() <= checkpoint.in_file.keys()
    return checkpoint.in_file if own else checkpoint.tensors


def _is_deployed(model: nn.Module) -> bool:
    """Tell whether all of a model is frozen, as some libraries save what they have trained."""
    parameters = list(model.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _unfrozen(model: nn.Module) -> nn.Module:
    """Let a deployed model be trained, in place; the frozen parts of any other stay so."""
    if _is_deployed(model):
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    return model


def _calling(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    name: str,
    error_class: type[SurgeonError],
    folder: Path | None = None,
) -> Callable[[], nn.Module]:
    """Return what calls a factory, which may import from a folder, and refuses any result but a module."""

    def build() -> nn.Module:
        with nullcontext() if folder is None else importable(folder):
            result = call_with(function, arguments, name, error_class)
        if not isinstance(result, nn.Module):
            raise error_class(
                f"expected {name} to return a torch.nn.Module, got {type(result).__name__}: return the model"
            )
        return result

    return build


def _imported(factory: str, error_class: type[SurgeonError], folder: Path | None = None) -> Callable[..., Any]:
    with nullcontext() if folder is None else importable(folder):
        function = import_attribute(factory, "a model factory", error_class)
    if not callable(function):
        raise error_class(f"expected {factory} to be a function or class, got {type(function).__name__}: name one")
    made: Callable[..., Any] = function
    return made


def _from_user(task: LoadedTask | None, options: OpenOptions, path: Callable[[], Path]) -> _Way | None:
    factory, arguments, build, here = options.factory, dict(options.factory_arguments), options.build, Path.cwd()
    if build is not None:
        name = getattr(build, "__qualname__", type(build).__name__)
        return _Way(_calling(build, {}, name, UsageError), f"the function {name}", given=True)
    if factory is not None:
        calling = _calling(_imported(factory, UsageError, here), arguments, factory, UsageError, here)
        return _Way(calling, f"factory {factory}", {"factory": factory, "args": arguments}, given=True)
    if arguments:
        raise UsageError(f"model arguments ({', '.join(arguments)}) need a factory: add `--model module:function`")
    return None if task is None else _from_task(task, "task", path)


def _from_task(task: LoadedTask, what: str, path: Callable[[], Path]) -> _Way | None:
    name, model = str(task.path or task.spec), getattr(task.task, "model", None)
    stated = {"task": name, "args": dict(task.arguments)}
    if model is None:
        load = own_loader(task)
        return None if load is None else _Way(lambda: load(path()), f"{LOADER} {name}", stated, task, given=True)
    if not callable(model):
        raise TaskError(f"expected `model` of {name} to be a method, got {type(model).__name__}: let it build one")
    calling = _calling(model, {}, f"model() of {name}", TaskError, task.path.parent if task.path else Path.cwd())
    return _Way(calling, f"{what} {name}", stated, task, given=True)


def _from_module(checkpoint: Checkpoint, adapters: Iterable[Adapter]) -> _Way | None:
    """Take a whole module from plain data if an adapter describes it, else as it is."""
    module = checkpoint.module
    if module is None:
        return None
    asked = (adapter.describe(module) for adapter in adapters)
    described = next((answer for answer in asked if answer is not None), {})
    if "factory" not in described:
        why = described.get("note", "")
        note = why and f"the pickled module is used as it is, with --trust-pickle in every command: {why}"
        # a copy, so that surgery leaves the module of the checkpoint as it was read
        return _Way(lambda: copied(module), f"the module inside {checkpoint.path.name}", note=note)
    way = _from_data(described["factory"], described["args"], "as the module says", checkpoint.tensors)
    built = [described.get("built")]
    return dataclasses.replace(way, build=lambda: built.pop() if any(built) else way.build())


def _from_data(
    factory: str, arguments: Mapping[str, Any], how: str, tensors: Mapping[str, Tensor], folder: Path | None = None
) -> _Way:
    """Import a factory; its arguments are plain data from a file, which has to be about as large as what it builds."""
    calling = _calling(_imported(factory, CheckpointError, folder), arguments, factory, CheckpointError)

    def build() -> nn.Module:
        with Allowance(tensors, factory):
            return calling()

    return _Way(build, f"factory {factory}, {how}", {"factory": factory, "args": dict(arguments)})


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
        data = parse_json(text)
    except ValueError as error:
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
    factory = data["factory"]
    registered = is_registered(factory)
    if not (registered or trust_remote_code):
        raise TrustError(
            f"the {where} names the factory {factory!r}, which no installed package registers in the entry-point group "
            f"{ENTRY_POINT_GROUP!r}: install its package, or import it with `--trust-remote-code` if you trust it"
        )
    # a registered one without the current folder, where another module of that name could lie
    here = None if registered else Path.cwd()
    return _from_data(factory, data.get("args", {}), f"named in the {where}", checkpoint.tensors, here)


def _from_tensors(checkpoint: Checkpoint, adapters: Iterable[Adapter]) -> _Way | None:
    adapter = next((each for each in adapters if each.rebuild(checkpoint.tensors) is not None), None)
    if adapter is None:
        return None
    name = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    return _Way(lambda: adapter.rebuild(checkpoint.tensors), f"keys and shapes, recognised by {name}")


def _from_neighbour(checkpoint: Checkpoint, options: OpenOptions, original: Callable[[], Path]) -> _Way | None:
    folder = checkpoint.path.absolute().parent
    in_cache = any(part.startswith("models--") for part in folder.parts)  # layout of the Hub's cache
    path, what = folder / "task.py", "the task file beside the checkpoint,"
    if checkpoint.origin is not None or in_cache or not path.is_file():
        return None
    sha256 = check_task(path, what, allowed=options.trust_task, ask=options.ask)
    if options.announce is not None:
        options.announce(str(path))
    return _from_task(load_task(path, sha256=sha256), "task file beside the checkpoint,", original)
