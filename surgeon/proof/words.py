"""A certificate for people: ``CERTIFICATE.md``, and what a model card and the screen say of it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from surgeon.files.card import harmless, markdown_table
from surgeon.plan import EXACT_WHILE

LIMITS = """This certificate finds damage, not deliberate forgery. Every figure is covered by a hash, and whoever
changes a figure on purpose can compute the hash anew. `surgeon verify FOLDER --against ORIGINAL` computes everything
again that follows from the two checkpoints, the model and the task: the files, the form of every tensor, the module
classes, the recorded graphs and their constants, the equivariance errors, the metrics, and every further format. What
was measured on the relaxed model (clean evaluation, norms per site, theta, projection error, its equivariance) cannot
be computed from a clean folder and is only recorded. Attributes are compared if they are public, and numbers, words,
tensors, functions or containers of them; what a training forward writes is not compared."""


_GRADES: Mapping[str | None, str] = {
    "same function": "the recorded graph is the original's, the function that of clean evaluation",
    "same graph": "the recorded graph is the original's",
    "same form": "keys, shapes, classes and attributes are the original's, no run was compared",
    None: "the architecture is not the original's",
}


OTHER_DATA, INPUTS_AND_OUTPUTS = "Other data", "Inputs and outputs"


class Section(NamedTuple):
    """A part of a certificate: its title, what is told, and a table, whose first row are the headings."""

    title: str
    told: list[str]
    table: list[tuple[Any, ...]]

    def markdown(self) -> str:
        """Return the section in Markdown; nothing if nothing was recorded of it."""
        parts = [" ".join(self.told), markdown_table(self.table[0], self.table[1:]) if self.table else ""]
        return "\n\n".join((f"## {self.title}", *filter(None, parts))) if any(parts) else ""


def sections(data: Mapping[str, Any]) -> dict[str, Section]:
    """Return the sections of a certificate by title.

    Args:
        data: what ``certificate.json`` holds, or ``Certificate.to_data`` of one that was not written yet.
    """
    details = data["details"]
    files = [(f"`{name}`", f"`{digest}`") for name, digest in data.get("files", {}).items()]
    graphs = zip(("original", "result"), details.get("graph_sha256") or (), strict=False)
    hashes = [(model, f"`{digest}`") for model, digest in graphs]
    buffers = [(f"`{name}`", _number(change)) for name, change in data["buffers_written"].items()]
    source, told = details.get("source"), []
    if details.get("graph_sha256"):
        told = [f"{details['graph_nodes']} nodes each.", *([f"Since it was relaxed: {source}."] if source else [])]
    checks = [(name, "yes" if holds else "**NO**") for name, holds in data["checks"].items()]
    every = [
        Section("Checks", [f"Difference: {text}." for text in data["differences"]], [("check", "holds"), *checks]),
        Section("Changed before training", *_changes(details)),
        Section("Files", [], [("file", "sha256"), *files]),
        Section("Branches", _told_of_sites(data), [_SITE, *_site_rows(data["sites"])]),
        Section("Equivariance", _told_of_errors(data), [ERRORS, *error_rows(data["equivariance"])]),
        Section("Metrics", *_metrics(data)),
        Section(OTHER_DATA, *_other_data(details.get("probes") or {})),
        Section("Buffers that the model's own training forward writes", [], [("buffer", "largest change"), *buffers]),
        Section("Recorded graphs", told, [("model", "sha256 of the graph"), *hashes]),
        Section("Written beside the weights", list(_told_of_formats(details)), []),
        Section(INPUTS_AND_OUTPUTS, *_ports(details)),
        Section("Made with", [], [("package", "version"), *details.get("versions", {}).items()]),
    ]
    return {section.title: section for section in every}


def certificate_text(data: Mapping[str, Any]) -> str:
    """Return the certificate as Markdown.

    Args:
        data: what ``certificate.json`` holds, all files but this text and the JSON itself included.
    """
    original, tensors = data["details"]["original"], data["architecture"]["result"]
    entry = f", entry `{original['entry']}`" if original.get("entry") else ""
    verdict = (
        f"**{data['grade'] or 'NOT the original'}: {grade_words(data)}.** `model.safetensors` has {len(tensors)} "
        f"tensors and was compared with `{original['file']}`{entry}, sha256 `{original['sha256']}`."
    )
    parts = ["# Certificate", verdict, LIMITS, *(section.markdown() for section in sections(data).values())]
    return harmless("\n\n".join(part for part in parts if part)) + "\n"


def grade_words(data: Mapping[str, Any]) -> str:
    """Say how much a certificate shows; clean evaluation is compared before statistics are recalibrated."""
    recalibrated = (data["details"].get("recalibration") or {}).get("done") and data["grade"] == "same function"
    listed = (data["details"].get("adjustments") or {}).get("what")
    apart = f", apart from the {listed} that were changed before training" if listed else ""
    return _GRADES[data["grade"]] + (" before recalibration" if recalibrated else "") + apart


def _number(value: float | None, digits: str = ".1e") -> str:
    """Return a number in words; JSON has null for one that is not finite."""
    return "not finite" if value is None else format(value, digits)


def _changes(details: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Tell of what was changed in the original on purpose; everything else was compared with it so changed."""
    made = details.get("adjustments")
    if made is None:
        return [], []
    rows = [
        (f"`{change['tensor']}{list(change['index'])}`", change["label"], repr(change["before"]), repr(change["after"]))
        for change in made["changes"]
    ]
    told = [f"{made['what'].capitalize()}: {made['why']}. The original was compared with these values in it."]
    told += [f"The task got {name} = `{json.dumps(value)}`." for name, value in made["arguments"].items()]
    return told, [("entry", "of", "before", "after"), *rows] if rows else []


