"""The coefficients of the branches as pure functions of training progress (section 3.2 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from surgeon.errors import UsageError


def _triangle(t: float) -> float:
    return 2 * t if t < 0.5 else 2 - 2 * t


def _one_sided(t: float) -> float:
    return 1 - t


def _cosine(t: float) -> float:
    return (1 - math.cos(2 * math.pi * t)) / 2


def _constant(t: float) -> float:
    return 1.0


EARLY = 1 / 3
"""Share of the training in which the early schedule acts."""


def _early(t: float) -> float:
    return _triangle(t / EARLY) if t < EARLY else 0.0


SHAPES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {"triangle": _triangle, "one-sided": _one_sided, "cosine": _cosine, "constant": _constant, "early": _early}
)
_PEAK_AT = MappingProxyType({"triangle": 0.5, "one-sided": 0.0, "cosine": 0.5, "constant": 0.0, "early": EARLY / 2})


@dataclass(frozen=True)
class Schedule:
    """theta(t) for progress t in [0, 1].

    The released code of the paper ends with theta = 2/N and then drops hard; here the last ``tail`` of the training
    runs at exactly 0, so that the weights adapt to the clean model.

    Attributes:
        name: "triangle" (0 -> 1 -> 0), "one-sided" (1 -> 0), "cosine" (a smooth triangle), "constant" (no decay and
            no tail: an ablation, its projection is not free), or "early" (a triangle in the first third, then 0).
        tail: share of the training, in [0, 1), that runs at theta = 0 at the end; dimensionless.
        peak: largest theta, dimensionless.
        sites: pairs of a shell pattern on site keys and the share of theta that matching sites get; later ones win.

    Raises:
        UsageError: if the name is unknown or a number is out of range.

    Example:
        >>> schedule = Schedule("triangle", tail=0.0)
        >>> schedule.perpendicular(0.25), schedule.perpendicular(0.5), schedule.perpendicular(1.0)
        (0.5, 1.0, 0.0)
        >>> schedule.parallel(0.75)
        1.0
    """

    name: str = "triangle"
    tail: float = 0.05
    peak: float = 1.0
    sites: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in SHAPES:
            raise UsageError(f"expected a schedule among {', '.join(SHAPES)}, got {self.name!r}")
        if not 0 <= self.tail < 1:
            raise UsageError(f"expected a schedule tail in [0, 1), got {self.tail}")
        if not (self.peak > 0 and math.isfinite(self.peak)):
            raise UsageError(f"expected a positive finite peak of theta, got {self.peak}")
        object.__setattr__(self, "sites", tuple((str(pattern), float(share)) for pattern, share in self.sites))
        bad = [share for _, share in self.sites if not (share >= 0 and math.isfinite(share))]
        if bad:
            raise UsageError(f"expected shares of theta of at least 0, got {bad[0]}")

    def perpendicular(self, progress: float) -> float:
        """Return theta of the part of W that is not an intertwiner (of all of W when nothing is folded).

        Raises:
            UsageError: if the progress is outside [0, 1].
        """
        t = _share(progress)
        if self.name == "constant":
            return self.peak
        t = t / (1 - self.tail)
        return self.peak * SHAPES[self.name](t) if t < 1 else 0.0

    def parallel(self, progress: float) -> float:
        """Return theta of the intertwiner part of W: it rises like ``perpendicular`` and then stays for the fold.

        Raises:
            UsageError: if the progress is outside [0, 1].
        """
        t = _share(progress) / (1 - (self.tail if self.name != "constant" else 0.0))
        peak_at = _PEAK_AT[self.name]
        return self.peak * SHAPES[self.name](min(t, peak_at))

    def to_data(self) -> dict[str, Any]:
        """Return the settings as JSON-compatible data; ``Schedule(**data)`` rebuilds it."""
        return {**asdict(self), "sites": [list(pair) for pair in self.sites]}


def schedule_of(given: Schedule | str | None) -> Schedule:
    """Return a schedule, that of a name with the usual tail and peak, or the triangle for None.

    Raises:
        UsageError: if it is neither, or the name is unknown.
    """
    if isinstance(given, Schedule):
        return given
    if given is None or isinstance(given, str):
        return Schedule(given or "triangle")
    raise UsageError(
        f"expected a surgeon.Schedule or the name of one ({', '.join(SHAPES)}), got {type(given).__name__}: name one"
    )


def _share(progress: float) -> float:
    if not 0 <= progress <= 1:
        raise UsageError(
            f"expected the progress as a share of the training in [0, 1], got {progress}: pass step / steps, not a step"
        )
    return progress
