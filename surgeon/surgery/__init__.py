"""Find sites, insert branches, train through the handle, strip them again."""

from surgeon.surgery.budget import best_scored, with_blocks, with_rank, within_budget
from surgeon.surgery.conditions import check_folds
from surgeon.surgery.find import find
from surgeon.surgery.insert import relax
from surgeon.surgery.lowrank import LowRankUpdates
from surgeon.surgery.merge import merge, unmerge
from surgeon.surgery.relaxation import PenaltySettings, Relaxation
from surgeon.surgery.select import select
from surgeon.surgery.strip import refold, strip
from surgeon.surgery.symmetrised import symmetrised_copy

__all__ = [
    "LowRankUpdates",
    "PenaltySettings",
    "Relaxation",
    "best_scored",
    "check_folds",
    "find",
    "merge",
    "refold",
    "relax",
    "select",
    "strip",
    "symmetrised_copy",
    "unmerge",
    "with_blocks",
    "with_rank",
    "within_budget",
]
