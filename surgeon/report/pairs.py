"""What models compute beside what the data say: for potentials energies and forces by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from surgeon.report.figures import Cloud, clouds
from surgeon.report.page import Part

PAIRS = "Computed and labelled"


def pairs_part(pairs: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> Part:
    """Return the part with one panel for each name; empty where nothing is recorded.

    Args:
        pairs: model to name to ``computed`` and ``label``, as :class:`surgeon.opening.pairs.Pairs` finds them.
    """
    names = list(dict.fromkeys(name for found in pairs.values() for name in found))
    if not names:
        return Part(PAIRS)
    panels: list[tuple[str, list[Cloud]]] = []
    for name in names:
        models = {model: found[name] for model, found in pairs.items() if name in found}
        panels.append((name, [Cloud(model, both["label"], both["computed"]) for model, both in models.items()]))
    most = max(len(both["label"]) for found in pairs.values() for both in found.values())
    words = (
        f"What each model computes against the labels: a random sample, the same for all models, of at most {most} "
        "numbers under each name. On the line both are equal."
    )
    return Part(PAIRS, drawing=clouds(PAIRS, ("label", "computed"), panels, words))
