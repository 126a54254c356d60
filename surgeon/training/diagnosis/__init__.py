"""Will relaxation change anything? The curvature of the loss in the directions that break the symmetry.

docs/method.md, "Will relaxation change anything?", says what is computed and why.
"""

from surgeon.training.diagnosis.result import Curvature, Diagnosis, DiagnosisSettings, Estimate, Slope, Step, Verdict
from surgeon.training.diagnosis.work import diagnose

__all__ = ["Curvature", "Diagnosis", "DiagnosisSettings", "Estimate", "Slope", "Step", "Verdict", "diagnose"]
