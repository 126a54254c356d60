"""The certificate for people: ``CERTIFICATE.md`` from the data of ``certificate.json``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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


def grade_words(grade: str | None, recalibrated: bool = False) -> str:
    """Say in words how much a certificate shows; clean evaluation is compared before statistics are recalibrated."""
    before = " before recalibration" if recalibrated and grade == "same function" else ""
    return _GRADES[grade] + before


def certificate_text(data: Mapping[str, Any]) -> str:
    """Return the certificate as Markdown.

    Args:
        data: what ``certificate.json`` holds, all files but this text and the JSON itself included.
    """
    parts = [
        "# Certificate",
        _verdict(data),
        LIMITS,
        *_section("Checks", _checks(data)),
        *_section(
            "Files", markdown_table(("file", "sha256"), ((f"`{k}`", f"`{v}`") for k, v in data["files"].items()))
        ),
        *_section("Branches", _sites(data)),
        *_section("Equivariance", equivariance_section(data)),
        *_section("Metrics", _metrics(data)),
        *_section("Buffers that the model's own training forward writes", _buffers(data)),
        *_section("Recorded graphs", _graphs(data)),
        *_section("Written beside the weights", _formats(data["details"])),
        *_section("Made with", markdown_table(("package", "version"), data["details"].get("versions", {}).items())),
    ]
    return "\n\n".join(parts) + "\n"


def _section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table; nothing if it has no rows."""
    head = list(headings)
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines]) if lines else ""


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _number(value: float | None, digits: str = ".1e") -> str:
    """Return a number in words; JSON has null for one that is not finite."""
    return "not finite" if value is None else format(value, digits)


def _verdict(data: Mapping[str, Any]) -> str:
    original, tensors = data["details"]["original"], data["architecture"]["result"]
    entry = f", entry `{original['entry']}`" if original.get("entry") else ""
    verdict = grade_words(data["grade"], bool((data["details"].get("recalibration") or {}).get("done")))
    return (
        f"**{data['grade'] or 'NOT the original'}: {verdict}.** `model.safetensors` has {len(tensors)} tensors and was "
        f"compared with `{original['file']}`{entry}, sha256 `{original['sha256']}`."
    )


def _files(data: Mapping[str, Any]) -> str:
    return markdown_table(("file", "sha256"), ((f"`{name}`", f"`{digest}`") for name, digest in data["files"].items()))


def _checks(data: Mapping[str, Any]) -> str:
    rows = ((name, "yes" if holds else "**NO**") for name, holds in data["checks"].items())
    table = markdown_table(("check", "holds"), rows)
    return "\n\n".join([table, *(f"Difference: {text}." for text in data["differences"])])


def _sites(data: Mapping[str, Any]) -> str:
    sites = data["sites"]
    if not sites:
        return ""
    rows = (
        (f"`{s['name'] or '(model)'}`", s["argument"], *(_number(s[k], ".3e") for k in ("norm", "folded", "lost")))
        + (s["note"],)
        for s in sites
    )
    table = markdown_table(("site", "argument", "norm of W", "folded", "lost", "note"), rows)
    told = [f"{len(sites)} branches were stripped by `{data['strip_mode']}`; sizes are Frobenius norms."]
    theta, change = data["details"].get("theta"), data["projection_error"]
    if theta is not None:
        told.append(f"Theta of the relaxed model: {theta[0]:g} (foldable part {theta[1]:g}).")
    if any(EXACT_WHILE in s["note"] for s in sites):
        told.append(f"Where a note says *{EXACT_WHILE}*, the function changes by what is lost only so long.")
    if change is not None:
        told.append(f"Stripping changed the outputs by {_number(change)} (relative, mean over batches).")
    return f"{' '.join(told)}\n\n{table}"


_ERRORS = ("mean", "median", "maximum")


