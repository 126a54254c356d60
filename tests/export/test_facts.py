"""What an exported file says of its inputs and outputs is measured on the task's action."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from surgeon.algebra.groups.parse import parse_group
from surgeon.export.facts import facts
from surgeon.opening.tasks import load_task
from surgeon.support.trees import to_dtype
from tests.export.potential import PotentialTask, molecules
from tests.tiny import TinyTask

EXAMPLES = Path(__file__).parents[2] / "examples"


def first(task: Any) -> Any:
    return to_dtype(next(iter(task.batches("test", 0))), torch.float64)


def test_coordinates_velocities_and_charges_of_the_n_body_task() -> None:
    task: Any = load_task(EXAMPLES / "nbody" / "task.py", {"test_samples": 20}).task
    batch = first(task)
    names = dict(enumerate(batch))
    found = facts(task, parse_group("E3"), (batch, names), (batch["positions"], {0: "positions_out"}))
    assert found["group"] == "E3"
    assert found["irreps.positions"] == found["irreps.positions_out"] == "1x1o, moved by translations"
    assert found["irreps.velocities"] == "1x1o"
    assert found["irreps.charges"] == "1x0e"
    assert found["units.mse"] == "dimensionless"


def test_axes_are_named_and_indices_and_left_out_tensors_have_no_entry() -> None:
    task: Any = load_task(EXAMPLES / "pointcloud" / "task.py", {"count": 40}).task
    batch = first(task)
    found = facts(task, parse_group("SO3"), (batch, dict(enumerate(batch))), (torch.randn(3, 5).double(), {}))
    assert found["irreps.points"] == "1x1o on axes -2"
    assert set(found) == {"group", "irreps.points"} | {name for name in found if name.startswith("units.")}


class Wrong(TinyTask):
    """What it does to its outputs is no linear action."""

    def act_output(self, g: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
        return super().act_output(g, outputs).abs()


def test_what_is_no_representation_has_no_entry() -> None:
    batch, outputs = first(TinyTask()), torch.randn(8, 3, dtype=torch.float64)
    for task, expected in ((TinyTask(), {"irreps.output"}), (Wrong(), set())):
        found = facts(task, parse_group("O3"), (batch, {}), (outputs, {0: "output"}))
        assert set(found) - {"group"} == expected


def test_without_a_group_only_units_are_known() -> None:
    batch = to_dtype(molecules((2, 3), 0), torch.float64)
    found = facts(PotentialTask(), None, (batch, {}), ({}, {}))
    assert found == {"units.energy": "eV", "units.forces": "eV/Å"}
