"""A model that was opened, with everything that belongs to it, and the way back to its original."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from surgeon.editing.adjust import Adjustments, adjust
from surgeon.editing.branch import branched_ops, branches_of
from surgeon.editing.insert import detach, relax
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import CheckpointError, PrecisionError, SurgeonError, TaskError, UsageError
from surgeon.files.address import HubPath, is_hub_path
from surgeon.files.checkpoint import Checkpoint
from surgeon.files.reading import open_checkpoint
from surgeon.files.relaxed import Float64, RelaxedFiles, split_state
from surgeon.finding.precision import answer_in_double, run_in_double
from surgeon.opening.evaluation import outputs_on
from surgeon.opening.flow import recorded_flow
from surgeon.opening.loader import as_loaded, own_loader
from surgeon.opening.loading import load_branches, load_into
from surgeon.opening.models import FoundModel
from surgeon.opening.options import OpenOptions
from surgeon.opening.originals import open_original
from surgeon.opening.task_calls import task_batches
from surgeon.opening.tasks import LoadedTask, named_task
from surgeon.recording.flow import Flow
from surgeon.support.copies import copied
from surgeon.support.modes import default_dtype, model_dtype, set_training
from surgeon.support.trees import to_dtype
from surgeon.support.widened import in_double, weights_held_as


@dataclass
class Workspace:
    """An opened model.

    Attributes:
        path: what was opened; for the Hub, where it lies in the cache.
        model: the network, with branches if ``relaxation`` is set.
        found: how the architecture was found.
        checkpoint: the file that holds the base weights in use.
        task: the task, if any is known.
        relaxation: handle on the branches; None for a plain checkpoint.
        files: the relaxed folder; None for a plain checkpoint.
        origin: repository and commit, if it came from the Hub.
        adjustments: what the task has changed in the original before training; None if nothing.
        float64: ``how`` the network runs in float64, None if it does not, and ``why``; None if nobody has tried.
        twin: the float64 twin that was built last, None before.
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
    adjustments: Adjustments | None = None
    float64: Float64 | None = field(default=None)
    twin: nn.Module | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        task = "without a task" if self.task is None else f"task {self.task.spec}"
        return f"Workspace({self.name!r}, {self.relaxation or type(self.model).__name__}, {task})"

    def __post_init__(self) -> None:
        """Take over what the folder says about float64; a stranger's could make every later measurement coarser."""
        if self.float64 is None and self.files is not None and self.origin is None:
            self.float64 = self.files.config.float64

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

    @functools.cached_property
    def probes(self) -> dict[str, LoadedTask]:
        """The tasks on other data that the user names, for this model.

        Raises:
            TaskError: if one cannot be loaded, or is for other models.
        """
        return {name: named_task(spec).for_model(self.model) for name, spec in self.options.probes.items()}

    @functools.cached_property
    def flow(self) -> Flow | None:
        """The way of the data through the modules of the model's plan; None if no run of it can be recorded."""
        task, plan = self.require_task(), self.require_relaxed()[0].plan
        try:
            return recorded_flow(self.model, task, plan)
        except Exception:  # of the user's code, or of the recorder: a training has ended well without a picture of it
            return None

    def adjustable(self) -> tuple[str, ...]:
        """Return the names of the tensors that the task may change before training."""
        ask = None if self.task is None else getattr(self.task.task, "adjustable", None)
        return () if ask is None else tuple(ask(self.model))

    def require_relaxed(self) -> tuple[Relaxation, RelaxedFiles]:
        """Return the handle on the branches, and the folder from which they were read.

        Raises:
            CheckpointError: if a plain checkpoint was opened.
        """
        if self.relaxation is None or self.files is None:
            raise CheckpointError(
                f"expected a relaxed folder, got the plain checkpoint {self.name!r}, which has no branches: run "
                f"`surgeon relax {self.name}` first"
            )
        return self.relaxation, self.files

    def refuse_output(self, target: str | Path, in_place: bool = False) -> None:
        """Refuse an output in which what was opened lies, its original or its task: replacing it would delete them.

        Args:
            target: what is going to be written.
            in_place: what was opened may be written itself.

        Raises:
            UsageError: naming the input.
        """
        opened = None if in_place or self.origin is not None else self.path
        base = None if self.files is None or self.files.config.base["repo"] else self.files.config.base["file"]
        task = None if self.task is None else self.task.file
        place = Path(os.path.realpath(target))  # which a link to itself does not stop
        probes = (probe.file for probe in self.probes.values())
        for given in (opened, base, self.options.original, self.options.task, task, *probes):
            if given is not None and not is_hub_path(given) and Path(os.path.realpath(given)).is_relative_to(place):
                raise UsageError(
                    f"expected an output apart from the input, but {str(given)!r} lies in {str(target)!r}: "
                    "choose another `-o`"
                )

    @functools.cached_property
    def original_file(self) -> Checkpoint:
        """The checkpoint that was relaxed.

        Raises:
            CheckpointError: if it is not where it was, or has changed since.
        """
        if self.files is None:
            return self.checkpoint
        known = None if own_loader(self.task) else self.files.base  # the user's may make other tensors of the file
        return as_loaded(open_original(self.files.config.base, self.options, self.origin, known), self.task)

    @functools.cached_property
    def reference(self) -> tuple[nn.Module, Checkpoint]:
        """The original and its checkpoint, built once for all that only reads or runs it; see :meth:`original`."""
        return self.original()

    def original(self) -> tuple[nn.Module, Checkpoint]:
        """Return a fresh model with the weights of the checkpoint that was relaxed, and that checkpoint.

        What the task changes before training is changed in the model: training began from there.

        Raises:
            CheckpointError: if it is not where it was, or has changed since.
        """
        checkpoint = self.original_file
        model = self.found.rebuild() if self.files is None else self.found.rebuild(checkpoint)
        if self.adjustments is not None:
            adjust(model, self.adjustments, str(checkpoint.path))
        return model, checkpoint

    def fresh_original(self) -> nn.Module:
        """Return a fresh original, without its file where a folder that was not trained has its weights; as above."""
        if self.files is None or self.files.config.step:
            return self.original()[0]
        model = self.found.rebuild()
        load_into(model, self.files.base, self.name)
        return model

    def reopened(self, path: str | Path) -> tuple[nn.Module, str]:
        """Open a container like the original's as that was opened; return its model, and where that comes from.

        A whole module is its own model, even if the original was loaded into one that was built.
        """
        entry = self.files.config.base["entry"] if self.files is not None else self.checkpoint.entry
        checkpoint = open_checkpoint(path, trust_pickle=self.options.trust_pickle, entry=entry)
        if checkpoint.module is not None:
            return checkpoint.module, "unpickling the module"
        return self.found.rebuild(checkpoint), self.found.words

    @property
    def runs_in_double(self) -> bool:
        """Whether the network runs in float64, perhaps with help; without a task, which could run it, it counts so.

        It is tried once, by the first that asks, and stored in the relaxed folder.
        """
        if self.float64 is None and self.task is not None:
            try:
                self.double(self.model)
            except PrecisionError as error:
                self.float64, self.twin = {"how": None, "why": str(error)}, None
        return self.float64 is None or self.float64["how"] is not None

    @property
    def no_double(self) -> str:
        """Why the network does not run in float64, as a sentence without a full stop; empty if it does."""
        return "" if self.runs_in_double or self.float64 is None else self.float64["why"]

    def double(self, model: nn.Module) -> nn.Module:
        """Return a float64 twin of ``model``, with or without branches, whose constants are float64 as well.

        A network that asks for float32 in its forward gets float64 in the twin. Ask ``runs_in_double`` first where
        there is another way. There is one twin: the next call gives the same module other weights, without branches if
        the model has none; only with branches that the twin has not, another one is built.

        Raises:
            PrecisionError: if the network does not run in float64 even so.
        """
        if self.float64 is not None and self.float64["how"] is None:
            raise PrecisionError(self.float64["why"])
        twin = self._in_double(model)
        if self.float64 is None and self.task is not None:
            self.float64 = {"how": self._run_in_double(twin, model, self.task), "why": ""}
        elif self.float64 is not None and self.float64["how"] == "answered":
            answer_in_double(twin)
        return twin

    def _in_double(self, model: nn.Module) -> nn.Module:
        """Give the twin the weights of a model.

        Its architecture is built anew under the default dtype float64: constants that a float32 model computed at
        construction would keep their rounding if it were cast. That takes longer than running it, so it is done once.
        """
        base, branches = (
            {key: in_double(tensor) for key, tensor in part.items()} for part in split_state(model.state_dict())
        )
        own = branches_of(model)
        if self.twin is not None and not own:
            for _, op, _ in branched_ops(self.twin):
                detach(op)
        with default_dtype(torch.float64), weights_held_as(model_dtype(model)):
            if self.twin is not None and branches_of(self.twin).keys() == own.keys():
                set_training(self.twin, True)  # what a library keeps of the weights in eval mode is renewed
                load_into(self.twin, {**base, **branches}, str(self.path))
            else:
                self.twin = None  # so that there are never two
                self.twin = self._built_in_double(base, branches)
        with torch.no_grad():
            for key, branch in branches_of(self.twin).items():
                branch.theta.copy_(own[key].theta)
                branch.theta_was_set, branch.clean = own[key].theta_was_set, own[key].clean
        return self.twin.train(model.training)

    def _built_in_double(self, base: Mapping[str, Tensor], branches: Mapping[str, Tensor]) -> nn.Module:
        twin = self._base_in_double(dataclasses.replace(self.checkpoint, tensors=base, prefix=""))
        if branches:
            assert self.relaxation is not None
            relax(twin, self.relaxation.plan, dense=True, mode=self.relaxation.mode, init_scale=0.0)
            load_branches(twin, {key: branches[key] for key, _ in twin.named_parameters() if key in branches})
        return twin

    def _base_in_double(self, casted: Checkpoint) -> nn.Module:
        """Build the architecture under the default dtype; that of a library which insists on float32 is cast instead.

        Such a library may share constants between models (escnn does): the cast one is a copy.
        """
        try:
            return self.found.rebuild(casted)
        except (SurgeonError, RuntimeError):  # the latter where such constants meet weights in eval mode
            with default_dtype(torch.float32):
                twin = copied(self.found.rebuild())
            try:
                load_into(twin, casted.tensors, str(self.path))
            except SurgeonError as error:
                raise PrecisionError(f"the network cannot be built in float64: {error}") from error
            return twin

    def _run_in_double(self, twin: nn.Module, model: nn.Module, task: LoadedTask) -> str:
        (batch,) = itertools.islice(task_batches(task.task, "validation", 0), 1)
        run = functools.partial(outputs_on, twin, task.task, [to_dtype(batch, torch.float64)])
        own = functools.partial(outputs_on, model, task.task, [to_dtype(batch, model_dtype(model))])
        return run_in_double(twin, run, own)

    def double_or_own(self, model: nn.Module) -> nn.Module:
        """Return the float64 twin, or ``model`` itself where the network does not run in float64."""
        return self.double(model) if self.runs_in_double else model
