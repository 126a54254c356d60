"""Modules of a network by their names."""

from __future__ import annotations

from torch import nn

from surgeon.errors import PlanError


def named_module(model: nn.Module, name: str) -> nn.Module:
    """Return the submodule with this qualified name; the empty string is the model itself.

    Raises:
        PlanError: if the model has no such submodule.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise PlanError(
            f"expected a submodule {name!r} in {type(model).__name__}, but there is none: "
            "the plan was made for another model, make a new one with `surgeon inspect`"
        ) from error
