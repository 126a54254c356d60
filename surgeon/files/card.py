"""The short model card of a relaxed folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from surgeon.plan import Plan

BEGIN, END = "<!-- surgeon:begin -->", "<!-- surgeon:end -->"
"""Around what is written anew when a folder is pushed; text of the user's stands outside."""

_CARD = f"""---
library_name: equisurgeon
tags:
- equivariance
- constraint-relaxation
---

{BEGIN}
# Relaxed model

`model.safetensors` holds the weights of the equivariant network under their original names; it loads without
equisurgeon. `relaxation.safetensors` holds {{count}} relaxation branches ({{parameters}} parameters) for the group
{{group}}, and `surgeon_config.json` says where they belong.

| | |
| --- | --- |
| base | {{base}} |
| base sha256 | `{{sha256}}` |
| branch coefficient theta (perpendicular, parallel) | {{perpendicular:g}}, {{parallel:g}} |

| site | input | W |
| --- | --- | --- |
{{sites}}

Train it with `surgeon finetune FOLDER --task task.py`; remove the branches with `surgeon strip FOLDER`.
{END}
"""


def model_card(plan: Plan, base: Mapping[str, Any], theta: tuple[float, float]) -> str:
    """Return the text of the card, without any path of the machine that wrote it.

    Args:
        plan: the sites.
        base: ``file`` and ``sha256`` of the checkpoint that was relaxed.
        theta: (perpendicular, parallel), dimensionless.
    """
    name = str(base["file"])
    sites = "\n".join(
        f"| `{site.name or '(model)'}` | {site.slot} | {' x '.join(map(str, site.shape))} |" for site in plan.sites
    )
    return _CARD.format(
        count=len(plan.sites),
        parameters=sum(site.extra_parameters for site in plan.sites),
        group=plan.group,
        base=PurePath(name).name if PurePath(name).is_absolute() else name,
        sha256=base["sha256"],
        perpendicular=theta[0],
        parallel=theta[1],
        sites=sites,
    )
