"""The model card on the Hub, written from the records of a folder; the user's own text in it stays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from surgeon.errors import CheckpointError, HubError
from surgeon.files.card import BEGIN, CLEAN_WORDS, END, base_rows, markdown_table, relaxed_words
from surgeon.files.content import read_json
from surgeon.files.relaxed import RelaxedConfig
from surgeon.hub.content import Content
from surgeon.proof.usage import usage
from surgeon.proof.words import OTHER_DATA, grade_words, sections

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_SETTINGS = (
    "epochs",
    "learning_rate",
    "branch_factor",
    "optimizer",
    "weight_decay",
    "decay",
    "clip",
    "ema",
    "accumulate",
)


def card_text(content: Content, repo: str, own: str, compared: str | None = None) -> str:
    """Return the whole card: YAML, what is generated, and the user's own text.

    Args:
        repo: ``owner/name``.
        own: the card so far; between its marks it is written anew, and its YAML keeps all other keys.
        compared: the body of a section on a comparison with other ways to fine-tune.

    Raises:
        HubError: if the YAML of the card so far is not valid.
    """
    from huggingface_hub import ModelCard

    try:
        before = ModelCard(own if own.lstrip().startswith("---") else f"---\n\n---\n{own}", ignore_metadata_errors=True)
        data = _merged(before.data, _data(content, repo))
        text = _with_block(before.text, _block(content, repo, compared or ""))
        return f"---\n{data.to_yaml()}\n---\n{text}"
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise HubError(
            f"could not write the card of {repo}: the YAML at the top of the card so far is unusable ({reason}): "
            "correct it"
        ) from None


def _merged(before: Any, ours: Any) -> ModelCardData:
    """Return the keys of both; ours win, and tags are united."""
    from huggingface_hub import ModelCardData

    theirs, mine = before.to_dict(), ours.to_dict()
    tags = list(dict.fromkeys([*(theirs.get("tags") or ()), *(mine.get("tags") or ())]))
    return ModelCardData(**{**theirs, **mine, "tags": tags}, ignore_metadata_errors=True)


def _with_block(text: str, block: str) -> str:
    """Replace what stands between the marks, or put it in front of a text without marks."""
    start, end = text.find(BEGIN), text.find(END)
    if 0 <= start < end:
        return text[:start] + block + text[end + len(END) :]
    rest = text.strip()
    return f"\n{block}\n" + (f"\n{rest}\n" if rest else "")


def _data(content: Content, repo: str) -> ModelCardData:
    from huggingface_hub import ModelCardData

    base, group = _base(content), _group(content)
    more: dict[str, Any] = {}
    if base.get("repo"):
        more["base_model_relation"] = "adapter" if content.kind == "relaxed" else "finetune"
    tags = ["equivariance", "constraint-relaxation", content.kind]
    results = _results(content)
    return ModelCardData(
        library_name="equisurgeon",
        base_model=base.get("repo"),
        tags=[*tags, group.lower()] if group else tags,
        model_name=repo.split("/")[1] if results else None,
        eval_results=results or None,
        **more,
    )


def _base(content: Content) -> Mapping[str, Any]:
    if content.kind == "relaxed":
        config: RelaxedConfig = content.records["config"]
        return config.base
    original: Mapping[str, Any] = content.records["certificate"]["details"]["original"]
    return original


def _group(content: Content) -> str:
    if content.kind == "relaxed":
        return str(content.records["config"].plan.group)
    return str(content.records["certificate"]["details"].get("group") or "")


def _evaluated(content: Content) -> tuple[str, dict[str, float], dict[str, float]]:
    """Return the split, and the metrics before and after on it."""
    if content.kind == "clean":
        certificate = content.records["certificate"]
        metrics = certificate["metrics"]
        split = certificate["details"].get("measurement", {}).get("split") or "unknown"
        return split, metrics.get("original", {}), metrics.get("stripped", {})
    history: Sequence[Mapping[str, Any]] = [
        entry for entry in content.records.get("history", ()) if entry["validation"]
    ]
    chosen = [entry for entry in history if entry["epoch"] == content.records.get("best_epoch")]
    if not chosen:
        return "validation", {}, {}
    return "validation", dict(history[0]["validation"]), dict(chosen[0]["validation"])


def _results(content: Content) -> list[EvalResult]:
    from huggingface_hub import EvalResult

    split, before, after = _evaluated(content)
    return [
        EvalResult(
            task_type="other",
            dataset_type="custom",
            dataset_name=f"{split} split of the task's own data",
            dataset_split=split,
            metric_type=name,
            metric_value=value,
            metric_name=name if name not in before else f"{name} ({before[name]:.6g} before)",
        )
        for name, value in after.items()
        if _is_number(value)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _block(content: Content, repo: str, compared: str) -> str:
    relaxed = content.kind == "relaxed"
    parts = [
        f"{BEGIN}\n# {repo.split('/')[1]}",
        _relaxed(content) if relaxed else _clean(content),
        *_section("How to load", (_RELAXED_LOADING if relaxed else _CLEAN_LOADING).format(repo=repo)),
        *(_relaxed_parts(content) if relaxed else _certified_parts(content.records["certificate"])),
        *([] if relaxed else filter(None, [usage(content.records["certificate"])])),
        *_section("Comparison", compared),
    ]
    return "\n\n".join(parts) + f"\n{END}"


def _relaxed(content: Content) -> str:
    config: RelaxedConfig = content.records["config"]
    more = [("stripped by", config.strip_mode), ("optimiser steps", config.step)]
    return relaxed_words(config.plan, config.base, config.theta, more)


def _clean(content: Content) -> str:
    return f"{CLEAN_WORDS}\n\n{markdown_table(('', ''), base_rows(_group(content), _base(content)))}"


_RELAXED_LOADING = """```python
import surgeon
opened = surgeon.from_hub("{repo}", model=make_model)  # opened.model with opened.relaxation, to train on
model = surgeon.from_hub("{repo}", model=make_model, mode="fold").model  # without branches; or mode="drop"
```

