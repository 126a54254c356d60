"""Choose sites by what they cost, and the form of their branches."""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_right
from collections.abc import Sequence

from surgeon.editing.select import without
from surgeon.errors import PlanError
from surgeon.finding.forms import block_mask
from surgeon.plan import Plan, Site


def within_budget(plan: Plan, parameters: int) -> Plan:
    """Keep the smallest branches, as many as have at most so many trained parameters together.

    Raises:
        PlanError: if not even one site fits.
    """
    kept, left = set(), parameters
    for site in sorted(plan.sites, key=lambda site: site.extra_parameters):
        if site.extra_parameters <= left:
            kept.add(site.key)
            left -= site.extra_parameters
    if not kept:
        smallest = min(plan.sites, key=lambda site: site.extra_parameters)
        raise PlanError(
            f"expected a budget for at least one branch, got {parameters:,} parameters, and the smallest branch, at "
            f"{smallest.key!r}, has {smallest.extra_parameters:,}: give more, or give the branches a rank"
        )
    return _keep(plan, kept, f"over the budget of {parameters:,} extra parameters")


def _keep(plan: Plan, keys: set[str], reason: str) -> Plan:
    return without(plan, {site.key: reason for site in plan.sites if site.key not in keys})


def with_rank(plan: Plan, rank: int) -> Plan:
    """Give every branch ``W = B A`` of this rank, where that has fewer parameters than a dense W.

    Sites for which the plan says a rank or blocks already keep them.
    """
    if rank < 1:
        raise PlanError(f"expected a rank of at least 1, got {rank}: correct it")
    return dataclasses.replace(plan, sites=tuple(_of_rank(site, rank) for site in plan.sites))


def _of_rank(site: Site, rank: int) -> Site:
    low = dataclasses.replace(site, rank=rank)
    wanted = site.rank is None and site.blocks is None and low.extra_parameters < site.extra_parameters
    return low if wanted else site


def with_fitting_rank(plan: Plan, parameters: int) -> Plan:
    """Give all branches the same rank, the highest with which they have at most so many parameters together.

    A W that has no more entries than its factors would have is dense. The rank is at least 1: where not even that fits,
    a note of the plan says so. Sites for which the plan says a rank or blocks already keep them.
    """

    def cost(rank: int) -> int:
        return sum(site.extra_parameters for site in with_rank(plan, rank).sites)

    highest = max((math.prod(site.shape) for site in plan.sites), default=1)
    fitting = with_rank(plan, max(1, bisect_right(range(1, highest + 1), parameters, key=cost)))
    if cost(1) <= parameters:
        return fitting
    note = f"branches of rank 1 at every site have {cost(1):,} parameters, more than the budget of {parameters:,}"
    return dataclasses.replace(fitting, notes=(*fitting.notes, note))


def with_blocks(plan: Plan, blocks: Sequence[tuple[int, int]]) -> Plan:
    """Restrict every W to the blocks (l_in, l_out) that it has among these; sites with none of them are left out.

    Raises:
        PlanError: if no site remains, or a site's representations have no degrees.
    """
    reason = f"has none of the blocks {', '.join(f'{l_in}>{l_out}' for l_in, l_out in blocks)}"
    own = {site.key: tuple(block for block in blocks if _has_block(site, block)) for site in plan.sites}
    kept = _keep(plan, {key for key, found in own.items() if found}, reason)
    if not kept.sites:
        raise PlanError(f"expected a site with one of the chosen blocks, but each {reason}: choose others")
    sites = tuple(dataclasses.replace(site, blocks=own[site.key]) for site in kept.sites)
    return dataclasses.replace(kept, sites=sites)


def _has_block(site: Site, block: tuple[int, int]) -> bool:
    whole = dataclasses.replace(site, blocks=())
    block_mask(whole)  # refuses what has no degrees
    try:
        block_mask(dataclasses.replace(site, blocks=(block,)))
    except PlanError:
        return False
    return True
