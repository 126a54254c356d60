"""Names of the outputs of an exported file, and the choice of some of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from surgeon.errors import UsageError
from surgeon.plan import Task
from surgeon.support.imports import close_names
from surgeon.support.trees import tensor_leaves


@dataclass(frozen=True)
class Selection:
    """Which outputs a file has.

    Attributes:
        names: these alone; None for all.
        energy_only: those alone that need no derivative inside the forward.
    """

    names: tuple[str, ...] | None = None
    energy_only: bool = False

    def positions(self, names: Sequence[str], derived: Collection[int] | None) -> tuple[int, ...]:
        """Return the positions of the chosen outputs, in the model's order.

        Args:
            names: of all outputs.
            derived: positions of those that hang on a derivative; None if none is taken.

        Raises:
            UsageError: if a name is unknown, or nothing is left out or nothing is left by ``energy_only``.
        """
        if self.names == ():
            raise UsageError(f"expected at least one output out of {', '.join(names)}, got none: name one")
        unknown = [name for name in self.names or () if name not in names]
        if unknown:
            raise UsageError(
                f"expected outputs out of {', '.join(names)}, got {unknown[0]!r}: the model has "
                f"{close_names(unknown[0], list(names))}"
            )
        kept = tuple(index for index, name in enumerate(names) if self.names is None or name in self.names)
        if not self.energy_only:
            return kept
        if derived is None:
            raise UsageError("the forward takes no derivative, so that there is nothing to leave out with energy-only")
        kept = tuple(index for index in kept if index not in derived)
        if not kept:
            raise UsageError(
                f"every output ({', '.join(names)}) needs a derivative, so that energy-only would leave none: "
                "let the model return its energy, too"
            )
        return kept


ALL_OUTPUTS = Selection()


def output_names(task: Task, outputs: Any) -> list[str]:
    """Return one name per tensor of the outputs: those of the task, else their keys."""
    paths = list(tensor_leaves(outputs))
    given = [str(name) for name in getattr(task, "output_names", ())]
    return given if len(given) == len(paths) else [".".join(map(str, path)) or "output" for path in paths]


def apart_from(names: Sequence[str], taken: Collection[str]) -> list[str]:
    """Return the names, with ``_out`` behind those that are taken."""
    return [f"{name}_out" if name in taken else name for name in names]
