"""Approximately equivariant convolutions of Wang, Walters and Yu (ICML 2022), and their adapter; torch only."""

from surgeon_adapters.relaxed_conv.rotation import RelaxedRotationConv2d, RelaxedRotationNet
from surgeon_adapters.relaxed_conv.scale import RelaxedScaleConv2d, RelaxedScaleNet

__all__ = ["RelaxedRotationConv2d", "RelaxedRotationNet", "RelaxedScaleConv2d", "RelaxedScaleNet"]
