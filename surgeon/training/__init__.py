"""Fine-tuning with theta going up and down, and fair comparisons of its variants."""

from surgeon.training.arms import ARMS, Arm, arm_named
from surgeon.training.compare import ArmRun, Comparison, compare, summarise_runs, sweep
from surgeon.training.engine import Finetuner, FinetuneResult, StepEvent, finetune
from surgeon.training.runs import has_run, read_record, restore_run, save_run
from surgeon.training.settings import PRESETS, FinetuneSettings

__all__ = [
    "ARMS",
    "PRESETS",
    "Arm",
    "ArmRun",
    "Comparison",
    "FinetuneResult",
    "FinetuneSettings",
    "Finetuner",
    "StepEvent",
    "arm_named",
    "compare",
    "finetune",
    "has_run",
    "read_record",
    "restore_run",
    "save_run",
    "summarise_runs",
    "sweep",
]
