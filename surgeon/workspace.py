"""Open a path that a user names, checkpoint or relaxed folder, into a model with everything that belongs to it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, get_args

import torch
from torch import Tensor, nn

from surgeon.branch import CHILD
from surgeon.checkpoint import (
    BASE_FILE,
    CONFIG_FILE,
    Checkpoint,
    RelaxedConfig,
    RelaxedFiles,
    is_relaxed_folder,
    keys_hash,
    load_into,
    open_checkpoint,
    read_relaxed,
    split_state,
)
from surgeon.checkpoint.stored import pieces
from surgeon.copies import copied
from surgeon.errors import CheckpointError, ModelNotFoundError, SurgeonError, TaskError, TrustError
from surgeon.files import sha256_of_file
from surgeon.hub.address import HubPath, is_hub_path
from surgeon.hub.client import list_files
from surgeon.hub.fetch import fetch_relaxed, open_anywhere, open_listed
from surgeon.hub.safety import check_config, refuse_code, refuse_nonfinite
from surgeon.models import STATEMENT_KEY, FoundModel, find_model
from surgeon.registry import DescribesModels, RecognisesWeights, installed_adapters
from surgeon.regularizer import PenaltyForm
from surgeon.schedule import Schedule
from surgeon.surgery import Relaxation, relax
from surgeon.tasks import LoadedTask, is_adapters_task, load_task, task_beside
from surgeon.types import StripMode


@dataclass(frozen=True)
class OpenOptions:
    """What the user may add to a path: how to find model and task, and what is trusted.

    Attributes:
        task: a task file, ``module:attribute``, or ``adapter:datafile``.
        task_arguments: for ``make_task``.
        accept_changed_task: use a task file although it is not the one that a relaxed folder was made with.
        factory: ``module:function`` that builds the model.
        factory_arguments: for the factory.
        build: in Python, a function that builds the model, instead of ``factory``.
        entry: which entry of a nested checkpoint holds the weights.
        original: where the original checkpoint is now, if it was moved since it was relaxed.
        trust_pickle: open files that run code.
        trust_remote_code: import a factory, group or task that is named inside a file.
        announce: told what is about to be executed.
    """

    task: str | None = None
    task_arguments: Mapping[str, Any] = field(default_factory=dict)
    accept_changed_task: bool = False
    factory: str | None = None
    factory_arguments: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[], nn.Module] | None = None
    entry: str | None = None
    original: str | None = None
    trust_pickle: bool = False
    trust_remote_code: bool = False
    announce: Callable[[str], None] | None = None


@dataclass
class Workspace:
    """An opened model.

    Attributes:
        path: what was opened; for the Hub, where it lies in the cache.
        model: the network, with branches if ``relaxation`` is set.
        found: how the architecture was found.
        checkpoint: the file that holds the base weights in use.
        options: what the user gave.
        task: the task, if any is known.
        relaxation: handle on the branches; None for a plain checkpoint.
        files: the relaxed folder; None for a plain checkpoint.
        origin: repository and commit, if it came from the Hub.
    """

    path: Path
    model: nn.Module
    found: FoundModel
    checkpoint: Checkpoint
    options: OpenOptions
    task: LoadedTask | None = None
    relaxation: Relaxation | None = None
    files: RelaxedFiles | None = None
    origin: HubPath | None = None

    @property
    def name(self) -> str:
        """The path as a user would write it."""
        return str(self.path if self.origin is None else self.origin)

    def require_task(self) -> LoadedTask:
        """Return the task.

        Raises:
            TaskError: if none is known.
        """
        if self.task is None:
            raise TaskError(f"expected a task with data for {self.name!r}, none is known: give `--task FILE`")
        return self.task

    def original(self) -> tuple[nn.Module, Checkpoint]:
        """Return a fresh model with the weights of the checkpoint that was relaxed, and that checkpoint.

        Raises:
            CheckpointError: if it is not where it was, or has changed since.
        """
        if self.files is None:
            return self.found.rebuild(), self.checkpoint
        base = self.files.config.base
        source = original_source(base, self.options, self.origin)
        if not isinstance(source, HubPath) and not is_hub_path(source) and not Path(source).is_file():
            raise CheckpointError(
                f"expected the original checkpoint at {str(source)!r}, but it is not there: give `--original FILE`"
            )
        checkpoint = open_anywhere(source, trust_pickle=self.options.trust_pickle, entry=base["entry"])
        if checkpoint.sha256 != base["sha256"]:
            raise CheckpointError(
                f"expected the original checkpoint with sha256 {str(base['sha256'])[:12]}, but {str(source)!r} has "
                f"{checkpoint.sha256[:12]}: it has changed since, give the right one as `--original FILE`"
            )
        return self._with_weights_of(checkpoint), checkpoint

    def reopened(self, path: str | Path) -> tuple[nn.Module, str]:
        """Open a container like the original's as that was opened; return its model, and where that comes from.

        A whole module is its own model, even if the original was loaded into one that was built.
        """
        entry = self.files.config.base["entry"] if self.files is not None else self.checkpoint.entry
        checkpoint = open_checkpoint(path, trust_pickle=self.options.trust_pickle, entry=entry)
        if checkpoint.module is not None:
            return checkpoint.module, "unpickling the module"
        return self._with_weights_of(checkpoint), self.found.words

    def _with_weights_of(self, checkpoint: Checkpoint) -> nn.Module:
        """Build the architecture anew and load a checkpoint into it."""
        model = self.found.rebuild()
        tensors = {checkpoint.prefix + key: tensor for key, tensor in checkpoint.tensors.items()}
        own = tensors.keys() == model.state_dict().keys()
        load_into(model, tensors if own else checkpoint.tensors, str(checkpoint.origin or checkpoint.path))
        return model

    def double(self, model: nn.Module) -> nn.Module:
        """Return a float64 twin of ``model``, with or without branches, whose constants are float64 as well.

        The architecture is built anew under the default dtype float64, because constants that a float32 model computed
        at construction keep their rounding when it is cast.
        """
        base, branches = split_state(model.state_dict())
        casted = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in base.items()}
        with default_dtype(torch.float64):
            twin = self._built_in_double(casted)
            if branches:
                assert self.relaxation is not None
                copied = relax(twin, self.relaxation.plan, mode=self.relaxation.mode)
                load_branches(copied, branches)
                copied.set_thetas(self.relaxation.thetas)
                for key, branch in copied.branches.items():
                    branch.clean = self.relaxation.branches[key].clean
        return twin.train(model.training)

    def _built_in_double(self, casted: Mapping[str, Tensor]) -> nn.Module:
        """Build the architecture under the default dtype; that of a library which insists on float32 is cast instead.

        Such a library may share constants between models (escnn does): the cast one is a copy.
        """
        try:
            return self.found.rebuild(casted)
        except SurgeonError:
            with default_dtype(torch.float32):
                twin = copied(self.found.rebuild())
            load_into(twin, casted, str(self.path))
            return twin


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype while the context is open."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def open_path(path: str | Path, options: OpenOptions | None = None, mode: StripMode | None = None) -> Workspace:
    """Open a checkpoint file or a relaxed folder.

    Args:
        path: what the user named.
        options: how to find the model and the task.
        mode: for a relaxed folder, how its branches will be stripped; default as it says itself.

    Raises:
        SurgeonError: one of its subclasses, saying what is wrong with the file, the model, or the task.
    """
    options = options or OpenOptions()
    if is_hub_path(path):
        return _open_hub(HubPath.parse(path), options, mode)
    if is_relaxed_folder(path):
        return _open_relaxed(Path(path), options, mode)
    if Path(path).is_dir():
        raise CheckpointError(
            f"expected a checkpoint file or a folder made by `surgeon relax`, got the folder {str(path)!r}: "
            "name the file inside it"
        )
    return _open_plain(open_checkpoint(path, trust_pickle=options.trust_pickle, entry=options.entry), options)


def _open_plain(checkpoint: Checkpoint, options: OpenOptions) -> Workspace:
    task = load_task(options.task, options.task_arguments) if options.task else None
    found = _find(checkpoint, task, options)
    if task is None and found.task is None and checkpoint.origin is None:
        task = task_beside(found.model, checkpoint.path, options.task_arguments, options.announce)
    task = _bound(task or found.task, found.model)
    return Workspace(checkpoint.path, found.model, found, checkpoint, options, task, origin=checkpoint.origin)


def _bound(task: LoadedTask | None, model: nn.Module) -> LoadedTask | None:
    return None if task is None else task.for_model(model)


def _open_hub(path: HubPath, options: OpenOptions, mode: StripMode | None) -> Workspace:
    """Open what is on the Hub: a relaxed model if the repository holds one and no file is named."""
    for flag, trusted in (("--trust-pickle", options.trust_pickle), ("--trust-remote-code", options.trust_remote_code)):
        if trusted:
            path.require_pinned(flag)
    listing = list_files(path)
    if path.file is None and CONFIG_FILE in listing.files:
        return _open_relaxed(fetch_relaxed(listing), options, mode, listing.pinned)
    return _open_plain(open_listed(listing, trust_pickle=options.trust_pickle, entry=options.entry), options)


def _find(checkpoint: Checkpoint, task: LoadedTask | None, options: OpenOptions) -> FoundModel:
    adapters = installed_adapters().values()
    return find_model(
        checkpoint,
        task=task,
        factory=options.factory,
        arguments=options.factory_arguments,
        build=options.build,
        trust_remote_code=options.trust_remote_code,
        rebuilders=[adapter.rebuild for adapter in adapters],
        describers=[adapter for adapter in adapters if isinstance(adapter, DescribesModels)],
        recognisers=[adapter for adapter in adapters if isinstance(adapter, RecognisesWeights)],
        local=checkpoint.origin is None,
        announce=options.announce,
    )


def original_source(base: Mapping[str, Any], options: OpenOptions, origin: HubPath | None) -> str | HubPath:
    """Return where the checkpoint that was relaxed is: as the user says, on the Hub, or where it was.

    Args:
        base: of the relaxed folder's configuration.
        options: what the user gave.
        origin: where the relaxed folder was downloaded from; what it says of local files holds elsewhere.

    Raises:
        CheckpointError: if only another machine knows.
    """
    if options.original is not None:
        return options.original
    if base["repo"] is not None:
        return HubPath(base["repo"], base["revision"], base["file"])
    if origin is not None:
        raise CheckpointError(
            f"{str(origin)!r} was made from {base['file']!r}, which is not on the Hub: give it as `--original FILE`"
        )
    return str(base["file"])


def _weights_of(files: RelaxedFiles, origin: HubPath | None) -> Checkpoint:
    """Return the folder's base weights; the factory that the folder names is a statement like any other in a file."""
    metadata = dict(files.base_metadata)
    if files.config.model is not None:
        statement = {"factory": files.config.model["factory"], "args": files.config.model["args"] or {}}
        metadata[STATEMENT_KEY] = json.dumps(statement)
    path = files.folder / BASE_FILE
    return Checkpoint(path, files.base, "safetensors", metadata=metadata, origin=origin)


