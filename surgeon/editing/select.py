"""Choose among the sites of a plan by name patterns."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Mapping, Sequence

from surgeon.errors import PlanError
from surgeon.plan import Plan, Site, Skipped


def _matches(site: Site, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for name in (site.name, site.key))


def matching_sites(sites: Sequence[Site], pattern: str, flag: str) -> list[Site]:
    """Return the sites whose module or key matches a shell pattern.

    Raises:
        PlanError: if there is none; the nearest names are given, and ``flag`` says where the pattern stands.
    """
    found = [site for site in sites if _matches(site, pattern)]
    if not found:
        names = [site.name for site in sites]
        near = difflib.get_close_matches(pattern.strip("*"), names, n=3, cutoff=0.3) or names[:3]
        raise PlanError(
            f"expected {flag} {pattern!r} to match at least one of {len(names)} sites, but it matches none; "
            f"the nearest are {', '.join(repr(name) for name in near)}"
        )
    return found


def select(plan: Plan, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Plan:
    """Keep the sites that match any ``include`` pattern (all if there is none) and no ``exclude`` pattern.

    Args:
        plan: the plan to narrow down.
        include: shell patterns (``layers.*.message*``) on module names or ``module.argument``.
        exclude: the same.

    Returns:
        A plan whose left-out sites are listed among the skipped, with the pattern as reason.

    Raises:
        PlanError: if a pattern matches nothing (the nearest names are given) or no site remains.
    """
    for flag, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns:
            matching_sites(plan.sites, pattern, flag)
    reasons = {}
    for site in plan.sites:
        against = next((pattern for pattern in exclude if _matches(site, pattern)), None)
        if against is not None:
            reasons[site.key] = f"excluded by the pattern {against!r}"
        elif include and not any(_matches(site, pattern) for pattern in include):
            reasons[site.key] = "not among the included patterns"
    if len(reasons) == len(plan.sites):
        raise PlanError(
            f"expected at least one site to remain of {len(plan.sites)}, "
            "but the patterns exclude all of them: loosen --include or --exclude"
        )
    return without(plan, reasons)


def without(plan: Plan, reasons: Mapping[str, str]) -> Plan:
    """Return the plan without some sites, which are listed among the skipped with these reasons, by key."""
    left = tuple(Skipped(site.name, reasons[site.key], "excluded") for site in plan.sites if site.key in reasons)
    kept = tuple(site for site in plan.sites if site.key not in reasons)
    return dataclasses.replace(plan, sites=kept, skipped=plan.skipped + left)
