"""Texts that differ by their numbers alone, written as one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def alike(texts: Iterable[str]) -> list[tuple[str, list[int]]]:
    """Put texts together that differ by numbers alone.

    Returns:
        Each kind once, with all numbers that stand in a place, and the positions of its texts.

    Example:
        >>> alike(["a.0: 2e-01", "other", "a.1: 3e-02"])
        [('a.0-1: 3e-02 to 2e-01', [0, 2]), ('other', [1])]
    """
    given = list(texts)
    kinds: dict[str, list[int]] = {}
    for position, text in enumerate(given):
        kinds.setdefault(NUMBER.sub("#", text), []).append(position)
    return [(together([given[position] for position in members]), members) for members in kinds.values()]


def together(texts: Sequence[str]) -> str:
    """Write texts that differ by numbers alone as one."""
    columns = zip(*(NUMBER.findall(text) for text in texts), strict=True)
    words = iter([ranged(column) for column in columns])
    return NUMBER.sub(lambda _: next(words), texts[0])


def ranged(numbers: Iterable[str]) -> str:
    """Write numbers, without repetition, as one: whole ones that follow each other as a range."""
    different = sorted(set(numbers), key=float)
    if len(different) == 1:
        return different[0]
    if not all(number.isdigit() for number in different):
        return f"{different[0]} to {different[-1]}"
    runs: list[list[int]] = []
    for number in map(int, different):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
