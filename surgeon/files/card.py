"""What model cards say of a folder, here and on the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from surgeon.errors import printable
from surgeon.plan import Plan

BEGIN, END = "<!-- surgeon:begin -->", "<!-- surgeon:end -->"
"""Around what is written anew when a folder is pushed; text of the user's stands outside."""

_RELAXED = f"""---
library_name: equisurgeon
tags:
- equivariance
- constraint-relaxation
---

{BEGIN}
# Relaxed model

{{words}}

Train it with `surgeon finetune FOLDER --task task.py`; remove the branches with `surgeon strip FOLDER`.
{END}
"""

_RELAXED_WORDS = """`model.safetensors` holds the weights of the equivariant network under their original names; it
loads without equisurgeon. `relaxation.safetensors` holds {count} relaxation branches ({parameters} parameters) for the
group {group}, and `surgeon_config.json` says where they belong."""

_TRAINED_WORDS = """`model.safetensors` holds the weights of the equivariant network under their original names, as an
arm without branches has trained them; it loads without equisurgeon. `relaxation.safetensors` is empty."""

CLEAN_WORDS = """`model.safetensors` holds the weights of the original architecture, with the original's keys, shapes
and dtypes: load them with `load_state_dict(..., strict=True)` into the original class; equisurgeon is not needed. They
were fine-tuned, with relaxed equivariance if the certificate lists branches. `certificate.json` records the comparison
with the original, everything that was measured, and the hash of every file; `CERTIFICATE.md` says the same in words,
its first line how much was shown. `surgeon verify FOLDER --against ORIGINAL` computes it again."""


def model_card(plan: Plan, base: Mapping[str, Any], theta: tuple[float, float]) -> str:
    """Return the text of a relaxed folder's own card; as :func:`relaxed_words`."""
    return _RELAXED.format(words=relaxed_words(plan, base, theta))


def relaxed_words(
    plan: Plan, base: Mapping[str, Any], theta: tuple[float, float], more: Iterable[tuple[str, Any]] = ()
) -> str:
    """Say what a relaxed folder holds, without any path of the machine that wrote it.

    Args:
        base: of the checkpoint that was relaxed, see :func:`base_rows`.
        theta: (perpendicular, parallel), dimensionless.
        more: further facts.
    """
    added = sum(site.extra_parameters for site in plan.sites)
    words = _RELAXED_WORDS.format(count=len(plan.sites), parameters=added, group=plan.group)
    if not plan.sites:
        words = _TRAINED_WORDS
    coefficients = ("branch coefficient theta (perpendicular, parallel)", f"{theta[0]:g}, {theta[1]:g}")
    facts = markdown_table(("", ""), [*base_rows(plan.group, base), coefficients, *more])
    rows = (
        (f"`{s.name or '(model)'}`", s.slot, " x ".join(map(str, s.shape)), s.kind, f"{s.extra_parameters:,}")
        for s in plan.sites
    )
    sites = markdown_table(("site", "input", "W", "kind", "parameters added in training"), rows)
    return f"{words}\n\n{facts}\n\n{sites}"


def base_rows(group: str, base: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the group and the checkpoint that was relaxed as rows of a table.

    Args:
        group: its name; empty if nobody knows.
        base: ``file`` and ``sha256``; with ``repo`` and ``revision`` if it is on the Hub.
    """
    if base.get("repo"):
        place = f"[{base['repo']}](https://huggingface.co/{base['repo']}), `{base['file']}` at `{base['revision']}`"
    else:
        place = f"`{str(base['file']).replace(chr(92), '/').rsplit('/', 1)[-1]}`, not on the Hub"
    return [("group", group or "not recorded"), ("base", place), ("base sha256", f"`{base['sha256']}`")]


def markdown_table(headings: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a Markdown table; nothing if it has no rows."""
    head = [_cell(heading) for heading in headings]
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *lines]) if lines else ""


def _cell(value: Any) -> str:
    return harmless(str(value)).replace("|", "\\|").replace("\n", " ")


_CODE = re.compile(r"(?<![`\\])(`[^`\n]+`)(?!`)")


def harmless(text: str) -> str:
    """Return a text for Markdown without HTML and without what cannot be seen; names come from files of others.

    Code between two marks stays as it is, since nothing is HTML there; any other mark is made to begin none.
    """
    parts = _CODE.split(printable(text))
    parts[::2] = (re.sub(r"(?<!\\)`", r"\\`", part).replace("<", "&lt;") for part in parts[::2])
    return "".join(parts)
