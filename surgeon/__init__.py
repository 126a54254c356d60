"""equisurgeon: relax the equivariance of a pretrained network while it is fine-tuned, and give the architecture back.

Three lines in anybody's own training loop are enough::

    plan = surgeon.find(model, "O3", *sample_inputs)
    relaxation = surgeon.relax(model, plan)  # then set_progress(t), penalty() in the loop
    surgeon.strip(model)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surgeon.certificate import certify
    from surgeon.surgery import Relaxation, find, relax, select, strip
    from surgeon.types import Certificate, Plan, Site, Task
    from surgeon.workspace import open_path

__version__ = "0.1.0"

_HOMES = {
    "Certificate": "surgeon.types",
    "Plan": "surgeon.types",
    "Relaxation": "surgeon.surgery",
    "Site": "surgeon.types",
    "Task": "surgeon.types",
    "certify": "surgeon.certificate",
    "find": "surgeon.surgery",
    "open_path": "surgeon.workspace",
    "relax": "surgeon.surgery",
    "select": "surgeon.surgery",
    "strip": "surgeon.surgery",
}

__all__ = [
    "Certificate",
    "Plan",
    "Relaxation",
    "Site",
    "Task",
    "certify",
    "find",
    "open_path",
    "relax",
    "select",
    "strip",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import surgeon`` costs no more than torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'surgeon' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
