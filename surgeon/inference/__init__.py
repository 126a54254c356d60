"""Measure how the tensors inside a model transform, from runs on transformed inputs; no annotation is needed."""

from surgeon.inference.breaks import Break, Breaks, find_breaks
from surgeon.inference.hypotheses import Verdict, infer_type
from surgeon.inference.probe import Probe, TensorProbe, make_probe
from surgeon.inference.symmetry import Symmetry

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