def _find_for_folder(
    files: RelaxedFiles, task: LoadedTask | None, options: OpenOptions, origin: HubPath | None
) -> tuple[Checkpoint, FoundModel]:
    checkpoint, name = _weights_of(files, origin), str(origin or files.folder)
    try:
        return checkpoint, _find(checkpoint, task, options)
    except TrustError as error:
        factory = (files.config.model or {}).get("factory")
        raise TrustError(
            f"the relaxed folder {name!r} names the factory {factory!r}, which no installed package "
            f"registers: give it again as `--model {factory}`, or import it with `--trust-remote-code` if you trust it"
        ) from error
    except ModelNotFoundError as error:
        # The original may be a whole module, which is its own architecture.
        path = (
            None
            if origin is not None and options.original is None
            else original_source(files.config.base, options, origin)
        )
        if path is None or (not isinstance(path, HubPath) and not is_hub_path(path) and not Path(path).is_file()):
            where = "" if path is None else f"and its original {str(path)!r} is not there"
            raise ModelNotFoundError(
                f"nothing says how to build the model of {name!r}{', ' if where else ''}{where}: give `--task FILE`, "
                "`--model module:function`, or `--original FILE`"
            ) from error
        if not options.trust_pickle:
            raise ModelNotFoundError(
                f"nothing says how to build the model of {name!r}: give `--task FILE` or `--model module:function`, "
                f"or `--trust-pickle` if its original {PurePath(str(path)).name} is a whole pickled module"
            ) from error
        original = open_anywhere(path, trust_pickle=True)
        checkpoint = dataclasses.replace(original, tensors=files.base, prefix="")
        return checkpoint, _find(checkpoint, task, options)


