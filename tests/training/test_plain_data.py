"""What stands in a file of ours is read as it is, or refused with the bad field named: nothing else happens."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.representations.build import axes, regular, trivial
from surgeon.algebra.schedule import Schedule
from surgeon.errors import CheckpointError, PlanError, SurgeonError, UsageError
from surgeon.files.content import json_compatible
from surgeon.files.relaxed import RelaxedConfig
from surgeon.opening.evaluation import Judging
from surgeon.plan import AuditEntry, Convolution, Plan, Site, SiteRecord, Skipped
from surgeon.training.outcomes import ArmRun, Failure, Point
from surgeon.training.runs import RunRecord, read_record
from surgeon.training.settings import FinetuneSettings
from surgeon.training.state import TrainingState
from surgeon.training.store import RunStore

HOSTILE: list[Any] = [None, True, 1.5, math.inf, math.nan, 10**400, "x", [None], {"x": 1}]
NOT_IN_FILES = [str(value) for value in HOSTILE if isinstance(value, float | int) and not abs(value) < 2**63]

C4 = parse_group("C4")
MOVES = Convolution((3, 3), (1, 1), (0, 0), (1, 1), "zeros", ((0, -1), (1, 0)))
PLAN = Plan(
    "C4",
    (
        Site("a", "x", "linear", "e3nn", axes(C4, "v c", {"c": 2}), trivial(C4, 2), (2, 4), ("k", 0), fold={"a": [1]}),
        Site("b", "y", "convolution", "", regular(C4, 1), trivial(C4, 1), (1, 4, 3, 3), convolution=MOVES),
    ),
    (Skipped("c", "a bias only", "not linear"),),
    ("a note",),
    (AuditEntry("a.weight", 8, "site", "belongs to a.x"),),
)
CONFIG = RelaxedConfig(
    PLAN,
    "fold",
    Schedule(sites=(("a*", 0.5),)),
    {"lambda": 0.01, "form": "gram", "scale": None},
    (0.5, 0.25),
    7,
    {
        "repo": None,
        "file": "b.pt",
        "entry": None,
        "revision": None,
        "sha256": "0",
        "keys_hash": "1",
        "container": "state_dict",
        "pickle": False,
    },
    {"factory": "package:build", "args": {"a": [1]}},
    {"path": "task.py", "sha256": None, "args": {}},
    {"a.x": (0.5, 0.25)},
    {"how": None, "why": "no"},
    {"sha256": "0", "batch": "1", "versions": {"torch": "2"}},
)
SETTINGS = FinetuneSettings(clip=1.0, ema=0.9, patience=3)
STATE = TrainingState(epoch=1, best_validation={"mse": 0.5}, best_theta={"a.x": (0.5, 0.25)}, history=[{"epoch": 1}])
JUDGING = Judging("mse", "min", {"mse": "meV"})
RECORD = RunRecord("drop", JUDGING, SETTINGS, 1, STATE, {"loss_sum": 1.0, "loss_weight": 1.0}, {"thetas": {}}, None)
POINT = Point("drop", 1, 0.01)
SITES = (SiteRecord("a", "x", 1.0, 0.0, 1.0),)
RUN = ArmRun("drop", 1, 0.01, {"mse": 0.5}, {"mse": 0.5}, 1, 3, 1.0, SITES, "same graph", 1e-6, ((0, 0.7), (3, 0.5)))

FREE = {"args", "versions", "thetas", "rho_in", "rho_out", "fold", "history", "branches", "penalty_weight"}
FREE |= {"units", "best_theta", "best_validation", "duals", "validation", "test"}
"""Objects whose names are the user's."""


class Schema(NamedTuple):
    """What stands in one kind of file, how it is read and written again, and how a bad one is refused."""

    data: Any
    read: Callable[[Any, Path], Any]
    write: Callable[[Any], Any]
    error: type[SurgeonError]


def record(data: Any, folder: Path) -> RunRecord:
    path = folder / "training_state" / "state.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))
    return read_record(folder)


def stored(data: Any, folder: Path) -> Any:
    """Read a folder of finished runs, in which a damaged one is passed over by name."""
    (folder / "comparison.json").write_text("{}")
    (folder / f"{POINT.key}.json").write_text(json.dumps(data))
    store = RunStore(folder, {})
    if store.damaged:
        raise CheckpointError(f"{store.damaged} bad field")
    return run_data(*store.items())


def run_data(item: tuple[Point, ArmRun | Failure]) -> dict[str, Any]:
    point, came = (dataclasses.asdict(each) for each in item)
    failed = isinstance(item[1], Failure)
    return {"point": point, "run": None if failed else came, "failure": came if failed else None}


SCHEMAS = {
    "plan": Schema(PLAN.to_data(), lambda data, _: Plan.from_data(data), Plan.to_data, PlanError),
    "config": Schema(CONFIG.to_data(), lambda d, _: RelaxedConfig.from_data(d), RelaxedConfig.to_data, CheckpointError),
    "settings": Schema(
        SETTINGS.to_data(), lambda data, _: FinetuneSettings.from_data(data), FinetuneSettings.to_data, UsageError
    ),
    "state": Schema(dataclasses.asdict(RECORD), record, dataclasses.asdict, CheckpointError),
    "run": Schema(run_data((POINT, RUN)), stored, lambda data: data, CheckpointError),
    "failed run": Schema(run_data((POINT, Failure("diverged"))), stored, lambda data: data, CheckpointError),
}


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield from places(data[key], (*path, key))


def changed(data: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    copied = copy.deepcopy(data)
    inner = copied
    for key in path[:-1]:
        inner = inner[key]
    change(inner, path[-1])
    return copied


def outcome(schema: Schema, data: Any, folder: Path) -> str | None:
    """The message of the refusal; None if what was read is what stands there."""
    try:
        value = schema.read(data, folder)
    except schema.error as error:
        return str(error)
    assert json_compatible(schema.write(value)) == data
    return None


@pytest.mark.parametrize("name", SCHEMAS)
def test_hostile_values_are_refused_or_kept_as_they_are(name: str, tmp_path: Path) -> None:
    schema = SCHEMAS[name]
    data = json_compatible(schema.data)
    assert outcome(schema, data, tmp_path) is None
    for value in HOSTILE:
        for path in places(data):
            bad = changed(data, path, lambda inner, key, value=value: inner.__setitem__(key, value)) if path else value
            said = outcome(schema, bad, tmp_path)
            assert said is not None or (path and str(value) not in NOT_IN_FILES), (path, value)
            assert "\n" not in (said or ""), (path, value)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_field_too_many_or_too_few_is_named(name: str, tmp_path: Path) -> None:
    schema = SCHEMAS[name]
    data = json_compatible(schema.data)
    for path in places(data):
        if not path or not isinstance(path[-1], str) or set(path[:-1]) & FREE:
            continue
        lacking = outcome(schema, changed(data, path, lambda inner, key: inner.pop(key)), tmp_path)
        more = outcome(schema, changed(data, path, lambda inner, key: inner.__setitem__("surplus", 1)), tmp_path)
        assert lacking is not None, path
        assert more is not None, path
        assert schema.read is stored or (path[-1] in lacking and "surplus" in more), (path, lacking, more)
