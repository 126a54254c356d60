"""Measure how the tensors inside a model transform, from runs on transformed inputs; no annotation is needed."""

from surgeon.finding.inference.breaks import Break, Breaks, find_breaks
from surgeon.finding.inference.hypotheses import Verdict, infer_type
from surgeon.finding.inference.probe import Probe, TensorProbe, make_probe
from surgeon.finding.inference.symmetry import Symmetry

__all__ = [
    "Break",
    "Breaks",
    "Probe",
    "Symmetry",
    "TensorProbe",
    "Verdict",
    "find_breaks",
    "infer_type",
    "make_probe",
]
