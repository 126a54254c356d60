"""Adapter for relaxed convolutions: branches beside layers whose own filters break the symmetry a little already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from surgeon.algebra.groups.core import Group
from surgeon.algebra.matrix_blocks import MatrixBlock
from surgeon.algebra.representations.build import axes, matrices, regular, trivial
from surgeon.algebra.representations.core import Representation
from surgeon.plan import Convolution
from surgeon.registry import Adapter, Proposal, Refusal
from surgeon_adapters.zoo.relaxed_convolutions.rotation import ORDERS, Fields, RelaxedRotationConv2d, rotation_net
from surgeon_adapters.zoo.relaxed_convolutions.scale import FACTOR, RelaxedScaleConv2d, scale_net

CHANNEL = (-3,)
FRAME = ((0, 1), (1, 0))
"""Rows of an image run along y, columns along x."""

SCALE_GROUP = f"SCALE{FACTOR}"


class RelaxedConvAdapter(Adapter):
    """Annotations of relaxed rotation and relaxed scale convolutions."""

    name = "relaxed-conv"
    groups = (*(f"C{order}" for order in ORDERS), SCALE_GROUP)

    def propose(self, module: nn.Module, group: Group) -> Proposal | Refusal | None:
        """Read the representations off the kinds of fields; None for a module of another family."""
        if not isinstance(module, RelaxedRotationConv2d | RelaxedScaleConv2d):
            return None
        own = f"C{module.order}" if isinstance(module, RelaxedRotationConv2d) else SCALE_GROUP
        if group.name != own:
            return Refusal(f"its filters are relaxed over {own}, not over {group.name}", "unexplained")
        if not module.weights.requires_grad:
            return Refusal("its weights are frozen", "frozen")
        if isinstance(module, RelaxedRotationConv2d):
            rho_in = _fields(group, module.fields_in, module.channels_in)
            rho_out = _fields(group, module.fields_out, module.channels_out)
            return _proposal(module, rho_in, rho_out, module.kernel_size)
        if module.fields_out == "plane":
            return Refusal("it sums over scales, whose range is cut off", "not equivariant")
        rho_in, rho_out = (
            velocities(group, count, module.components(fields))
            for fields, count in ((module.fields_in, module.channels_in), (module.fields_out, module.channels_out))
        )
        return _proposal(module, rho_in, rho_out, module.support)

    def blocks(self, module: nn.Module) -> Mapping[str, Sequence[MatrixBlock] | str] | None:
        """Return one matrix for each filter bank: fields out x (fields in, points of the kernel)."""
        if not isinstance(module, RelaxedRotationConv2d | RelaxedScaleConv2d):
            return None
        out, columns = module.weights.shape[1], module.weights[0, 0].numel()
        return {"weights": [MatrixBlock.run(n * out * columns, out, columns) for n in range(len(module.weights))]}

    def rebuild(self, tensors: Mapping[str, Tensor]) -> nn.Module | None:
        """Build the network whose keys and shapes these are."""
        return rotation_net(tensors) or scale_net(tensors)


def _proposal(
    module: RelaxedRotationConv2d | RelaxedScaleConv2d, rho_in: Representation, rho_out: Representation, size: int
) -> Proposal:
    padding = size // 2
    convolution = Convolution((size, size), (1, 1), (padding, padding), (1, 1), "zeros", FRAME) if padding else None
    return Proposal(
        "x",
        "convolution" if padding else "linear",
        rho_in,
        rho_out,
        axes_in=CHANNEL,
        axes_out=CHANNEL,
        convolution=convolution,
        symmetrised=module.symmetrised(),
    )


def _fields(group: Group, fields: Fields, count: int) -> Representation:
    match fields:
        case "regular":
            return regular(group, count)
        case "vector":
            return axes(group, "c v", {"c": count})
        case "trivial":
            return trivial(group, count)


def velocities(group: Group, count: int, scales: int) -> Representation:
    """Lengths per step: shrunk with the image, each scale takes the place of the one below it."""
    if scales == 1:
        image = [[1 / FACTOR]]
    else:
        image = [[1 / FACTOR if column == row + 1 else 0.0 for column in range(scales)] for row in range(scales)]
    return matrices(group, {"algebra": [], "elements": [image]}, count)


adapter = RelaxedConvAdapter()
