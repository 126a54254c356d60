"""How much of a diagnosis fits into the time that there is."""

from __future__ import annotations

import dataclasses
import math

from surgeon.training.diagnosis.lanczos import FEWEST
from surgeon.training.diagnosis.result import MOVEMENT, DiagnosisSettings

SHARES = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
"""Of the batches, tried one after the other."""

FEWEST_HELD_OUT = 4
"""Held-out batches from which an interval is worth printing."""

MARGIN = 0.8
"""Share of the time that is planned for: the first product is only an estimate of the others."""


def affordable(settings: DiagnosisSettings, seconds: float, gradient: float, product: float) -> DiagnosisSettings:
    """Return the largest settings whose work is expected to fit; the least there are if nothing does.

    Where time is short, the loss along the direction is computed at one movement only.

    Args:
        settings: what would be done with time enough.
        seconds: for everything.
        gradient: seconds of one gradient on one batch.
        product: seconds of one Hessian-vector product on one batch.
    """
    least = min(FEWEST_HELD_OUT, settings.held_out_batches)
    if expected(settings, gradient, product) <= MARGIN * seconds:
        return settings
    for share in SHARES:
        smaller = dataclasses.replace(
            settings,
            products=max(FEWEST, math.ceil(max(share, 0.4) * settings.products)),
            train_batches=math.ceil(share * settings.train_batches),
            held_out_batches=max(least, math.ceil(share * settings.held_out_batches)),
            movements=(MOVEMENT,),
        )
        if expected(smaller, gradient, product) <= MARGIN * seconds:
            break
    return smaller


def expected(settings: DiagnosisSettings, gradient: float, product: float) -> float:
    """Return the seconds that a diagnosis takes; a forward counts as a third of a gradient."""
    batches = settings.train_batches + settings.held_out_batches
    # one more product and two gradients check the double backward
    products = settings.products * settings.train_batches + settings.held_out_batches + 1
    # movements in both senses on all batches, and three looks at the sizes on the training batches
    forwards = 2 * len(settings.movements) * batches + 3 * settings.train_batches
    return product * products + gradient * (batches + 3 + forwards / 3)
