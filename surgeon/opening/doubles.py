"""Float64 twins of models, the yardstick of their rounding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from surgeon.editing.insert import relax
from surgeon.editing.relaxation import Relaxation
from surgeon.errors import PrecisionError, SurgeonError
from surgeon.files.loading import load_branches, load_into
from surgeon.files.relaxed import split_state
from surgeon.opening.models import FoundModel
from surgeon.support.copies import copied
from surgeon.support.modes import default_dtype


def double_twin(model: nn.Module, found: FoundModel, relaxation: Relaxation | None, where: str) -> nn.Module:
    """Return a float64 twin of a model whose constants are float64 as well.

    The architecture is built anew under the default dtype float64, because constants that a float32 model computed
    at construction keep their rounding when it is cast.

    Args:
        model: with or without branches.
        found: what builds its architecture.
        relaxation: the handle on its branches, if it has any.
        where: what a message calls the source of its weights.

    Raises:
        PrecisionError: if the architecture cannot be built in float64.
    """
    base, branches = split_state(model.state_dict())
    casted = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in base.items()}
    with default_dtype(torch.float64):
        twin = _built_in_double(found, casted, where)
        if branches:
            assert relaxation is not None
            relaxed = relax(twin, relaxation.plan, mode=relaxation.mode)
            load_branches(twin, {key: branches[key] for key, _ in model.named_parameters() if key in branches})
            relaxed.set_thetas(relaxation.thetas)
            for key, branch in relaxed.branches.items():
                branch.clean = relaxation.branches[key].clean
    return twin.train(model.training)


def _built_in_double(found: FoundModel, casted: Mapping[str, Tensor], where: str) -> nn.Module:
    """Build the architecture under the default dtype; that of a library which insists on float32 is cast instead.

    Such a library may share constants between models (escnn does): the cast one is a copy.
    """
    try:
        return found.rebuild(casted)
    except SurgeonError:
        with default_dtype(torch.float32):
            twin = copied(found.rebuild())
        try:
            load_into(twin, casted, where)
        except SurgeonError as error:
            raise PrecisionError(f"the network cannot be built in float64: {error}") from error
        return twin
