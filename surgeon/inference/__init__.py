"""Measure how the tensors inside a model transform, from runs on transformed inputs; no annotation is needed."""

from surgeon.inference.hypotheses import Verdict, infer_type
from surgeon.inference.probe import Probe, TensorProbe, make_probe
from surgeon.inference.symmetry import Symmetry

__all__ = ["Probe", "Symmetry", "TensorProbe", "Verdict", "infer_type", "make_probe"]
