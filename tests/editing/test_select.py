"""Patterns choose among sites, and one that matches nothing is an error."""

from __future__ import annotations

import pytest

from surgeon.algebra.representations.build import representation_from
from surgeon.editing.select import select
from surgeon.errors import PlanError
from surgeon.plan import Plan, Site, Skipped

NAMES = ("embedding", "layers.0.message", "layers.0.update", "layers.1.message", "layers.1.update", "readout")


def plan() -> Plan:
    trivial = representation_from("O3", {"trivial": 1})
    sites = tuple(Site(name, "x", "linear", "e3nn", trivial, trivial, (1, 1)) for name in NAMES)
    return Plan("O3", sites, (Skipped("head", "frozen"),), ("a note",))


def names(chosen: Plan) -> list[str]:
    return [site.name for site in chosen.sites]


@pytest.mark.parametrize(
    ("include", "exclude", "kept"),
    [
        ((), (), list(NAMES)),
        (("layers.*.message",), (), ["layers.0.message", "layers.1.message"]),
        (("layers.*",), ("*.update",), ["layers.0.message", "layers.1.message"]),
        ((), ("layers.*",), ["embedding", "readout"]),
        (("readout.x", "embedding"), (), ["embedding", "readout"]),
        (("layers.[1].message",), (), ["layers.1.message"]),
    ],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], kept: list[str]) -> None:
    chosen = select(plan(), include, exclude)
    assert names(chosen) == kept
    assert chosen.notes == ("a note",)
    assert {entry.name for entry in chosen.skipped} == {"head", *set(NAMES) - set(kept)}


def test_the_reason_names_the_pattern() -> None:
    chosen = select(plan(), ("layers.*",), ("*.update",))
    reasons = {entry.name: entry.reason for entry in chosen.skipped}
    assert reasons["layers.0.update"] == "excluded by the pattern '*.update'"
    assert reasons["readout"] == "not among the included patterns"


@pytest.mark.parametrize(
    ("include", "exclude", "words"),
    [
        (("layers.*.mesage",), (), "--include 'layers.[*].mesage'.*none.*'layers.0.message'"),
        ((), ("redout",), "--exclude 'redout'.*'readout'"),
        (("layers.*", "Embedding"), (), "--include 'Embedding'.*'embedding'"),
        (("qqq",), (), "'embedding', 'layers.0.message', 'layers.0.update'"),
        ((), ("*",), "exclude all of them"),
        (("readout",), ("readout",), "exclude all of them"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_an_error(include: tuple[str], exclude: tuple[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        select(plan(), include, exclude)