def _open_relaxed(
    folder: Path, options: OpenOptions, mode: StripMode | None, origin: HubPath | None = None
) -> Workspace:
    files = read_relaxed(folder)
    config = files.config
    if origin is None:
        refuse_code(config, repr(str(folder)), options.trust_remote_code)
    else:
        check_config(config, str(origin), options.trust_remote_code)
    task = _task_of(folder, config, options, origin)
    checkpoint, found = _find_for_folder(files, task, options, origin)
    schedule, form = _training_form(config, folder)
    relaxation = relax(found.model, config.plan, mode=mode or config.strip_mode, schedule=schedule, penalty_form=form)
    load_branches(relaxation, files.branches)
    relaxation.set_theta(*config.theta)
    if config.thetas is not None:
        relaxation.set_thetas(config.thetas)
    task = _bound(task, found.model)
    if origin is not None:
        check_values(*split_state(found.model.state_dict()), config, origin, options)
    return Workspace(folder, found.model, found, checkpoint, options, task, relaxation, files, origin)


def check_values(
    base: Mapping[str, Tensor],
    branches: Mapping[str, Tensor],
    config: RelaxedConfig,
    origin: HubPath,
    options: OpenOptions | None = None,
) -> None:
    """Refuse a relaxed model from the Hub with weights that are not finite where those of its base are.

    Args:
        base: its base weights.
        branches: weights of its branches.
        config: its configuration, which says where the base is; that is opened only if something is not finite.
        origin: where it was downloaded from.
        options: what the user gave.

    Raises:
        CheckpointError: if there are such weights.
    """

    def original() -> Mapping[str, Tensor]:
        source = original_source(config.base, options or OpenOptions(), origin)
        checkpoint = open_anywhere(source, entry=config.base["entry"])
        if checkpoint.sha256 != config.base["sha256"]:
            raise CheckpointError(f"the base of {str(origin)!r} has changed: give the right one as `--original FILE`")
        prefixed = {checkpoint.prefix + key: tensor for key, tensor in checkpoint.tensors.items()}
        return {**checkpoint.tensors, **prefixed}

    refuse_nonfinite(base, branches, str(origin), original)


