"""What the commands show of a plan: the sites, and what becomes of every other parameter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import get_args

from rich.table import Table
from torch import nn

from surgeon.errors import NotASymmetryError, NothingToRelaxError
from surgeon.finding.audit import acting
from surgeon.optim.blocks import WeightBlocks, blocks_in_words
from surgeon.plan import CHILD, EXACT_WHILE, AuditEntry, Coverage, Plan, Site
from surgeon.recording.labels import arrow
from surgeon_cli.alike import alike, ranged
from surgeon_cli.screen import print_json, say, show

MOST_NAMES = 4


def plan_table(plan: Plan, model: nn.Module) -> Table:
    """Return the sites of a plan as a table that fits 80 columns; sites that differ by one number alone share a row.

    The op's share is that of the model's parameters; where the representations come from and the largest residual on
    the ops' inputs stand below them; "branch" has the entries of W or of its factors, and whether W folds.
    """
    table = Table(title=f"{len(plan.sites)} relaxable ops under {plan.group}", title_justify="left", show_lines=True)
    several = Counter(site.name for site in plan.sites)
    alike = _alike(plan.sites, several)
    for heading in ("op", "representations in -> out", "branch"):
        table.add_column(heading)
    total = _own(model) or 1
    for names, sites in alike:
        first, count = sites[0], len(sites)
        share = 100 * sum(_own_parameters(model, site) for site in sites) / total
        kind = f"{count} x {first.kind}" if count > 1 else first.kind
        table.add_row(
            f"{names}\n{kind}, {share:.1f} %{' together' if several[first.name] > 1 and not first.parameters else ''}",
            f"{arrow(first).replace('+', ' + ')}\n{_evidence(sites)}",
            f"{f'{count} x ' if count > 1 else ''}{_adds(first)}\nfold: {_fold(first)}",
        )
    return table


def _alike(sites: Sequence[Site], several: Mapping[str, int]) -> list[tuple[str, list[Site]]]:
    """Put sites together that differ by the first number in their name alone: ``layers.0-2.linear``."""
    names = {site.key: _name(site, several[site.name] > 1) for site in sites}
    groups: dict[tuple[str, ...], list[Site]] = {}
    for site in sites:
        shown = (site.kind, arrow(site), _adds(site), site.source, str(site.verified), _fold(site))
        groups.setdefault((re.sub(r"\d+", "#", names[site.key], count=1), *shown), []).append(site)
    return [(_together([names[site.key] for site in members]), members) for members in groups.values()]


def _together(names: Sequence[str]) -> str:
    """Write names that differ by their first number as one: consecutive numbers as a range, others one by one."""
    if len(names) == 1:
        return names[0]
    words = ranged(re.findall(r"\d+", name)[0] for name in names)
    return re.sub(r"\d+", words, names[0], count=1)


def _name(site: Site, one_of_several: bool) -> str:
    name = site.name or "(the model)"
    return f"{name}: {site.slot}" if site.path_in or site.node or one_of_several else name


def _adds(site: Site) -> str:
    return f"{site.extra_parameters:,}" + (f" (rank {site.rank})" if site.rank else "")


def _own_parameters(model: nn.Module, site: Site) -> int:
    module = model.get_submodule(site.name)
    if site.parameters:
        return sum(module.get_parameter(name).numel() for name in site.parameters)
    return _own(module)


def _own(module: nn.Module) -> int:
    """Count a module's parameters without those of branches."""
    return sum(value.numel() for name, value in module.named_parameters() if CHILD not in name.split("."))


def _evidence(sites: Sequence[Site]) -> str:
    residuals = [site.residual for site in sites if site.verified and site.residual is not None]
    return f"{sites[0].source} to {max(residuals):.0e}" if residuals else f"{sites[0].source} only"


def _fold(site: Site) -> str:
    """Say whether a site can be folded, what its weights cannot take up, and what has to stay as it was."""
    told = [site.fold_note.removeprefix("not foldable: ")] if site.fold_note else []
    if site.fold is None:
        return told[0] if told else "no"
    if site.fold_while:
        told.append(f"{EXACT_WHILE} {site.fold_while}")
    return "; ".join(told) or ("exact" if site.verified else "as annotated")


def audit_table(audit: Iterable[AuditEntry], verbose: bool = False) -> Table:
    """Return what becomes of every parameter, one row per class and reason; reasons may differ by their numbers.

    Args:
        verbose: no reasons are put together, and no names are left out.
    """
    entries = list(audit)
    total = sum(entry.size for entry in entries) or 1
    table = Table(title=f"all {len(entries)} parameter tensors", title_justify="left")
    table.add_column("class")
    table.add_column("tensors", justify="right")
    table.add_column("share", justify="right")
    table.add_column("why, and which")
    for coverage in get_args(Coverage):
        of_class = [entry for entry in entries if entry.coverage == coverage]
        reasons = ["they belong to the ops above" if coverage == "site" else entry.reason for entry in of_class]
        for number, (reason, positions) in enumerate(_by_reason(reasons, verbose)):
            members = [of_class[position] for position in positions]
            share = 100 * sum(entry.size for entry in members) / total
            names = "" if coverage == "site" else f":\n{_some([entry.parameter for entry in members], verbose)}"
            table.add_row("" if number else coverage, str(len(members)), f"{share:.1f} %", reason + names)
    return table


