"""What a user says once about a relaxed training, whatever trainer runs it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from surgeon.algebra.penalty import PenaltyForm
from surgeon.algebra.schedule import Schedule
from surgeon.editing.select import select
from surgeon.errors import PlanError, SurgeonError, UsageError
from surgeon.finding.find import find
from surgeon.opening.planning import read_plan, require_group
from surgeon.plan import Plan, StripMode
from surgeon.support.imports import close_names, one_line
from surgeon.training.arms import ARMS
from surgeon.training.session import RECALIBRATION_BATCHES
from surgeon.training.weighting import PenaltyScale


@dataclass(frozen=True)
class RelaxationSettings:
    """How a network is relaxed while some trainer trains it.

    Attributes:
        group: the symmetry ("O3"); needed unless there is a plan.
        plan: what to insert, or the JSON file that ``surgeon inspect --plan`` wrote; None finds it on the first
            training batch.
        module: dotted path of the network inside the module that the trainer gets, "" for that module itself; None
            takes the only child with parameters.
        mode: "drop" is the paper's method; "fold" keeps the equivariant part of W.
        include: shell patterns on site names; others get no branch.
        exclude: shell patterns of sites that get no branch.
        schedule: theta(t); None for a triangle with a tail at 0.
        penalty_weight: lambda of eq. 5; None for 0.01 with "drop" and 0 with "fold".
        penalty_scale: "relative" multiplies lambda by a running mean of the task loss, "absolute" is the paper's.
        penalty_form: see :func:`surgeon.relax`.
        branch_factor: learning rate of W as a multiple of that of the weights beside it.
        recalibrate: training batches, at most, from which the statistics of BatchNorm-like layers are taken anew for
            clean evaluation; 0 leaves them as the relaxed network has gathered them.

    Raises:
        UsageError: if there is neither a group nor a plan, or a value is unusable.
    """

    group: str | None = None
    plan: Plan | str | Path | None = None
    module: str | None = None
    mode: StripMode = "drop"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    schedule: Schedule | None = None
    penalty_weight: float | None = None
    penalty_scale: PenaltyScale = "relative"
    penalty_form: PenaltyForm = "gram"
    branch_factor: float = 0.1
    recalibrate: int = RECALIBRATION_BATCHES

    def __post_init__(self) -> None:
        if self.group is None and self.plan is None:
            raise UsageError("expected group= (such as 'O3') or plan= to relax by, got neither: give one")
        for name, choices in (("mode", StripMode), ("penalty_scale", PenaltyScale), ("penalty_form", PenaltyForm)):
            if getattr(self, name) not in get_args(choices):
                raise UsageError(f"expected {name} among {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if not (self.penalty >= 0 and math.isfinite(self.penalty)):
            raise UsageError(f"expected a finite penalty_weight of at least 0, got {self.penalty_weight}")
        if not (self.branch_factor > 0 and math.isfinite(self.branch_factor)):
            raise UsageError(f"expected a positive finite branch_factor, got {self.branch_factor}")
        if self.recalibrate < 0:
            raise UsageError(f"expected recalibrate to be at least 0 batches, got {self.recalibrate}")
        for name in ("include", "exclude"):
            patterns = getattr(self, name)
            if isinstance(patterns, str):
                raise UsageError(f"expected {name} to be a list of patterns, got one string: write [{patterns!r}]")

    @property
    def penalty(self) -> float:
        """Lambda, with its default."""
        return ARMS[self.mode].penalty_weight if self.penalty_weight is None else self.penalty_weight


def base_class(module: str, name: str) -> Any:
    """Return a class of an optional library to inherit from; ``object`` if the library is not installed."""
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module.split(".")[0]:
            raise
        return object


def require_library(base: Any, extra: str) -> None:
    """Refuse to make an instance of a class whose base is missing.

    Raises:
        UsageError: if :func:`base_class` found nothing.
    """
    if base is object:
        raise UsageError(f"expected {extra} to be installed, but it is not: pip install 'equisurgeon[{extra}]'")


def network_of(owner: nn.Module, path: str | None) -> tuple[str, nn.Module]:
    """Return the path and the network to relax inside the module that a trainer gets.

    Raises:
        UsageError: if there is no such module, or none was named and several could be meant.
    """
    name = type(owner).__name__
    if path is None:
        children = [key for key, child in owner.named_children() if next(child.parameters(), None) is not None]
        if len(children) != 1:
            found = ", ".join(repr(child) for child in children) or "none"
            raise UsageError(
                f"expected one child of {name} with parameters, got {found}: name the network with module="
            )
        path = children[0]
    names = dict(owner.named_modules())
    if path not in names:
        near = close_names(path, [key for key in names if key])
        raise UsageError(f"expected a submodule {path!r} of {name}, but there is none; the nearest are {near}")
    return path, names[path]


class _Reached(BaseException):
    """The network was called; not an Exception, so that a training step that catches those cannot swallow it."""


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a call."""


def first_call(network: nn.Module, step: Callable[[], Any]) -> Call:
    """Run ``step`` up to the first call of ``network`` and return its arguments; the call itself does not happen.

    Raises:
        UsageError: if the step fails before it calls the network, or never does.
    """
    found: list[Call] = []

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Reached

    name = type(network).__name__
    handle = network.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        step()
    except _Reached:
        return found[0]
    except SurgeonError:
        raise
    except Exception as error:
        raise UsageError(
            f"expected the training step to call {name} with the first batch, but it failed with {one_line(error)}: "
            "give plan= instead"
        ) from error
    finally:
        handle.remove()
    raise UsageError(
        f"expected the training step to call {name}, but it never did: name the network that it calls with module=, "
        "or give plan="
    )


def plan_for(network: nn.Module, settings: RelaxationSettings, step: Callable[[], Any]) -> tuple[Plan, Call | None]:
    """Return the plan that was given, or find one on what a training step calls the network with; return that, too.

    Raises:
        PlanError: if nothing can be relaxed, or the plan is for another group.
        TrustError: if the group in the plan's file is code that the user does not name.
        UsageError: if the plan's file cannot be read, or the training step does not call the network.
    """
    plan, call = settings.plan, None
    if plan is None:
        assert settings.group is not None
        call = first_call(network, step)
        plan = _found_plan(network, settings.group, *call)
    elif isinstance(plan, Plan):
        require_group(plan, settings.group, "the plan")
    else:
        plan = read_plan(plan, settings.group, "group={!r}")
    return select(plan, tuple(settings.include), tuple(settings.exclude)), call


def _found_plan(network: nn.Module, group: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Plan:
    names = tuple(kwargs)

    def forward(model: nn.Module, *values: Any) -> Any:
        return model(*values[: len(args)], **dict(zip(names, values[len(args) :], strict=True)))

    try:
        return find(network, group, *args, *kwargs.values(), forward=forward)
    except SurgeonError:
        raise
    except Exception as error:
        raise PlanError(
            f"expected {type(network).__name__} to run while it is recorded, but it failed with {one_line(error)}: "
            "do not compile it, or give plan="
        ) from error
