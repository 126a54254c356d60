"""``make false-sites``: in awkward models that are refused, or in part, no weights may make more ops sites.

What is measured of a model must not depend on the weights that it happens to have, such as those of a dense layer that
is drawn as a rotation. Every refused model is built and inspected under many seeds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable

import torch

import surgeon
from surgeon.errors import SurgeonError
from surgeon.support.modes import default_dtype
from tests.families.awkward.broken import BROKEN
from tests.families.awkward.case import Case
from tests.families.awkward.test_catalogue import CASES

SEEDS = 20


def _is_refused(case: Case) -> bool:
    refused = {"not equivariant", "unexplained", "not linear", "bypassed"}
    return case.twin or bool(case.error or case.reason or refused & {*case.audit.values()})


REFUSED = [*filter(_is_refused, CASES), *(broken.case for broken in BROKEN)]


def false_sites(case: Case, seed: int) -> set[str]:
    """Return the sites that are found with the weights of a seed, and may not be."""
    torch.manual_seed(seed)
    with default_dtype(torch.float64):
        model, symmetry = case.build().eval(), {"act": case.act, "act_output": case.act_output}
        try:
            plan = surgeon.find(model, case.group, *case.inputs(), **symmetry, adapters={})
        except SurgeonError:
            return set()
    return {site.key for site in plan.sites} - case.sites


def campaign(cases: Iterable[Case], seeds: int) -> int:
    """Inspect every case under every seed, print what may not be found, and return how often that was."""
    found = 0
    for case in cases:
        for seed in range(seeds):
            wrong = false_sites(case, seed)
            found += bool(wrong)
            if wrong:
                print(f"{case.name}, seed {seed}: {', '.join(sorted(wrong))}")
    return found


def main() -> int:
    """Run the campaign, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many seeds, from 0 on")
    parser.add_argument("--only", default="", help="part of the names of the models")
    options = parser.parse_args()
    cases = [case for case in REFUSED if options.only in case.name]
    found = campaign(cases, options.seeds)
    print(f"{len(cases)} refused models, seeds 0 to {options.seeds - 1}: {found} with false sites")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
