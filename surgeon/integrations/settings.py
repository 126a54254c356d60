"""What a user says once about a relaxed training, whatever trainer runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import nn

from surgeon.editing.select import select
from surgeon.errors import PlanError, SurgeonError, UsageError
from surgeon.finding.find import find
from surgeon.opening.planning import read_plan, require_group
from surgeon.plan import Plan, StripMode
from surgeon.support.imports import close_names, one_line
from surgeon.training.arms import ARMS
from surgeon.training.settings import SessionSettings


@dataclass(frozen=True)
class RelaxationSettings(SessionSettings):
    """How a network is relaxed while some trainer trains it; by keyword also what :class:`SessionSettings` has.

    Attributes:
        group: the symmetry ("O3"); needed unless there is a plan.
        plan: what to insert, or the JSON file that ``surgeon inspect --plan`` wrote; None finds it on the first
            training batch.
        module: dotted path of the network inside the module that the trainer gets, "" for that module itself; None
            takes the only child with parameters.
        dense: every W is dense, however many parameters that adds; see :func:`surgeon.relax`.
        mode: "drop" is the paper's method; "fold" keeps the equivariant part of W.
        include: shell patterns on site names; others get no branch.
        exclude: shell patterns of sites that get no branch.

    Raises:
        UsageError: if there is neither a group nor a plan, or a value is unusable.
    """

    group: str | None = None
    plan: Plan | str | Path | None = None
    module: str | None = None
    dense: bool = False
    mode: StripMode = "drop"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.group is None and self.plan is None:
            raise UsageError("expected group= (such as 'O3') or plan= to relax by, got neither: give one")
        super().__post_init__()
        self._require_choice(mode=get_args(StripMode))
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


def plan_of_step(network: nn.Module, settings: RelaxationSettings, step: Callable[[], Any]) -> tuple[Plan, Call | None]:
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
