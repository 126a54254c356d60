"""Fine-tuning with theta going up and down, and fair comparisons of its variants."""

from surgeon.training.arms import ARMS, Arm, arm_named
from surgeon.training.compare import Comparison, compare
from surgeon.training.costs import Costs, training_costs
from surgeon.training.engine import Finetuner, FinetuneResult, StepEvent, finetune
from surgeon.training.outcomes import ArmRun
from surgeon.training.runs import has_run, read_record, restore_run, save_run
from surgeon.training.settings import PRESETS, FinetuneSettings
from surgeon.training.statistics import summarise_runs
from surgeon.training.sweep import sweep

__all__ = [
    "ARMS",
    "PRESETS",
    "Arm",
    "ArmRun",
    "Comparison",
    "Costs",
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
    "training_costs",
]
