"""What the user may add to a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from surgeon.editing.adjust import Adjustments


@dataclass(frozen=True)
class OpenOptions:
    """What the user may add to a path: how to find model and task, and what is trusted.

    Attributes:
        task: a task file, ``module:attribute``, or ``adapter:datafile``.
        task_arguments: for ``make_task``.
        probes: tasks on other data, by names of their own: on these original and result are evaluated, too.
        action: ``module:name`` of how the group acts, instead of the task's own actions.
        accept_changed_task: use a task file although it is not the one that a relaxed folder was made with.
        factory: ``module:function`` that builds the model.
        factory_arguments: for the factory.
        build: in Python, a function that builds the model, instead of ``factory``.
        entry: which entry of a nested checkpoint holds the weights.
        original: where the original checkpoint is now, if it was moved since it was relaxed.
        adjustments: of a checkpoint's tensors and the task's arguments, which a certificate lists.
        trust_pickle: open files that run code.
        trust_remote_code: import a factory, group or task that is named inside a file.
        trust_task: run a task file that lies beside the checkpoint or is named in a relaxed folder, and remember it.
        ask: puts the question whether such a file may run, if it was never given on this machine.
        announce: told what is about to be executed.
        stage: told which stage of opening, finding and writing has ended, and how long it took.
    """

    task: str | None = None
    task_arguments: Mapping[str, Any] = field(default_factory=dict)
    probes: Mapping[str, str] = field(default_factory=dict)
    action: str | None = None
    accept_changed_task: bool = False
    factory: str | None = None
    factory_arguments: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[], nn.Module] | None = None
    entry: str | None = None
    original: str | None = None
    adjustments: Adjustments | None = None
    trust_pickle: bool = False
    trust_remote_code: bool = False
    trust_task: bool = False
    ask: Callable[[str], bool] | None = None
    announce: Callable[[str], None] | None = None
    stage: Callable[[str], None] | None = None
