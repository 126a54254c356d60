"""What the adapters of all potentials share: their groups, and a task on extended-XYZ files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from surgeon.errors import TaskError
from surgeon.plan import Task
from surgeon.registry import Adapter
from surgeon.support.imports import call_with
from surgeon_adapters.atoms.task import AtomisticTask


class PotentialAdapter(Adapter):
    """A library of potentials, whose layers are those of e3nn."""

    groups = ("SO3", "O3", "SE3", "E3")
    task_class: ClassVar[type[AtomisticTask]]

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on an extended-XYZ file."""
        make = functools.partial(self.task_class, data)
        task: Task = call_with(make, arguments, f"the task of {self.name}", TaskError)
        return task
