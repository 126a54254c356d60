"""Other weights make no more ops sites: a slice of ``make false-sites``, each model under another seed."""

from __future__ import annotations

import pytest

from tests.campaigns.false_sites import REFUSED, SEEDS, campaign, false_sites
from tests.families.awkward.case import Case, Mix, Trunk

IN_SECONDS = [case for case in REFUSED if case.name != "multivectors in a basis that is trained"]


@pytest.mark.parametrize("case", IN_SECONDS, ids=lambda case: case.name)
def test_a_refused_model_is_refused_with_other_weights(case: Case) -> None:
    assert not false_sites(case, 1 + REFUSED.index(case) % (SEEDS - 1))


def test_the_campaign_tells_of_what_it_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert campaign([Case("claims too little", "", lambda: Trunk(Mix()))], 2) == 2
    assert capsys.readouterr().out.splitlines()[1] == "claims too little, seed 1: middle.x"
