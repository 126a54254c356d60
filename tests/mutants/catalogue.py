"""The faults, read from the ``.toml`` files beside this module."""

from __future__ import annotations

import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CODE = ("surgeon", "adapters", "cli", "benchmarks")


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: a short name, unique.
        file: the file it is in, from the root of the checkout.
        old: the text it replaces, which occurs once in the file.
        new: what it puts there.
        tests: test files, folders or ids of which at least one has to fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def text(self) -> str:
        """Return the file with the fault in it."""
        return (ROOT / self.file).read_text(encoding="utf-8").replace(self.old, self.new)

    def complaint(self) -> str | None:
        """Say why this cannot be tried: its text is gone or ambiguous, or a test is missing."""
        found = (ROOT / self.file).read_text(encoding="utf-8").count(self.old) if (ROOT / self.file).exists() else 0
        if not self.file.startswith(CODE) or found != 1 or self.old == self.new:
            return f"{self.name}: its old text has to occur once in {self.file}, and does {found} times"
        missing = [test for test in self.tests if not _exists(test)]
        return f"{self.name}: there is no {missing[0]}" if missing else None


def _exists(test: str) -> bool:
    """Tell whether there is a test file or folder, and in it the function of an id."""
    path, _, name = test.partition("::")
    if not name or not (ROOT / path).is_file():
        return not name and (ROOT / path).exists()
    return f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(encoding="utf-8")


def read_mutants() -> list[Mutant]:
    """Return all faults in the order of their files.

    Raises:
        ValueError: if two have one name, or one names no tests.
    """
    tables = [table for file in sorted(HERE.glob("*.toml")) for table in tomllib.loads(file.read_text())["mutant"]]
    mutants = [Mutant(**{**table, "tests": tuple(table["tests"])}) for table in tables]
    twice = [name for name, count in Counter(mutant.name for mutant in mutants).items() if count > 1]
    untested = [mutant.name for mutant in mutants if not mutant.tests]
    if twice or untested:
        raise ValueError(f"expected mutants with names of their own and tests, got {twice + untested}")
    return mutants
