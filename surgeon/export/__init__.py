"""Formats that leave surgeon beside safetensors: ONNX and torch.export archives, checked before they are written."""

from __future__ import annotations

from surgeon.export.checks import Report, check_onnx, check_run
from surgeon.export.onnx_file import ONNX_FILE, export_onnx, onnx_extra
from surgeon.export.outputs import Selection
from surgeon.export.pt2_file import PT2_FILE, export_pt2, pt2_extra
from surgeon.export.sample import Sample, sample_of
from surgeon.export.signature import compare_signatures, signature, signature_hash

__all__ = [
    "ONNX_FILE",
    "PT2_FILE",
    "Report",
    "Sample",
    "Selection",
    "check_onnx",
    "check_run",
    "compare_signatures",
    "export_onnx",
    "export_pt2",
    "onnx_extra",
    "pt2_extra",
    "sample_of",
    "signature",
    "signature_hash",
]