_SITE = ("site", "argument", "norm of W", "folded", "lost", "note")


def _site_rows(sites: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Any, ...]]:
    for site in sites:
        norms = (_number(site[key], ".3e") for key in ("norm", "folded", "lost"))
        yield f"`{site['name'] or '(model)'}`", site["argument"], *norms, site["note"]


def _told_of_sites(data: Mapping[str, Any]) -> list[str]:
    sites, theta, change = data["sites"], data["details"].get("theta"), data["projection_error"]
    if not sites:
        arm = data["details"].get("arm")
        return [] if arm is None else [f"There were no branches: it was trained by the arm `{arm}`, which has none."]
    told = [f"{len(sites)} branches were stripped by `{data['strip_mode']}`; sizes are Frobenius norms."]
    if theta is not None:
        told.append(f"Theta of the relaxed model: {theta[0]:g} (foldable part {theta[1]:g}).")
    for note, count in Counter(site["note"] for site in sites if EXACT_WHILE in site["note"]).items():
        told.append(f"{count} of them {note}: only so long does the function change by what is lost.")
    if change is not None:
        told.append(f"Stripping changed the outputs by {_number(change)} (relative, mean over batches).")
    return told


ERRORS = ("model", "dtype", "group component", "mean", "median", "max", "of element", "count")
"""Headings of :func:`error_rows`."""


