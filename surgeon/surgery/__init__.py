"""Find sites, insert branches, train through the handle, strip them again."""

from surgeon.surgery.find import find
from surgeon.surgery.insert import relax
from surgeon.surgery.relaxation import PenaltyForm, Relaxation
from surgeon.surgery.select import select
from surgeon.surgery.strip import strip

__all__ = ["PenaltyForm", "Relaxation", "find", "relax", "select", "strip"]
