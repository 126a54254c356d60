"""The page of a clean folder: from its certificate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from surgeon.errors import CheckFailedError, CheckpointError
from surgeon.files.clean import CERTIFICATE_FILE, canonical_digest, read_certificate
from surgeon.opening.evaluation import Judging
from surgeon.plan import EQUIVARIANCE_CHECK, FUNCTION_CHECK, GRAPH_CHECK
from surgeon.proof.equivariance import largest_allowed
from surgeon.proof.words import LIMITS, OTHER_DATA, Section, grade_words, sections
from surgeon.report.figures import ErrorRow, errors_on_log_axis
from surgeon.report.page import Bad, Drawing, Page, Part, Rows
from surgeon.report.pairs import pairs_part
from surgeon.report.run import metric_rows, primary_in_words, rows_of_probes, worse_in_words
from surgeon.report.use import share_part

EQUIVARIANCE = "Equivariance errors"


def clean_page(folder: Path) -> Page:
    """Return the page of a clean folder; none of its other files is opened.

    Raises:
        CheckpointError: if the certificate cannot be read, or its own hash says that it was changed.
    """
    try:
        data = read_certificate(folder)
    except CheckFailedError as error:
        raise CheckpointError(str(error)) from error
    if data.get("sha256") != canonical_digest(data):
        raise CheckpointError(
            f"expected {CERTIFICATE_FILE} in {str(folder)!r} as it was written, but its own sha256 is another: strip "
            "again"
        )
    details, told = data["details"], sections(data)
    judging = Judging.of_record(details.get("judging"))
    probes = {name: record["metrics"] for name, record in (details.get("probes") or {}).items()}
    shown = [title for title in told if title not in ("Checks", "Metrics", OTHER_DATA, "Equivariance")]
    return Page(
        title=f"Clean weights {folder.resolve().name}",
        lead=[f"{data['grade'] or 'NOT the original'}: {grade_words(data)}.", *_headline(data, judging)],
        facts=list(_facts(data)),
        parts=[
            Part("Metrics before and after", told["Metrics"].told, rows=_metrics(data, judging)),
            Part("On other data", told[OTHER_DATA].told, rows=rows_of_probes(judging, probes)),
            pairs_part(details.get("pairs") or {}),
            *_equivariance(data, told["Equivariance"]),
            share_part(details.get("branches") or {}),
            _checks(data, told["Checks"]),
            Part("What was not looked at", list(_not_looked_at(data))),
            *(Part(title, told[title].told, rows=told[title].table, folded=True) for title in shown),
        ],
    )


def _headline(data: Mapping[str, Any], judging: Judging) -> Iterator[str]:
    """Say what the primary metric was and is, and which ones got worse."""
    before, after = (data["metrics"].get(model, {}) for model in ("original", "stripped"))
    if judging.metric in before and judging.metric in after:
        yield primary_in_words(judging, before[judging.metric], after[judging.metric], "after")
    yield from worse_in_words(_metrics(data, judging))


def _facts(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    details, original = data["details"], data["details"]["original"]
    yield "original", f"`{original['file']}`, sha256 `{original['sha256']}`"
    yield "group", details.get("group") or "not recorded"
    yield "trained by", f"arm {details['arm']}" if details.get("arm") else "not recorded"
    yield "branches", f"{len(data['sites'])}, stripped by {data['strip_mode']}" if data["sites"] else "none"
    yield "tensors", len(data["architecture"]["result"])
    yield "certificate", f"sha256 `{data['sha256']}`"


def _metrics(data: Mapping[str, Any], judging: Judging) -> Rows:
    models = data["metrics"]
    return metric_rows(judging, models.get("original", {}), models.get("stripped", {}), "original")


def _checks(data: Mapping[str, Any], section: Section) -> Part:
    """Say how many hold, and list those that do not; if all do, the list is closed."""
    checks: Mapping[str, bool] = data["checks"]
    failed = [name for name, holds in checks.items() if not holds]
    said = [f"{len(checks) - len(failed)} of {len(checks)} hold.", *section.told]
    if failed:
        said.insert(1, f"Not: {', '.join(failed)}.")
    rows = [[Bad("NO") if cell == "**NO**" else cell for cell in row] for row in section.table]
    return Part("Checks", said, rows=rows, closed=not failed)


def _equivariance(data: Mapping[str, Any], section: Section) -> Iterator[Part]:
    found = list(_error_rows(data["equivariance"]))
    if not found:
        yield Part(EQUIVARIANCE, ["They were not measured."])
        return
    words = (
        "Largest relative equivariance error |f(gx) - g f(x)| / |g f(x)| of every model, by component of the group and "
        "dtype, on a logarithmic axis; the dashed mark is the largest one that the result may have, where largest "
        "errors decide. An error of exactly 0 stands at the left edge; one that is not finite is not drawn."
    )
    drawing: Drawing = errors_on_log_axis(EQUIVARIANCE, "largest relative error", found, words)
    yield Part(EQUIVARIANCE, section.told, drawing, section.table, closed=True)


def _error_rows(equivariance: Mapping[str, Any]) -> Iterator[ErrorRow]:
    """Yield one row for each dtype and component; in a coarse dtype largest errors decide only where it is alone."""
    places = [
        (dtype, component) for dtypes in equivariance.values() for dtype, parts in dtypes.items() for component in parts
    ]
    original = equivariance.get("original", {})
    for dtype, component in dict.fromkeys(places):
        errors = {
            model: dtypes[dtype][component]["maximum"]
            for model, dtypes in equivariance.items()
            if component in dtypes.get(dtype, {})
        }
        decides = errors.get("original") is not None and (dtype == "float64" or "float64" not in original)
        yield ErrorRow(f"{component}, {dtype}", errors, largest_allowed(errors["original"], dtype) if decides else None)


_ABSENT = {
    GRAPH_CHECK: "No run was recorded, so that neither the graph nor its constants were compared.",
    FUNCTION_CHECK: "Whether the result computes what the trained model did without branches was not compared.",
    EQUIVARIANCE_CHECK: "Equivariance was not compared with the original's.",
}


def _not_looked_at(data: Mapping[str, Any]) -> Iterator[str]:
    details = data["details"]
    yield from (sentence for check, sentence in _ABSENT.items() if check not in data["checks"])
    if not data["metrics"]:
        yield "No metrics were computed."
    if details.get("no float64"):
        yield f"Nothing was measured in float64: {details['no float64']}."
    formats = [name for name in ("onnx", "pt2", "container") if name not in details]
    if formats:
        yield f"Formats that were not written: {', '.join(formats)}."
    yield (
        f"This page says what `{CERTIFICATE_FILE}` says: no other file was opened and nothing was computed again, as "
        "`surgeon verify` does."
    )
    yield LIMITS.replace("\n", " ")