def error_rows(equivariance: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return recorded equivariance errors, one row per model, dtype and component of the group."""
    return [
        (model, dtype, component, *(_number(error[key]) for key in ("mean", "median", "maximum")))
        + (error["worst"], str(error["count"]))
        for model, dtypes in equivariance.items()
        for dtype, components in dtypes.items()
        for component, error in components.items()
    ]


def error_words(data: Mapping[str, Any]) -> list[str]:
    """Say for each dtype how large the equivariance errors of result and original are at most."""
    largest: dict[str, dict[str, float]] = {}
    for model in ("stripped", "original"):
        for dtype, components in data["equivariance"].get(model, {}).items():
            errors = [error["maximum"] for error in components.values()]
            largest.setdefault(dtype, {})[model] = math.inf if None in errors else max(errors, default=math.nan)
    return [
        f"equivariance error in {dtype}: at most " + ", of the original ".join(f"{value:.1e}" for value in by.values())
        for dtype, by in largest.items()
    ]


def _told_of_errors(data: Mapping[str, Any]) -> list[str]:
    details = data["details"]
    settings, group, coarse = details.get("measurement"), details.get("group"), details.get("no float64")
    if not data["equivariance"]:
        return []
    how = "Relative error |f(gx) - g f(x)| / |g f(x)|" + (f" under {group}" if group else "")
    if settings:
        how += (
            f" on {settings['batches']} validation batches with {settings['elements']} random elements per component, "
            f"seed {settings['seed']}"
        )
    if not coarse:
        return [f"{how}."]
    parts = [
        f"under {component} "
        + ", ".join(f"{flipped} of {count} in the {model}" for model, (flipped, count) in by.items())
        for component, by in details.get("flipped rows", {}).items()
    ]
    flipped = [f"Rows off by 100 times the median row, as flipped ties are: {'; '.join(parts)}."] if parts else []
    alone = f"Judged in the model's own dtype alone, on at least 8 batches if there are: {coarse}."
    return [f"{how}.", alone, *flipped]


def _metrics(data: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    metrics, split = data["metrics"], (data["details"].get("measurement") or {}).get("split")
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [
        (model, *(_number(values[k], ".8g") if k in values else "-" for k in names))
        for model, values in metrics.items()
    ]
    return [f"On the {split} split."] if rows and split else [], [("model", *names), *rows]


def _other_data(probes: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    told = [f"On the {split} split." for split in dict.fromkeys(record["split"] for record in probes.values())]
    return told, [PROBED, *probe_rows({name: record["metrics"] for name, record in probes.items()})]


PROBED = ("data", "metric", "original", "result")
"""Headings of :func:`probe_rows`."""


def probe_rows(probes: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> list[tuple[str, ...]]:
    """Return what was measured on other data, one row per probe and metric.

    Args:
        probes: name of the probe to "original" and "stripped", those that are known, to their metrics.
    """
    return [
        (name, metric, *(_number(found[key].get(metric), ".8g") if key in found else "-" for key in _MODELS))
        for name, found in probes.items()
        for metric in next(iter(found.values()), {})
    ]


_MODELS = ("original", "stripped")

_FORMATS = {
    "onnx": ("model.onnx", "ONNX Runtime"),
    "pt2": ("model.pt2", "the archive after `torch.export.load`"),
}


def _ports(details: Mapping[str, Any]) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Tell what the further formats take and give; how that transforms, and its units, the ONNX file says."""
    about = (details.get("onnx") or {}).get("metadata", {})
    rows: dict[tuple[str, ...], list[str]] = {}
    for key, (file, _) in _FORMATS.items():
        record = details.get(key) or {}
        for what, names in (("input", record.get("inputs", ())), ("output", record.get("outputs", ()))):
            for name in names:
                known = (about.get(f"{fact}.{name}", "") for fact in ("irreps", "units"))
                rows.setdefault((name, what, record["axes"][name], *known), []).append(f"`{file}`")
    told = ["A number is a fixed size; a name is a free one, and the same name the same size."] if rows else []
    told += [f"{sentence[0].upper()}{sentence[1:]}." for sentence in one_size(details)]
    return told, [_PORT, *((", ".join(files), *row) for row, files in rows.items())] if rows else []


_PORT = ("file", "tensor", "is", "type and sizes", "transforms as", "unit")


def one_size(details: Mapping[str, Any]) -> list[str]:
    """Return what is to be said of axes of exported files that have one size in all batches of the task."""
    records = ((details.get(key) or {}).get("one_size") for key in _FORMATS)
    return list(dict.fromkeys(record["told"] for record in records if record))


def _told_of_formats(details: Mapping[str, Any]) -> Iterator[str]:
    """Tell of each further format."""
    for key, (name, runtime) in _FORMATS.items():
        record = details.get(key)
        if record is None:
            continue
        symmetric = (f"{_number(value, '.2g')} under {part}" for part, value in record["equivariance"].items())
        yield (
            f"`{name}`: {record['nodes']} nodes, the same as for the original (sha256 `{record['graph_sha256']}`). "
            f"In units of the allowed deviation, {runtime} deviates from the model by "
            f"{_number(record['deviation'], '.2g')}, and f(gx) from g f(x) by {', '.join(symmetric) or 'not measured'}."
        )
    container = details.get("container")
    if container is not None:
        bits = ", bit by bit" if container["bit_equal"] else ""
        result = (
            f"gives the model's outputs on {container['batches']} batches{bits}"
            if container["batches"]
            else "gives the weights back; its outputs were not compared, for lack of a task"
        )
        yield f"`{container['file']}`, the original container: opened by {container['opened_by']}, it {result}."
