"""What all comparisons together show of every arm: in how many it is better than plain training, in how many worse."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from findings import Measure, against, chosen, found_of, plain_of, tested, tuned, tuned_adamw
from lines import Lines
from tables import grid_of

COLUMNS = {
    "confirmed": "better, confirmed by fresh seeds",
    "unconfirmed": "better, not tried again",
    "refuted": "better, but not with fresh seeds",
    "untold": "not told apart",
    "worse": "worse",
}
SUBJECTS = {
    "table A": "potentials, fine-tuned",
    "table B": "charged particles",
    "table C": "point clouds, from scratch",
    "table D": "Equiformer, from scratch",
    "table E": "smoke, from scratch",
}


def found_in(lines: Lines, measure: Measure) -> dict[str, str]:
    """Return for every arm, at its best beta2, which of the columns its final runs belong to.

    Plain arms stand beside tuned AdamW, arms with branches beside plain training by their own optimiser.
    """
    best = chosen(lines, measure)
    adamw = tuned_adamw(best, measure)
    arms: dict[str, list[str]] = {}
    for arm in best:
        if not arm.startswith("plain@adamw"):
            arms.setdefault(re.sub(r"\+beta2=[\d.]+", "", arm), []).append(arm)
    result = {}
    for name, same in arms.items():
        arm = tuned(best, measure, same)
        both = (arm, adamw if plain_of(arm) == arm else plain_of(arm))
        pairs = [[tested(lines, each, best[each][0], fresh) for each in both] for fresh in (False, True)]
        first, again = (against(*pair, measure) for pair in pairs)
        if first is not None and len(first.values) > 1:
            result[name] = found_of(first, again, measure)
    return result


def table(comparisons: Sequence[tuple[str, Lines, Measure]]) -> list[str]:
    """Return the table.

    Args:
        comparisons: name of the table, runs with the full number of steps, and measure of each.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for name, lines, measure in comparisons:
        for arm, found in found_in(lines, measure).items():
            counts.setdefault((name, arm), Counter())[found] += 1
    heading = ["", "arm", "comparisons", *COLUMNS.values()]
    rows = [
        [f"{SUBJECTS[name]} ({name})", f"`{arm}`", str(count.total()), *(str(count[each] or "") for each in COLUMNS)]
        for (name, arm), count in counts.items()
    ]
    return grid_of([heading, *rows])