def _training_form(config: RelaxedConfig, folder: Path) -> tuple[Schedule, PenaltyForm]:
    form = config.penalty["form"]
    if form not in get_args(PenaltyForm):
        raise CheckpointError(
            f"expected a penalty form among {', '.join(get_args(PenaltyForm))} in {str(folder)!r}, got {form!r}: "
            "correct it"
        )
    try:
        return Schedule(config.schedule["name"], **config.schedule["settings"]), form
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the schedule in {str(folder)!r} is unusable ({error}): correct it") from error


def _task_of(folder: Path, config: RelaxedConfig, options: OpenOptions, origin: HubPath | None) -> LoadedTask | None:
    """Return the task the user gives, else the one that the folder was made with, if it is still the same.

    A task is code, so what a folder from the Hub says about one does not count.
    """
    if options.task:
        return load_task(options.task, options.task_arguments)
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
    if options.announce and not is_adapters_task(spec) and (unchanged or options.accept_changed_task):
        options.announce(spec)
    task = load_task(spec, config.task["args"]) if unchanged or options.accept_changed_task else None
    if task is None or (task.sha256 != recorded and not options.accept_changed_task):
        raise TaskError(
            f"expected the task file {spec!r} as it was when the model was relaxed, but it has changed: "
            "check it and give `--accept-changed-task`"
        )
    return task


def load_branches(relaxation: Relaxation, tensors: Mapping[str, Tensor]) -> None:
    """Load the weights of all branches.

    Raises:
        CheckpointError: if names or shapes are not those of the branches.
    """
    # a shared module goes by its first name, as in the file
    own = {name: value for name, value in relaxation.model.named_parameters() if CHILD in name.split(".")}
    unknown = sorted(own.keys() ^ tensors.keys())
    wrong = unknown or sorted(key for key in own if own[key].shape != tensors[key].shape)
    if wrong:
        raise CheckpointError(
            f"expected weights for exactly {len(own)} branches, but {wrong[0]} does not fit: "
            "the folder was made with another plan"
        )
    with torch.no_grad():
        for key, index, piece in pieces(tensors):
            own[key][index].copy_(piece)


def relaxed_config(
    workspace: Workspace,
    relaxation: Relaxation,
    *,
    penalty_weight: float,
    penalty_scale: str,
    penalty_form: str = "gram",
    step: int = 0,
    thetas: Mapping[str, tuple[float, float]] | None = None,
) -> RelaxedConfig:
    """Describe a relaxed model for its folder; a folder made from a folder keeps the first one's base."""
    schedule = relaxation.schedule.to_data()
    thetas = thetas or relaxation.thetas
    if workspace.files is not None:
        base, model = workspace.files.config.base, workspace.files.config.model
    else:
        checkpoint = workspace.checkpoint
        origin = checkpoint.origin
        base = {
            "repo": origin.repo if origin else None,
            "file": origin.file if origin else str(checkpoint.path.absolute()),
            "entry": checkpoint.entry,
            "revision": origin.revision if origin else None,
            "sha256": checkpoint.sha256,
            "keys_hash": keys_hash(split_state(relaxation.model.state_dict())[0]),
        }
        model = workspace.found.factory if "factory" in (workspace.found.factory or {}) else None
    task = workspace.task
    return RelaxedConfig(
        group=relaxation.plan.group,
        plan=relaxation.plan,
        strip_mode=relaxation.mode,
        schedule={"name": schedule.pop("name"), "settings": schedule},
        penalty={"lambda": penalty_weight, "form": penalty_form, "scale": penalty_scale},
        theta=next(iter(thetas.values())),
        thetas=dict(thetas) if len(set(thetas.values())) > 1 else None,
        step=step,
        base=base,
        model=model,
        task=None
        if task is None
        else {"path": str(task.path or task.spec), "sha256": task.sha256, "args": dict(task.arguments)},
    )