Without equisurgeon, `load_file("model.safetensors")` of safetensors loads strictly into the original class."""

_CLEAN_LOADING = """```python
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
model.load_state_dict(load_file(hf_hub_download("{repo}", "model.safetensors")))  # the original class
```"""


def _section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def _relaxed_parts(content: Content) -> list[str]:
    """Return how it was trained, and what came of it."""
    split, before, after = _evaluated(content)
    values = [
        (name, *(_rounded(each.get(name)) for each in (before, after))) for name in after if _is_number(after[name])
    ]
    told = f"On the {split} split of the task's own data, without branches, from one run.\n\n"
    metrics = told + markdown_table(("metric", "before", "after"), values) if values else ""
    return [*_section("Training", _training(content)), *_section("Metrics", metrics)]


def _rounded(value: Any) -> str:
    return f"{value:.6g}" if _is_number(value) else "-"


def _training(content: Content) -> str:
    config, settings = content.records["config"], content.records.get("settings", {})
    if not config.step:
        return "Not trained yet: the function is that of the base."
    rows = [("schedule of theta", config.schedule.name)]
    rows += [("penalty", ", ".join(f"{name} {value}" for name, value in config.penalty.items()))]
    rows += [(name.replace("_", " "), settings[name]) for name in _SETTINGS if settings.get(name) is not None]
    if settings.get("replay"):
        what = PurePath(settings["replay"]).name  # no path of the machine that trained
        rows.append(("replay", f"{what}, weight {settings['replay_weight']:g}, share {settings['replay_share']:g}"))
    return markdown_table(("setting", "value"), rows)


def _certified_parts(certificate: Mapping[str, Any]) -> list[str]:
    """Return what the certificate says: as in CERTIFICATE.md, without hashes and versions."""
    grade = f"{certificate['grade'] or 'different'}: {grade_words(certificate)}."
    advice = "`surgeon verify FOLDER --against ORIGINAL` computes it again."
    parts = sections(certificate)
    told = (parts[title].markdown() for title in ("Branches", "Metrics", OTHER_DATA, "Equivariance", "Checks"))
    return [*_section("Certificate", f"{grade[0].upper()}{grade[1:]} {advice}"), *(part for part in told if part)]


def read_comparison(path: str | Path) -> str:
    """Return the record of ``surgeon finetune --compare`` in Markdown: one row per arm, and the sentences.

    Args:
        path: the JSON file that it wrote.

    Raises:
        CheckpointError: if it cannot be read, or is something else.
    """
    data = read_json(path)
    try:
        minus = str(data["rows"][0]["reference"] or "plain")
        metric, said = str(data["metric"]), [str(sentence) for sentence in data["sentences"]]
        rows = [
            (
                row["arm"],
                row["runs"],
                _with_spread(row["mean"], ".4e", row["spread"]),
                "-" if row["arm"] == row["reference"] else _with_spread(row["difference"], "+.1e", row["half_width"]),
            )
            for row in data["rows"]
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"expected what `surgeon finetune --compare` wrote in {str(path)!r}, got something else "
            f"({type(error).__name__} at {str(error)[:80]}): name that file"
        ) from error
    table = markdown_table(("arm", "seeds", f"test {metric}, mean ± std", f"minus {minus}, 95 % interval"), rows)
    return "\n\n".join([table, *said])


def _with_spread(value: float | None, form: str, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" if spread is None else f"{value:{form}} ± {spread:.1e}"
