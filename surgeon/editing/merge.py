"""One product instead of two, while a dense linear layer is trained with its branch.

A bias-free ``nn.Linear`` W_e on the last of the flattened axes is ``1 x W_e`` on all of them, so that
``f_e(x) + theta W x = (1 x W_e + theta W) x``: the layer's own product, and those of its backward, are saved.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from surgeon.editing.branch import Branch, branched_ops
from surgeon.editing.relaxation import Relaxation
from surgeon.finding.forms import LinearForm


class _MergedForward:
    """The forward of a layer in training mode: an attribute of the module that hides its class's forward."""

    def __init__(self, layer: nn.Linear, branch: Branch) -> None:
        self._layer, self._branch = layer, branch

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002 (the name of nn.Linear's argument)
        layer, branch = self._layer, self._branch
        if not layer.training or branch.clean:
            return nn.Linear.forward(layer, input)
        assert isinstance(branch.form, LinearForm)
        branch.see(input)
        sizes_in, sizes_out = ([layer.in_features], [layer.out_features])
        outer = [input.shape[axis] for axis in branch.form.axes_in[:-1]]
        weight = branch.effective_weight()
        blocks = weight.view(math.prod(outer), *sizes_out, math.prod(outer), *sizes_in)
        blocks.diagonal(dim1=0, dim2=2).add_(layer.weight.unsqueeze(-1))
        return branch.form.product(weight, input, [*outer, *sizes_out])


def merge(relaxation: Relaxation) -> None:
    """Let every layer that allows it compute itself and its branch by one product in training mode, in place.

    The function stays the same up to rounding; evaluation is not touched. :func:`unmerge` undoes it.
    """
    for _, op, child in branched_ops(relaxation.model):
        (_, branch), *others = child.items()
        if not others and type(op) is nn.Linear and op.bias is None and op.weight.is_floating_point() and _fits(branch):
            op.__dict__["forward"] = _MergedForward(op, branch)
            branch.merged = True


def _fits(branch: Branch) -> bool:
    form = branch.form
    if type(branch) is not Branch or not isinstance(form, LinearForm):
        return False
    return form.axes_in == form.axes_out and form.axes_in[-1] == -1 and len(form.axes_in) > 1


def unmerge(relaxation: Relaxation) -> None:
    """Undo :func:`merge`, in place."""
    for op in relaxation.model.modules():
        if isinstance(vars(op).get("forward"), _MergedForward):
            del op.__dict__["forward"]
    for branch in relaxation.branches.values():
        branch.merged = False
