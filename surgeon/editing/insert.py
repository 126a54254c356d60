"""Insert branches: everything is validated first, and on any failure the model is as it was."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from surgeon.algebra.folding import FoldMap
from surgeon.algebra.groups.core import Group
from surgeon.algebra.penalty_settings import PenaltyForm, PenaltySettings
from surgeon.algebra.schedule import Schedule, schedule_of
from surgeon.editing.branch import (
    Branch,
    Branches,
    FindFoldMap,
    LowRankBranch,
    Target,
    argument_position,
    branches_child,
    branches_of,
)
from surgeon.editing.budget import with_fitting_rank
from surgeon.editing.relaxation import Relaxation, theta_shares
from surgeon.editing.rewrite import check_places, install, uninstall
from surgeon.errors import PlanError, SurgeryError, UsageError
from surgeon.finding.fold import fold_map_at
from surgeon.finding.forms import block_mask, form_of
from surgeon.finding.weight_usage import Ties
from surgeon.plan import CHILD, Plan, Site, StripMode
from surgeon.registry import Adapter, Proposal, adapter_named, installed_adapters, proposal_for
from surgeon.support.modules import named_module, require_network
from surgeon.support.trees import plain_place


def relax(
    model: nn.Module,
    plan: Plan,
    *,
    dense: bool = False,
    mode: StripMode = "drop",
    schedule: Schedule | str | None = None,
    penalty_form: PenaltyForm = "gram",
    penalty_rows: int | None = PenaltySettings.rows,
    penalty_every: int = PenaltySettings.every,
    init_scale: float = 0.0,
    seed: int = 0,
    adapters: Mapping[str, Adapter] | None = None,
) -> Relaxation:
    """Insert one branch per site of ``plan``, in place, with theta = 0: the function does not change.

    Args:
        model: the network for which the plan was made.
        plan: sites, from :func:`surgeon.find`.
        dense: make every W dense, as the paper does, where the plan says no rank or blocks; else all of these get one
            rank, the highest with which the branches together have no more parameters than the model.
        mode: "drop" is the paper's method; with "fold" the equivariant part of W is kept (docs/method.md).
        schedule: theta(t), or its name for one with the usual tail and peak; default a triangle that ends in exact 0.
        penalty_form: "gram" (root of the mean square over rows), "rows" (the paper's mean of norms) or "square".
        penalty_rows: rows of each forward that the penalty looks at, spread evenly; None for all.
        penalty_every: steps after which the penalty of a site is computed anew; its gradient is used until then.
        init_scale: standard deviation of W's entries times sqrt(d_in); 0 starts at W = 0.
        seed: seed of the initial W.
        adapters: adapters by name; default all installed ones.

    Returns:
        The handle.

    Raises:
        UsageError: if a setting is none that exists; the model is untouched.
        PlanError: if the plan does not fit the model, or the schedule the plan; the model is untouched.
        SurgeryError: if an insertion fails; all branches are taken out again.
    """
    if mode not in ("drop", "fold"):
        raise UsageError(f"expected mode 'drop' or 'fold', got {mode!r}")
    require_network(model)
    require_plan(plan)
    if not dense:
        plan = with_fitting_rank(plan, sum(parameter.numel() for parameter in model.parameters()))
    schedule, penalty = schedule_of(schedule), PenaltySettings(penalty_form, penalty_rows, penalty_every)
    theta_shares(schedule, plan)
    branches = _prepare(model, plan, mode, installed_adapters() if adapters is None else adapters)
    _initialise(branches, init_scale, seed)
    done: list[nn.Module] = []
    try:
        _insert(model, plan, branches, done)
        return Relaxation(model, plan, mode, schedule, penalty)
    except BaseException as error:
        for op in done:
            detach(op)
        if not isinstance(error, Exception):  # somebody stopped the process
            raise
        raise SurgeryError(
            f"inserting a branch failed ({error}); all branches were taken out again and the model is as it was"
        ) from error


def require_plan(given: object) -> None:
    """Refuse what is no plan, such as the name of a group.

    Raises:
        PlanError: if it is none.
    """
    if not isinstance(given, Plan):
        raise PlanError(f"expected a Plan, got {type(given).__name__}: use surgeon.find, or Plan.from_json of a file")


def _insert(model: nn.Module, plan: Plan, branches: Mapping[str, Branch], done: list[nn.Module]) -> None:
    """Attach all branches; every op is noted in ``done`` before it is touched."""
    for site in plan.sites:
        op = named_module(model, site.name)
        done.append(op)
        if site.node is None:
            attach(op, site, branches[site.key])
    for name, raw in _raw_sites(plan, branches).items():
        install(named_module(model, name), raw)


def _raw_sites(plan: Plan, branches: Mapping[str, Branch]) -> dict[str, dict[str, tuple[str, Branch]]]:
    """Collect the ops inside forwards: per module, the op's place to slot and branch."""
    found: dict[str, dict[str, tuple[str, Branch]]] = {}
    for site in plan.sites:
        if site.node is not None:
            found.setdefault(site.name, {})[site.node] = (site.slot, branches[site.key])
    return found


def _prepare(model: nn.Module, plan: Plan, mode: StripMode, adapters: Mapping[str, Adapter]) -> dict[str, Branch]:
    """Validate every site and build its branch; nothing is attached yet."""
    if not plan.sites:
        raise PlanError("expected a plan with at least one site, got none: there is nothing to relax")
    if branches_of(model):
        raise PlanError("expected a model without branches, but it has some already: strip it first")
    keys = [site.key for site in plan.sites]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise PlanError(f"expected each site once, but the plan lists {twice!r} more than once: remove one")
    first_names = {name for name, _ in model.named_modules()}
    for site in plan.sites:
        if site.name not in first_names and named_module(model, site.name):
            raise PlanError(
                f"expected modules by their first names, but {site.name!r} is another name of a module that is shared: "
                "keep only the first"
            )
    group, ties = plan.group_object, Ties(model)
    branches = {site.key: _branch(ties, site, group, mode, adapters) for site in plan.sites}
    for name, raw in _raw_sites(plan, branches).items():
        check_places(named_module(model, name), {place: slot for place, (slot, _) in raw.items()})
    return branches


def _branch(ties: Ties, site: Site, group: Group, mode: StripMode, adapters: Mapping[str, Adapter]) -> Branch:
    op = named_module(ties.model, site.name)
    if isinstance(op, torch.jit.ScriptModule):
        raise PlanError(
            f"expected an ordinary module at {site.name!r}, got a TorchScript one, which takes no branch: exclude it"
        )
    if site.node is None:
        argument_position(op, site.argument)
    dimensions: tuple[int, ...] = (site.rho_out.dimension, site.rho_in.dimension)
    dimensions += site.convolution.kernel if site.convolution is not None else ()
    if dimensions != site.shape:
        raise PlanError(
            f"expected W at {site.key!r} to have the shape {dimensions} of its representations, "
            f"got {site.shape}: correct the plan"
        )
    real = (parameter.real if parameter.is_complex() else parameter for parameter in op.parameters())
    own = next((parameter for parameter in real if parameter.is_floating_point()), None)
    if own is None:
        raise PlanError(f"expected {site.name!r} to own weights, but it has none: correct the plan")
    fold_map = _fold_map(ties, site, group, mode, adapters)
    if site.rank is None:
        return Branch(site.shape, own, mode, fold_map, form_of(site), block_mask(site))
    smallest = min(site.shape[0], math.prod(site.shape[1:]))
    if site.blocks is not None or not 1 <= site.rank <= smallest:
        raise PlanError(
            f"expected W at {site.key!r} to have either blocks or a rank from 1 to {smallest}, got rank {site.rank}"
            f"{'' if site.blocks is None else ' and blocks'}: correct the plan"
        )
    return LowRankBranch(site.shape, own, mode, fold_map, form_of(site), rank=site.rank)


def fold_map_of(ties: Ties, site: Site, group: Group, adapters: Mapping[str, Adapter]) -> FoldMap | None:
    """Find out once more what the weights of a site's op can take in, and that they are its alone; None without a fold.

    Args:
        ties: of the model that the op is in.

    Raises:
        PlanError: if the op is not what the plan says, or shares the weights with another.
    """
    op, proposal = named_module(ties.model, site.name), _proposed(ties.model, site, group, adapters)
    if site.fold is None:
        return None
    fold_map = fold_map_at(op, site, None if proposal is None else proposal.wrap)
    _require_untied(ties, site, fold_map.parameters)
    return fold_map


def _fold_map(
    ties: Ties, site: Site, group: Group, mode: StripMode, adapters: Mapping[str, Adapter]
) -> FoldMap | FindFoldMap | None:
    """Return the fold map, or what finds it: with "drop" nobody may ever ask, and it takes longer than all the rest.

    The forward around an op that is no module is another one once there is a branch, so that it is looked at now.
    """
    proposal = _proposed(ties.model, site, group, adapters)
    if mode == "fold" or site.fold is None or site.node is not None or (proposal is not None and proposal.wrap):
        return fold_map_of(ties, site, group, adapters)
    _require_untied(ties, site, site.fold.get("parameters") or ())
    return functools.partial(fold_map_at, named_module(ties.model, site.name), site)


def _require_untied(ties: Ties, site: Site, parameters: Iterable[str]) -> None:
    tied = set().union(*(ties.of(site.name, parameter) for parameter in parameters))
    if tied:
        raise PlanError(
            f"expected {site.name!r} to fold into weights of its own, but they are tied to {', '.join(sorted(tied))}, "
            "which folding would change too: set fold to null in the plan, or make a new one with `surgeon inspect`"
        )


def _proposed(model: nn.Module, site: Site, group: Group, adapters: Mapping[str, Adapter]) -> Proposal | None:
    """Ask the adapter that the plan names; a site found by measurement has none."""
    if not site.adapter:
        return None
    proposal = proposal_for(model, site.name, adapter_named(site.adapter, adapters), group)
    if isinstance(proposal, Proposal):
        shape = (proposal.rho_out.dimension, proposal.rho_in.dimension)
        if (proposal.argument, proposal.path_in, shape) == (site.argument, site.path_in, site.shape[:2]):
            return proposal
    raise PlanError(
        f"expected {site.name!r} to be an op that takes W of shape {site.shape} on {site.argument!r}, but "
        f"{type(named_module(model, site.name)).__name__} is not: the plan was made for another model, make a new one "
        "with `surgeon inspect`"
    )


def _initialise(branches: Mapping[str, Branch], scale: float, seed: int) -> None:
    if not (scale >= 0 and math.isfinite(scale)):
        raise UsageError(f"expected a finite scale of the initial W of at least 0, got {scale}")
    generator = torch.Generator().manual_seed(seed)
    for branch in branches.values():
        branch.initialise(scale, generator)


def attach(op: nn.Module, site: Site, branch: Branch) -> None:
    """Attach a branch to an op, in place, by a child module and a forward hook that is its bound method."""
    child = branches_child(op)
    if child is None:
        child = Branches()
        op.add_module(CHILD, child)
    if not any(child.targets.values()):
        op.register_forward_hook(child.add_to_output, with_kwargs=True)
    position = argument_position(op, site.argument)
    child.add(site.slot, branch, Target(position, site.argument, *map(plain_place, (site.path_in, site.path_out))))
    child.train(op.training)


def detach(op: nn.Module) -> None:
    """Take all branches and their hook off an op, in place; works on deep copies and unpickled models too."""
    child = branches_child(op)
    if child is None:
        return
    uninstall(op)
    for number, hook in list(op._forward_hooks.items()):
        if getattr(hook, "__self__", None) is child:
            del op._forward_hooks[number]
            op._forward_hooks_with_kwargs.pop(number, None)
    del op._modules[CHILD]
