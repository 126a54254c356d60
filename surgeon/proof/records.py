"""Two records of one folder compared field by field: what its certificate says, and what is found now."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from surgeon.files.content import json_compatible
from surgeon.proof.verdict import Finding, compared, unchecked, unrecorded

SIGNAL = 1e-2
"""Largest relative change of an error above rounding: it follows from weights and data, whatever the machine."""

NOISE = 3.0
"""Largest factor between two errors at rounding level: sums are added up in another order elsewhere."""

ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative errors up to this size can be rounding alone; they are the tolerances of ``assert_equivariant``."""

HALF = 1e-2
"""The same for half precision."""

RESOLUTION = 0.1
"""Relative errors below this share of the dtype's spacing are all the same; a few are exactly 0 on some machines."""

ALLOWED_SHARE = 1e-2
"""Deviations below this share of the allowed one are all the same: float32 resolves no smaller ones."""

METRIC_TOLERANCE = 1e-4
"""Largest relative deviation of a metric computed again: float32 sums differ between machines and thread counts."""

ADJUSTED_CHECK = "changes before training, as listed"
SOURCE_CHECK, HASHES_CHECK = "the network's source since it was relaxed", "recorded graph hashes"

OTHER_DATA = "metrics on other data"

Place = tuple[str, ...]
"""The way to a value in nested data."""

COUNTS = ("tensors", "graph_nodes", "graph_constants")


def same_error(left: float | None, right: float | None, dtype: str) -> bool:
    """Tell whether two relative equivariance errors are one, measured twice on the same elements and batches.

    Args:
        left: dimensionless; not finite, or None, for a model that fails.
        right: the same.
        dtype: of the model, such as "float32".
    """
    kind = getattr(torch, dtype, None)
    if not (isinstance(kind, torch.dtype) and kind.is_floating_point):
        return _same(left, right, 0.0, 0.0)
    return _same(left, right, RESOLUTION * torch.finfo(kind).eps, ROUNDING.get(kind, HALF))


def same_deviation(left: float, right: float) -> bool:
    """Tell whether two deviations in units of the allowed one are one, measured twice; below 1 they are rounding."""
    return _same(left, right, ALLOWED_SHARE, 1.0)


def same_number(left: float | None, right: float | None, tolerance: float) -> bool:
    """Tell whether two numbers agree within a relative tolerance; those that are not finite, or None, are all one."""
    if left is None or right is None or not (math.isfinite(left) and math.isfinite(right)):
        return all(each is None or not math.isfinite(each) for each in (left, right))
    return abs(left - right) <= tolerance * max(abs(left), abs(right))


def _same(left: float | None, right: float | None, smallest: float, rounding: float) -> bool:
    if left is None or right is None or not (math.isfinite(left) and math.isfinite(right)):
        return same_number(left, right, 0.0)
    low, high = sorted((max(left, smallest), max(right, smallest)))
    return same_number(low, high, SIGNAL) or (high <= rounding and high <= NOISE * low)


@dataclass(frozen=True)
class Field:
    """How one part of two records is compared.

    Attributes:
        words: what is said of a value that differs, with its place as ``{0}``, ``{1}``, ..., or ``{what}`` and
            ``{where}``, its two values as ``{recorded}`` and ``{found}``, and what else the caller knows.
        needs: what has to be known to find it: "weights", "original", "model", "task", "group".
        same: tells whether two values at a place agree.
        partly: whether its first level may be there in part only.
        gone: what is said of a value that is no longer there; by default ``words``.
    """

    words: str
    needs: tuple[str, ...] = ()
    same: Callable[[Place, Any, Any], bool] = lambda _, recorded, found: bool(recorded == found)
    note: str = ""
    partly: bool = False
    gone: str = ""

    def differing(self, recorded: Any, found: Any, **context: Any) -> Iterator[str]:
        """Say of every value in two nests of data in which they differ what it was and what it is."""
        if self.partly:
            recorded = {key: value for key, value in recorded.items() if key in found}
        before, after = dict(_leaves(recorded)), dict(_leaves(found))
        for place in dict.fromkeys([*before, *after]):
            if place in before and place in after and self.same(place, before[place], after[place]):
                continue
            values = {name: _shown(side, place) for name, side in (("recorded", before), ("found", after))}
            where = {"where": "".join(f", {part}" for part in place[:-1]), "what": place[-1] if place else ""}
            words = self.gone if self.gone and place not in after else self.words
            yield words.format(*place, **values, **where, **context)


