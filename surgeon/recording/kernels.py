"""The convolutions that a run recorded inside an op, with their kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from surgeon.recording.candidates import Candidate
from surgeon.recording.record import Recording


@dataclass(frozen=True)
class Kernel:
    """A recorded convolution.

    Attributes:
        weight: the kernel that it used, (d_out, d_in / groups, *kernel).
        shape_in: shape of its input.
        settings: stride, padding and dilation; mode and frame are found by measurement.
        transposed: True for a transposed convolution.
    """

    weight: Tensor
    shape_in: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool

    @property
    def size(self) -> tuple[int, ...]:
        """Points of the kernel along each axis."""
        return tuple(self.weight.shape[2:])

    def dense(self) -> Tensor:
        """Return the kernel with explicit zeros between groups: (d_out, d_in, *kernel), float64."""
        weight = self.weight.detach().double()
        if self.groups == 1:
            return weight
        out, into = weight.shape[0] // self.groups, weight.shape[1]
        full = weight.new_zeros(weight.shape[0], into * self.groups, *weight.shape[2:])
        for index in range(self.groups):
            rows, columns = slice(index * out, (index + 1) * out), slice(index * into, (index + 1) * into)
            full[rows, columns] = weight[rows]
        return full


def kernels_of(candidate: Candidate | None, recording: Recording) -> list[Kernel]:
    """Return the convolutions among a candidate's ops, those of its first call."""
    nodes = [
        node
        for node in (candidate.nodes if candidate is not None else ())
        if node.target is torch.ops.aten.convolution.default
    ]
    return [kernel_of(node, recording) for node in nodes if node.meta["call_index"] == nodes[0].meta["call_index"]]


def kernel_of(node: fx.Node, recording: Recording) -> Kernel:
    """Return the kernel and the settings of a recorded ``aten.convolution``."""
    x, weight, _, stride, padding, dilation, transposed, _, groups = node.args
    assert isinstance(x, fx.Node)
    assert isinstance(weight, fx.Node)
    return Kernel(
        recording.values[weight],
        tuple(x.meta["shape"]),
        _ints(stride),
        _ints(padding),
        _ints(dilation),
        int(str(groups)),
        bool(transposed),
    )


def _ints(values: object) -> tuple[int, ...]:
    assert isinstance(values, list | tuple)
    return tuple(int(value) for value in values)
