"""Pictures of models and results."""

from surgeon.report.picture import model_picture

__all__ = ["model_picture"]
