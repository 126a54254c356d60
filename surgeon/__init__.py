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
    from surgeon.editing.insert import relax
    from surgeon.editing.relaxation import Relaxation
    from surgeon.editing.select import select
    from surgeon.editing.strip import strip
    from surgeon.finding.find import find
    from surgeon.hub.loading import from_hub, from_pretrained, save_pretrained
    from surgeon.hub.pulling import pull
    from surgeon.hub.pushing import PushOptions, push_to_hub
    from surgeon.opening.open import open_path
    from surgeon.opening.options import OpenOptions
    from surgeon.opening.relaxing import RelaxSettings, relax_checkpoint
    from surgeon.plan import Certificate, Plan, Site, Task
    from surgeon.proof.certificate import certify
    from surgeon.proof.inspection import find_breaks, inspect, measure
    from surgeon.proof.stripping import StripSettings, strip_folder
    from surgeon.proof.verdict import MeasureSettings
    from surgeon.proof.verification.verify import verify_clean
    from surgeon.training.compare import CompareSettings, compare
    from surgeon.training.diagnosis.diagnose import diagnose
    from surgeon.training.diagnosis.result import DiagnosisSettings
    from surgeon.training.finetune import finetune
    from surgeon.training.session import TrainingSession
    from surgeon.training.settings import FinetuneSettings

__version__ = "0.1.0"

_HOMES = {
    "Certificate": "surgeon.plan",
    "CompareSettings": "surgeon.training.compare",
    "DiagnosisSettings": "surgeon.training.diagnosis.result",
    "FinetuneSettings": "surgeon.training.settings",
    "MeasureSettings": "surgeon.proof.verdict",
    "OpenOptions": "surgeon.opening.options",
    "Plan": "surgeon.plan",
    "PushOptions": "surgeon.hub.pushing",
    "RelaxSettings": "surgeon.opening.relaxing",
    "Relaxation": "surgeon.editing.relaxation",
    "Site": "surgeon.plan",
    "StripSettings": "surgeon.proof.stripping",
    "Task": "surgeon.plan",
    "TrainingSession": "surgeon.training.session",
    "certify": "surgeon.proof.certificate",
    "compare": "surgeon.training.compare",
    "diagnose": "surgeon.training.diagnosis.diagnose",
    "find": "surgeon.finding.find",
    "find_breaks": "surgeon.proof.inspection",
    "finetune": "surgeon.training.finetune",
    "from_hub": "surgeon.hub.loading",
    "from_pretrained": "surgeon.hub.loading",
    "inspect": "surgeon.proof.inspection",
    "measure": "surgeon.proof.inspection",
    "open_path": "surgeon.opening.open",
    "pull": "surgeon.hub.pulling",
    "push_to_hub": "surgeon.hub.pushing",
    "relax": "surgeon.editing.insert",
    "relax_checkpoint": "surgeon.opening.relaxing",
    "save_pretrained": "surgeon.hub.loading",
    "select": "surgeon.editing.select",
    "strip": "surgeon.editing.strip",
    "strip_folder": "surgeon.proof.stripping",
    "verify_clean": "surgeon.proof.verification.verify",
}

__all__ = [
    "Certificate",
    "CompareSettings",
    "DiagnosisSettings",
    "FinetuneSettings",
    "MeasureSettings",
    "OpenOptions",
    "Plan",
    "PushOptions",
    "RelaxSettings",
    "Relaxation",
    "Site",
    "StripSettings",
    "Task",
    "TrainingSession",
    "certify",
    "compare",
    "diagnose",
    "find",
    "find_breaks",
    "finetune",
    "from_hub",
    "from_pretrained",
    "inspect",
    "measure",
    "open_path",
    "pull",
    "push_to_hub",
    "relax",
    "relax_checkpoint",
    "save_pretrained",
    "select",
    "strip",
    "strip_folder",
    "verify_clean",
]


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import surgeon`` costs no more than torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'surgeon' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)
