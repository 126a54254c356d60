"""What the adapters of all potentials share: their groups, and a task on extended-XYZ files."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from surgeon.errors import TaskError
from surgeon.plan import Task
from surgeon.registry import Adapter
from surgeon.support.imports import call_with
from surgeon_adapters.atoms.task import AtomisticTask

USAGE = """from ase.io import read
{imported}

atoms = read("structure.xyz")
atoms.calc = {made}
print(atoms.get_potential_energy(), atoms.get_forces())"""


class PotentialAdapter(Adapter):
    """A library of potentials, whose layers are those of e3nn."""

    groups = ("SO3", "O3", "SE3", "E3")
    task_class: ClassVar[type[AtomisticTask]]
    package: ClassVar[str]
    """That the classes of its models come from."""
    calculator: ClassVar[tuple[str, str]]
    """The line that imports its ASE calculator, and the expression that makes one of a file."""

    def task(self, data: Path, arguments: Mapping[str, Any]) -> Task:
        """Return the task on an extended-XYZ file."""
        make = functools.partial(self.task_class, data)
        task: Task = call_with(make, arguments, f"the task of {self.name}", TaskError)
        return task

    def usage(self, module: nn.Module, file: str) -> str | None:
        """Return Python that computes energy and forces by the library's own ASE calculator."""
        if type(module).__module__.partition(".")[0] != self.package:
            return None
        imported, made = (line.format(file=file) for line in self.calculator)
        return USAGE.format(imported=imported, made=made)
