"""Approximately equivariant convolutions of Wang, Walters and Yu (ICML 2022), and their adapter; torch only."""

from surgeon_adapters.zoo.relaxed_convolutions.rotation import RelaxedRotationConv2d, RelaxedRotationNet
from surgeon_adapters.zoo.relaxed_convolutions.scale import RelaxedScaleConv2d, RelaxedScaleNet

__all__ = ["RelaxedRotationConv2d", "RelaxedRotationNet", "RelaxedScaleConv2d", "RelaxedScaleNet"]
