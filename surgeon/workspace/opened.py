"""A model that was opened, with everything that belongs to it, and the way back to its original."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from surgeon.checkpoint import Checkpoint, RelaxedFiles, load_into, open_checkpoint
from surgeon.errors import TaskError
from surgeon.hub.address import HubPath
from surgeon.models import FoundModel
from surgeon.surgery import Relaxation
from surgeon.tasks import LoadedTask
from surgeon.workspace.doubles import double_twin
from surgeon.workspace.options import OpenOptions
from surgeon.workspace.originals import open_original


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
        checkpoint = open_original(self.files.config.base, self.options, self.origin)
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
        """Return a float64 twin of ``model``, with or without branches, whose constants are float64 as well."""
        return double_twin(model, self.found, self.relaxation, str(self.path))
