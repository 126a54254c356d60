"""Sites and plans as data: JSON round trips, keys, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from surgeon.algebra.groups.custom import group_from_generators
from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, regular, repeated, trivial
from surgeon.errors import PlanError
from surgeon.plan import PLAN_FORMAT_VERSION, AuditEntry, Certificate, Convolution, Plan, Site, Skipped
from surgeon.proof.verdict import Finding, Verification
from surgeon.support.modules import named_module

C4 = parse_group("C4")
THREE, TWO = trivial(C4, 3), trivial(C4, 2)
MOVES = Convolution((3, 5), (1, 2), (1, 0), (1, 2), "circular", ((0, -1), (1, 0)))
SITES = {
    "plain": Site("a.b", "x", "linear", "e3nn", THREE, TWO, (2, 3)),
    "everything": Site(
        "a",
        "features",
        "convolution",
        "",
        regular(C4, 2),
        trivial(C4, 1) + repeated(axes(C4, "v", {}), 2),
        (5, 8, 3, 5),
        path_in=("by degree", 1, "x.y", ""),
        path_out=(0,),
        axes_in=(-2, -3),
        axes_out=(-1, -2),
        convolution=MOVES,
        node="conv2d:0",
        parameters=("weight", "other"),
        fold={"paths": [1, 2]},
        fold_note="part of it",
        fold_while="a scalar is 1",
        source="both",
        verified=True,
        residual=3e-8,
        calls=2,
    ),
    "the model itself": Site("", "x", "linear", "", THREE, TWO, (2, 3), path_in=("0",)),
}


def plan() -> Plan:
    return Plan(
        "C4",
        tuple(SITES.values()),
        (Skipped("c", "a bias only", "not linear"), Skipped("d", "unknown")),
        ("a note",),
        (AuditEntry("a.b.weight", 6, "site", "belongs to a.b.x"), AuditEntry("c.bias", 2, "not linear", "added")),
    )


def without(data: Any, *path: Any) -> Any:
    """A copy of nested data that lacks one entry."""
    copied = json.loads(json.dumps(data))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    return copied


def changed(data: Any, value: Any, *path: Any) -> Any:
    """A copy of nested data with one entry replaced or added."""
    copied = json.loads(json.dumps(data))
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copied


def test_a_plan_survives_json() -> None:
    back = Plan.from_data(json.loads(plan().to_json()))
    assert back == plan()
    assert back.to_json() == plan().to_json()
    assert back.format_version == PLAN_FORMAT_VERSION


@pytest.mark.parametrize("name", SITES)
def test_every_field_of_a_site_survives_json_with_its_type(name: str) -> None:
    (back,) = Plan.from_data(json.loads(Plan("C4", (SITES[name],)).to_json())).sites
    for item in dataclasses.fields(Site):
        before, after = getattr(SITES[name], item.name), getattr(back, item.name)
        assert after == before, item.name
        assert type(after) is type(before), item.name
    assert (back, hash(back)) == (SITES[name], hash(SITES[name]))
    assert hash(dataclasses.replace(back, rho_in=trivial(C4, 9))) != hash(back)


def test_plans_that_differ_in_any_field_of_a_site_are_unequal() -> None:
    other = {"convolution": None, "residual": None, "calls": None, "node": None, "fold": None, "verified": False}
    other |= {
        "rho_in": trivial(C4, 7),
        "rho_out": trivial(C4, 7),
        "rank": 2,
        "blocks": ((0, 1),),
        "source": "annotation",
    }
    site = SITES["everything"]
    for item in dataclasses.fields(Site):
        value = getattr(site, item.name)
        new = other[item.name] if item.name in other else (value * 2 if isinstance(value, str | tuple) else {})
        if value == new:  # an empty string
            new = "x"
        data = json.loads(Plan("C4", (dataclasses.replace(site, **{item.name: new}),)).to_json())
        assert Plan.from_data(data) != Plan("C4", (site,)), item.name


@pytest.mark.parametrize(
    ("path", "slot"),
    [
        ((), "x"),
        ((1,), "x.1"),
        (("1",), "x.1"),
        (("a", 0), "x.a.0"),
        (("with.dot",), "x.with_dot"),
        (("",), "x._"),
    ],
)
def test_slots_and_keys(path: Any, slot: str) -> None:
    site = dataclasses.replace(SITES["plain"], path_in=path)
    assert site.slot == slot
    assert site.key == f"a.b.{slot}"
    assert dataclasses.replace(site, name="").key == slot
    assert dataclasses.replace(site, path_out=("y",)).slot == slot


def test_numbers_of_added_parameters() -> None:
    assert SITES["plain"].extra_parameters == 6
    assert SITES["everything"].extra_parameters == 5 * 8 * 3 * 5


def test_evidence_in_words() -> None:
    assert SITES["plain"].evidence == "annotation only, not verified"
    assert SITES["everything"].evidence == "annotated and measured, verified to 3e-08"
    measured = dataclasses.replace(SITES["everything"], source="measurement")
    assert measured.evidence == "measured, verified to 3e-08"


REQUIRED: list[tuple[Any, ...]] = [
    ("format_version",),
    ("group",),
    ("sites",),
    *(("sites", 0, name) for name in ("name", "argument", "kind", "adapter", "rho_in", "rho_out", "shape")),
    *(("sites", 1, "convolution", item.name) for item in dataclasses.fields(Convolution)),
    ("skipped", 0, "name"),
    ("skipped", 0, "reason"),
    *(("audit", 0, item.name) for item in dataclasses.fields(AuditEntry)),
]


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_a_missing_field_is_named(path: tuple[Any, ...]) -> None:
    data = plan().to_data()
    with pytest.raises(PlanError, match=f"as Plan.to_data writes it.*{path[-1]}"):
        Plan.from_data(without(data, *path))
    assert Plan.from_data(json.loads(json.dumps(data))) == plan()


@pytest.mark.parametrize("path", [("sites", 0, "surplus"), ("skipped", 0, "surplus"), ("audit", 0, "surplus")])
def test_an_unknown_field_is_named(path: tuple[Any, ...]) -> None:
    with pytest.raises(PlanError, match="bad field.*surplus"):
        Plan.from_data(changed(plan().to_data(), 1, *path))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format_version",), "two"),
        (("sites",), 3),
        (("sites", 0), "a.b.x"),
        (("sites", 0, "shape"), ["two", 3]),
        (("sites", 0, "shape"), 6),
        (("sites", 1, "path_in"), 1),
        (("sites", 1, "convolution"), [3, 3]),
        (("sites", 1, "convolution", "frame"), [1, 0]),
        (("sites", 1, "convolution", "kernel"), 3),
        (("skipped",), [3]),
    ],
)
def test_a_field_of_another_kind_is_refused(path: tuple[Any, ...], value: Any) -> None:
    with pytest.raises(PlanError, match="as Plan.to_data writes it"):
        Plan.from_data(changed(plan().to_data(), value, *path))


@pytest.mark.parametrize("data", [None, 3, "plan", [], [1, 2]])
def test_what_is_no_plan_is_refused(data: Any) -> None:
    with pytest.raises(PlanError, match="as Plan.to_data writes it"):
        Plan.from_data(data)


def test_a_newer_version_is_refused() -> None:
    data = changed(plan().to_data(), PLAN_FORMAT_VERSION + 1, "format_version")
    with pytest.raises(PlanError, match=f"got version {PLAN_FORMAT_VERSION + 1}: update"):
        Plan.from_data(data)


def test_a_module_by_name() -> None:
    model = nn.Sequential(nn.Linear(1, 1))
    assert named_module(model, "") is model
    assert named_module(model, "0") is model[0]
    with pytest.raises(PlanError, match="expected a submodule '1' in Sequential"):
        named_module(model, "1")


def test_what_was_proved_is_told_in_a_line() -> None:
    certificate = Certificate({"weights": True, "graph": False}, details={"much": ["x" * 99] * 99})
    assert repr(certificate) == "Certificate(None, 1 of 2 checks hold)"
    found = Verification((Finding("a", "holds"), Finding("b", "differs"), Finding("c", "holds")))
    assert repr(found) == "Verification(2 holds, 1 differs)"


def test_a_plan_and_a_site_are_told_on_one_screen() -> None:
    told = dataclasses.replace(plan(), notes=("a note", *(f"number {index} " + "x" * 300 for index in range(30))))
    assert repr(told) == "Plan(C4, 3 sites, 2 modules left alone)"
    assert (
        repr(SITES["plain"])
        == "Site(a.b.x: linear, 3 x trivial -> 2 x trivial, W 2 x 3, annotation only, not verified)"
    )
    lines = told.summary().splitlines()
    assert str(told) == told.summary()
    assert lines[0] == "3 sites under C4, 2 linear, 1 convolution, that add 612 parameters: 3 sites dense"
    assert lines[1] == "of all parameters: 75.0 % site, 25.0 % not linear"
    assert lines[2:5] == [f"- {site}" for site in told.sites]
    assert (lines[5], lines[-1], len(lines)) == ("- a note", "- and 23 more notes", 14)
    assert max(map(len, lines)) <= 202
    assert "nothing is verified" in dataclasses.replace(plan(), audit=()).summary()


def test_a_plan_holds_the_users_own_group() -> None:
    own = group_from_generators("turns", torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]), compact=True)
    rho = axes(own, "c v", {"c": 2})
    assert Plan("turns", (Site("", "x", "linear", "", rho, rho, (4, 4)),)).group_object is own
    assert Plan("SO(2)", ()).group_object is parse_group("SO2")
    assert Plan("SO(2)", ()).group == "SO2"
    with pytest.raises(PlanError, match="of C4, the plan's group, got axes c v .c=2. of turns at 'x'"):
        Plan("C4", (Site("", "x", "linear", "", rho, rho, (4, 4)),))
