"""Formats that leave surgeon beside safetensors: ONNX, checked before it is written."""

from __future__ import annotations

from surgeon.export.checks import OnnxReport, check_onnx
from surgeon.export.onnx_file import ONNX_FILE, export_onnx, onnx_extra
from surgeon.export.outputs import Selection
from surgeon.export.sample import Sample, sample_of
from surgeon.export.signature import compare_signatures, signature, signature_hash

__all__ = [
    "ONNX_FILE",
    "OnnxReport",
    "Sample",
    "Selection",
    "check_onnx",
    "compare_signatures",
    "export_onnx",
    "onnx_extra",
    "sample_of",
    "signature",
    "signature_hash",
]