def equivariance_section(data: Mapping[str, Any]) -> str:
    """Return the equivariance errors as Markdown; nothing if none were measured."""
    rows = (
        (model, dtype, component, *(_number(error[key]) for key in _ERRORS), error["worst"], error["count"])
        for model, dtypes in data["equivariance"].items()
        for dtype, components in dtypes.items()
        for component, error in components.items()
    )
    table = markdown_table(("model", "dtype", "group component", "mean", "median", "max", "of element", "count"), rows)
    if not table:
        return ""
    settings, group = data["details"].get("measurement", {}), data["details"].get("group")
    how = "Relative error |f(gx) - g f(x)| / |g f(x)|" + (f" under {group}" if group else "")
    if settings:
        how += (
            f" on {settings['batches']} validation batches with {settings['elements']} random elements per component, "
            f"seed {settings['seed']}"
        )
    absent = data["details"].get("no float64")
    how += f". Judged in the model's own dtype alone, on at least 8 batches if there are: {absent}" if absent else ""
    how += flipped_words(data["details"])
    return f"{how}.\n\n{table}"


def flipped_words(details: Mapping[str, Any]) -> str:
    """Say how many rows were flipped where only a dtype that rounds coarsely could be run; else nothing."""
    if not details.get("no float64"):
        return ""
    parts = [
        f"under {component} "
        + ", ".join(f"{flipped} of {count} in the {model}" for model, (flipped, count) in by.items())
        for component, by in details.get("flipped rows", {}).items()
    ]
    return f". Rows off by 100 times the median row, as flipped ties are: {'; '.join(parts)}" if parts else ""


def _metrics(data: Mapping[str, Any]) -> str:
    metrics = data["metrics"]
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = (
        (model, *(_number(values[k], ".8g") if k in values else "-" for k in names))
        for model, values in metrics.items()
    )
    table = markdown_table(("model", *names), rows)
    split = data["details"].get("measurement", {}).get("split")
    return f"On the {split} split.\n\n{table}" if table and split else table


def _buffers(data: Mapping[str, Any]) -> str:
    rows = ((f"`{name}`", _number(change)) for name, change in data["buffers_written"].items())
    return markdown_table(("buffer", "largest change"), rows)


def _graphs(data: Mapping[str, Any]) -> str:
    hashes = data["details"].get("graph_sha256")
    if not hashes:
        return ""
    rows = ((model, f"`{digest}`") for model, digest in zip(("original", "result"), hashes, strict=True))
    source = data["details"].get("source")
    told = f" Since it was relaxed: {source}." if source else ""
    table = markdown_table(("model", "sha256 of the graph"), rows)
    return f"{data['details']['graph_nodes']} nodes each.{told}\n\n{table}"


_FORMATS = {
    "onnx": ("model.onnx", "ONNX Runtime"),
    "pt2": ("model.pt2", "the archive after `torch.export.load`"),
}


def _formats(details: Mapping[str, Any]) -> str:
    """Return a paragraph on each further format."""
    told = []
    for key, (name, runtime) in _FORMATS.items():
        record = details.get(key)
        if record is None:
            continue
        symmetric = (f"{_number(value, '.2g')} under {part}" for part, value in record["equivariance"].items())
        told.append(
            f"`{name}`: {record['nodes']} nodes, the same as for the original (sha256 `{record['graph_sha256']}`). "
            f"In units of the allowed deviation, {runtime} deviates from the model by "
            f"{_number(record['deviation'], '.2g')}, and f(gx) from g f(x) by {', '.join(symmetric) or 'not measured'}."
        )
    container = details.get("container")
    if container is not None:
        result = (
            f"gives the model's outputs on {container['batches']} batches"
            f"{', bit by bit' if container['bit_equal'] else ''}"
            if container["batches"]
            else "gives the weights back; its outputs were not compared, for lack of a task"
        )
        told.append(f"`{container['file']}`, the original container: opened by {container['opened_by']}, it {result}.")
    return "\n\n".join(told)