def _leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    if not isinstance(value, Mapping):
        yield place, value
        return
    for key, part in value.items():
        yield from _leaves(part, (*place, str(key)))


def _shown(values: Mapping[Place, Any], place: Place) -> str:
    if place not in values:
        return "nothing"
    value = values[place]
    text = "not finite" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 120 else text[:120] + "..."


def same_class(_: Place, left: str, right: str) -> bool:
    """Compare two classes; one of a task file has no module name of its own, and ``--model`` can name another."""
    own = [name.removeprefix("task") for name in (left, right) if name.startswith("task.")]
    return left == right or any(left.endswith(name) and right.endswith(name) for name in own)


def _same_summary(place: Place, left: Any, right: Any) -> bool:
    """Compare one figure of an error; at rounding level it is chance which element is the worst."""
    _, dtype, _, figure = place
    return figure == "worst" or (left == right if figure == "count" else same_error(left, right, dtype))


def _same_figure(_: Place, left: Any, right: Any) -> bool:
    return same_deviation(left, right) if isinstance(left, float) and isinstance(right, float) else bool(left == right)


FIELDS: Mapping[str, Field] = {
    "certificate's own sha256": Field("certificate.json was changed: its sha256 is {found}, and it says {recorded}"),
    "files": Field(
        "the file {0} was changed: its sha256 is {found}, recorded is {recorded}",
        note="sha256 of each",
        gone="the file {0} is missing",
    ),
    "original checkpoint": Field(
        "{against!r} is not the checkpoint that was relaxed: its sha256 is {found}, recorded is {recorded}",
        ("original",),
        note="sha256 of the file",
    ),
    "recorded forms of the original": Field(
        "{0} of the original: recorded is {recorded}, found {found}", ("weights", "original")
    ),
    "recorded forms of the result": Field("{0} of the result: recorded is {recorded}, found {found}", ("weights",)),
    "tensors": Field(
        "the values of {0} are not those that were certified: their sha256 is {found}, recorded is {recorded}",
        ("weights",),
        note="sha256 of each",
    ),
    "recorded counts": Field("recorded {0}: {recorded}, found {found}", ("weights",), partly=True),
    "recorded module classes": Field("module {0}: recorded class is {recorded}, found {found}", ("model",), same_class),
    "recorded changes of buffers": Field(
        "buffer {0}: recorded change is {recorded}, found {found}",
        ("original", "task"),
        lambda _, recorded, found: same_number(recorded, found, 1e-12),
    ),
    HASHES_CHECK: Field(
        "graph of the {0}: recorded hash is {recorded}, found {found}; the certificate, the model's code or the task's "
        "data have changed",
        ("original", "task"),
    ),
    SOURCE_CHECK: Field(
        "on the same data the code computes a graph with the hash {found}, and when it was relaxed with {recorded}: "
        "the code or the certificate has changed",
        ("original", "task"),
    ),
    "recorded equivariance": Field(
        "equivariance error of the {0} under {2} in {1}: recorded {3} is {recorded}, found {found}",
        ("task", "group"),
        _same_summary,
        f"counts equal, errors within {SIGNAL:.0%}, or a factor of {NOISE:g} at rounding level",
        partly=True,
    ),
    "metrics": Field(
        "{1} of the {0} on the {split} split: recorded is {recorded}, found {found}",
        ("task",),
        lambda _, recorded, found: same_number(recorded, found, METRIC_TOLERANCE),
        f"relative tolerance {METRIC_TOLERANCE:g}",
        partly=True,
    ),
}
"""What of a certificate follows from the folder, the original, the model, the task and the group."""


