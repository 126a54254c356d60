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
    from surgeon import integrations as integrations
    from surgeon import optim as optim
    from surgeon import testing as testing
    from surgeon.editing.insert import relax as relax
    from surgeon.editing.relaxation import Relaxation as Relaxation
    from surgeon.editing.select import select as select
    from surgeon.editing.strip import strip as strip
    from surgeon.finding.find import find as find
    from surgeon.hub.loading import (
        from_hub as from_hub,
    )
    from surgeon.hub.loading import (
        from_pretrained as from_pretrained,
    )
    from surgeon.hub.loading import (
        save_pretrained as save_pretrained,
    )
    from surgeon.hub.pulling import pull as pull
    from surgeon.hub.pushing import PushOptions as PushOptions
    from surgeon.hub.pushing import push_to_hub as push_to_hub
    from surgeon.opening.open import open_path as open_path
    from surgeon.opening.options import OpenOptions as OpenOptions
    from surgeon.opening.relaxing import RelaxSettings as RelaxSettings
    from surgeon.opening.relaxing import relax_checkpoint as relax_checkpoint
    from surgeon.plan import Certificate as Certificate
    from surgeon.plan import Plan as Plan
    from surgeon.plan import Site as Site
    from surgeon.plan import Task as Task
    from surgeon.proof.amounts import MeasureSettings as MeasureSettings
    from surgeon.proof.certify import certify as certify
    from surgeon.proof.first_task import init_task as init_task
    from surgeon.proof.inspection import inspect as inspect
    from surgeon.proof.inspection import inspect_breaks as inspect_breaks
    from surgeon.proof.inspection import measure as measure
    from surgeon.proof.strip_folder import StripSettings as StripSettings
    from surgeon.proof.strip_folder import strip_folder as strip_folder
    from surgeon.proof.verify import verify_clean as verify_clean
    from surgeon.report.watch import watch_report as watch_report
    from surgeon.report.write import write_report as write_report
    from surgeon.training.auto import finetune_auto as finetune_auto
    from surgeon.training.compare import CompareSettings as CompareSettings
    from surgeon.training.compare import compare as compare
    from surgeon.training.finetune import finetune as finetune
    from surgeon.training.search import AutoSettings as AutoSettings
    from surgeon.training.session import TrainingSession as TrainingSession
    from surgeon.training.settings import FinetuneSettings as FinetuneSettings

__version__ = "0.1.0"

_PUBLIC = {
    "surgeon.editing.insert": ("relax",),
    "surgeon.editing.relaxation": ("Relaxation",),
    "surgeon.editing.select": ("select",),
    "surgeon.editing.strip": ("strip",),
    "surgeon.finding.find": ("find",),
    "surgeon.hub.loading": ("from_hub", "from_pretrained", "save_pretrained"),
    "surgeon.hub.pulling": ("pull",),
    "surgeon.hub.pushing": ("PushOptions", "push_to_hub"),
    "surgeon.opening.open": ("open_path",),
    "surgeon.opening.options": ("OpenOptions",),
    "surgeon.opening.relaxing": ("RelaxSettings", "relax_checkpoint"),
    "surgeon.plan": ("Certificate", "Plan", "Site", "Task"),
    "surgeon.proof.certify": ("certify",),
    "surgeon.proof.first_task": ("init_task",),
    "surgeon.proof.inspection": ("inspect_breaks", "inspect", "measure"),
    "surgeon.proof.strip_folder": ("StripSettings", "strip_folder"),
    "surgeon.proof.amounts": ("MeasureSettings",),
    "surgeon.proof.verify": ("verify_clean",),
    "surgeon.report.watch": ("watch_report",),
    "surgeon.report.write": ("write_report",),
    "surgeon.training.auto": ("finetune_auto",),
    "surgeon.training.compare": ("CompareSettings", "compare"),
    "surgeon.training.finetune": ("finetune",),
    "surgeon.training.search": ("AutoSettings",),
    "surgeon.training.session": ("TrainingSession",),
    "surgeon.training.settings": ("FinetuneSettings",),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}
_ROOMS = ("integrations", "optim", "testing")

__all__ = sorted([*_HOMES, *_ROOMS])


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``import surgeon`` costs no more than torch."""
    if name in _ROOMS:
        return importlib.import_module(f"surgeon.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'surgeon' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names, for tab completion, whether they have been imported or not."""
    return [*__all__, "__version__"]