def _by_reason(reasons: Sequence[str], verbose: bool) -> list[tuple[str, list[int]]]:
    """Return each reason, or kind of reasons, with the positions where it is given."""
    if not verbose:
        return alike(reasons)
    return [(each, [i for i, reason in enumerate(reasons) if reason == each]) for each in dict.fromkeys(reasons)]


def skipped_table(plan: Plan, verbose: bool = False) -> Table:
    """Return what gets no branch, one row per reason."""
    names = [entry.name or "(the model)" for entry in plan.skipped]
    table = Table(title="left alone", title_justify="left")
    for heading in ("reason", "modules"):
        table.add_column(heading)
    for reason, positions in _by_reason([entry.reason for entry in plan.skipped], verbose):
        table.add_row(reason, _some([names[position] for position in positions], verbose))
    return table


def _some(names: Sequence[str], verbose: bool = False) -> str:
    """Return names, those that differ by their first number as one, and how many are left out."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(re.sub(r"\d+", "#", name, count=1), []).append(name)
    groups = list(kinds.values())
    shown = groups if verbose else groups[:MOST_NAMES]
    left = len(names) - sum(map(len, shown))
    return ", ".join(map(_together, shown)) + (f" and {left} more, see inspect --verbose" if left else "")


def show_plan(plan: Plan, model: nn.Module, own_parameters: int, verbose: bool = False) -> None:
    """Print sites, what is left alone and why, and the totals."""
    show(plan_table(plan, model))
    show_left_alone(plan, verbose)
    if plan.audit:
        say(_without_site(plan.audit))
    extra = sum(site.extra_parameters for site in plan.sites)
    share = f", {100 * extra / own_parameters:.0f} % of the model's {own_parameters:,}" if own_parameters else ""
    say(f"branches: {plan.forms}")
    say(f"training adds {extra:,} parameters{share}; stripping removes them all")


def _without_site(audit: Sequence[AuditEntry]) -> str:
    """Say how many of the weights that may break the symmetry get no branch."""
    weights, left, unknown = acting(audit)
    if not weights or 0 < unknown == sum(entry.size for entry in audit if entry.coverage != "site"):
        return "which of the other weights act on features that the group changes was not measured"
    told = f"{100 * left / weights:.1f} % of the {weights:,} weights that act on features that the group changes"
    more = f"; of {unknown:,} more it was not measured" if unknown else ""
    return f"equivariant weights without a site: {told}{more}"


def show_matrices(weights: Sequence[WeightBlocks], verbose: bool) -> None:
    """Print how many matrices weights hold for `--optimizer soap` and `muon`; verbosely which, and why others none."""
    words = f"for --optimizer soap and muon: {blocks_in_words(weights)}"
    if not verbose:
        say(f"{words} (--verbose lists them)")
        return
    table = Table(title=words, title_justify="left")
    table.add_column("matrices")
    table.add_column("numbers", justify="right")
    table.add_column("why, and of which weights")
    alike: dict[tuple[str, str], list[WeightBlocks]] = {}
    for each in weights:
        shapes = Counter(f"{rows} x {columns}" for rows, columns in (block.shape for block in each.blocks))
        words = ", ".join(f"{count} of {shape}" if count > 1 else shape for shape, count in shapes.items())
        alike.setdefault((words or "none", each.why), []).append(each)
    for (words, why), members in sorted(alike.items(), key=lambda item: item[0][0] == "none"):
        numbers = sum(each.parameter.numel() for each in members)
        table.add_row(words, f"{numbers:,}", f"{why}:\n{_some([each.name for each in members], verbose)}")
    show(table)


def show_left_alone(plan: Plan, verbose: bool = False) -> None:
    """Print what becomes of every parameter, and the notes."""
    if plan.audit:
        show(audit_table(plan.audit, verbose))
    elif plan.skipped:
        show(skipped_table(plan, verbose))
    for note, _ in _by_reason(plan.notes, verbose):
        say(f"note: {note}")


@contextmanager
def showing_refusals(json_output: bool, verbose: bool = False) -> Iterator[None]:
    """Print the audit of a model in which nothing can be relaxed before the error goes on its way."""
    try:
        yield
    except (NothingToRelaxError, NotASymmetryError) as refusal:
        if json_output:
            print_json({"refused": str(refusal), "plan": refusal.plan.to_data()})
        else:
            show_left_alone(refusal.plan, verbose)
        raise