def fields_of(certificate: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``certificate.json`` says, by the names of ``FIELDS``; None for what it does not say."""
    details, tensors = certificate["details"], certificate["architecture"]
    measured, graphs = details.get("measurement") or {}, details.get("graph_sha256")
    return {
        "certificate's own sha256": str(certificate.get("sha256")),
        "files": certificate["files"],
        "original checkpoint": details["original"]["sha256"],
        "recorded forms of the original": tensors["original"],
        "recorded forms of the result": {name: entry[:2] for name, entry in tensors["result"].items()},
        "tensors": {name: digest for name, (_, _, digest) in tensors["result"].items()},
        "recorded counts": {name: details[name] for name in COUNTS if name in details},
        "recorded module classes": tensors["classes"],
        "recorded changes of buffers": stored_changes(certificate["buffers_written"], tensors["result"]),
        HASHES_CHECK: graphs and dict(zip(("original", "result"), graphs, strict=True)),
        SOURCE_CHECK: (details.get("relaxed_graph") or {}).get("sha256"),
        "recorded equivariance": (measured and certificate["equivariance"]) or None,
        "metrics": (measured.get("split") and certificate["metrics"]) or None,
    }


PROBE = Field(
    "{1} of the {0} on the probe {probe}: recorded is {recorded}, found {found}",
    same=lambda _, recorded, found: same_number(recorded, found, METRIC_TOLERANCE),
    note=f"relative tolerance {METRIC_TOLERANCE:g}",
)


def compare_probe(name: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Finding:
    """Compare what a certificate says of other data with what was found now, of the models that are known now."""
    if recorded["sha256"] != found["sha256"]:
        words = f"the file of the probe {name} is another: its sha256 is {found['sha256']}, recorded is"
        return compared(f"{OTHER_DATA}: {name}", [f"{words} {recorded['sha256']}"])
    known = {model: recorded["metrics"].get(model, {}) for model in found["metrics"]}
    return compared(f"{OTHER_DATA}: {name}", list(PROBE.differing(known, found["metrics"], probe=name)), PROBE.note)


def stored_changes(written: Mapping[str, Any], stored: Container[str]) -> dict[str, Any]:
    """Return the changes of buffers that are in a file; those that are not persistent are in none."""
    return {name: change for name, change in written.items() if name in stored and change != 0}


def compare_fields(
    recorded: Mapping[str, Any], found: Mapping[str, Any], why: Mapping[str, str], **context: Any
) -> list[Finding]:
    """Compare what a certificate says with what was found now.

    Args:
        recorded: as from :func:`fields_of`.
        found: the same; without what could not be computed.
        why: name of a field, or of what it needs, to what is missing.
        context: what the fields' words say besides.
    """
    findings = []
    for name, field in FIELDS.items():
        if found.get(name) is None:
            findings.append(unchecked(name, why.get(name) or what_is_missing(field.needs, why)))
        elif recorded[name] is None:
            findings.append(unrecorded(name))
        else:
            sentences = list(field.differing(recorded[name], found[name], **context))
            findings.append(compared(name, sentences, field.note))
    return findings


def what_is_missing(needs: Iterable[str], why: Mapping[str, str]) -> str:
    """Say what is missing of what something needs."""
    return "; ".join(dict.fromkeys(why[need] for need in needs if need in why)) or "it could not be computed"


def compare_figures(name: str, recorded: Mapping[str, Any], found: Mapping[str, Any], note: str = "") -> Finding:
    """Compare what is recorded of an exported file with what was found now; deviations by :func:`same_deviation`."""
    field = Field("{file}{where}: recorded {what} is {recorded}, found {found}", same=_same_figure)
    sentences = list(field.differing(recorded, json_compatible(found), file=name))
    return compared(f"{name}: recorded figures", sentences, note)
