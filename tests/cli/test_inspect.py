"""``surgeon inspect``: audit, plan files, the picture, and the search for breaks."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch

from tests.commands import Surgeon

TASK = ("--task", "task.py")


def test_every_parameter_is_accounted_for(surgeon: Surgeon) -> None:
    plan = json.loads(surgeon("inspect", "net.pt", *TASK, "--json").out)["plan"]
    assert {site["source"] for site in plan["sites"]} == {"both"}
    assert len({entry["parameter"] for entry in plan["audit"]}) == len(plan["audit"]) == 2
    assert {entry["coverage"] for entry in plan["audit"]} >= {"site"}
    told = surgeon("inspect", "net.pt", *TASK).out
    assert f"all {len(plan['audit'])} parameter tensors" in told
    assert "they belong to the ops above" in told
    assert "equivariant weights without a site: 0.0 % of the" in told


def test_a_plan_is_written_edited_and_applied(surgeon: Surgeon) -> None:
    surgeon("inspect", "net.pt", *TASK, "--plan", "plan.json")
    plan = json.loads((surgeon.path / "plan.json").read_text())
    assert len(plan["sites"]) == 2
    plan["sites"] = plan["sites"][:1]
    (surgeon.path / "plan.json").write_text(json.dumps(plan))
    told = surgeon("relax", "net.pt", *TASK, "--plan", "plan.json").out
    assert "1 relaxable ops under O3" in told
    written = json.loads((surgeon.path / "net-relaxed" / "surgeon_config.json").read_text())
    assert [site["name"] for site in written["plan"]["sites"]] == [plan["sites"][0]["name"]]
    assert "exists already" in surgeon("inspect", "net.pt", *TASK, "--plan", "plan.json", code=2).err
    surgeon("inspect", "net.pt", *TASK, "--plan", "plan.json", "--force")


def test_bad_plans_are_one_sentence(surgeon: Surgeon) -> None:
    relax = ("relax", "net.pt", *TASK, "--plan", "plan.json")
    assert "cannot be read" in surgeon(*relax, code=2).err
    (surgeon.path / "plan.json").write_text('{"group": "O3",\n "sites": [}')
    assert "line 2, column 12" in surgeon(*relax, code=2).err
    (surgeon.path / "plan.json").write_text('{"group": "O3"}')
    assert "bad field" in surgeon(*relax, code=2).err
    surgeon("inspect", "net.pt", *TASK, "--plan", "plan.json", "--force")
    assert "leave the group out" in surgeon(*relax, "--group", "SO3", code=2).err
    plan = json.loads((surgeon.path / "plan.json").read_text())
    plan["sites"][0]["shape"] = [1, 1]
    (surgeon.path / "plan.json").write_text(json.dumps(plan))
    assert "correct the plan" in surgeon(*relax, code=2).err
    assert not (surgeon.path / "net-relaxed").exists()


def test_the_picture_shows_the_sites(surgeon: Surgeon) -> None:
    surgeon("inspect", "net.pt", *TASK, "--picture", "net.svg")
    root = ElementTree.parse(surgeon.path / "net.svg").getroot()
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"first", "second", "inputs", "outputs"} <= set(texts)
    assert any("→" in (text or "") for text in texts)
    assert "2 relaxable ops under O3" in texts


def test_breaks_are_looked_for(surgeon: Surgeon) -> None:
    told = surgeon("inspect", "net.pt", *TASK, "--find-breaks").out
    assert "no break: the output transforms as it should" in told
    trouble = ("--task-args", json.dumps({"trouble": "not symmetric"}))
    told = surgeon("inspect", "net.pt", *TASK, *trouble, "--find-breaks", code=1).out
    assert "the output does not transform as it should" in told
    picture = ("--picture", "breaks.svg")
    data = json.loads(surgeon("inspect", "net.pt", *TASK, *trouble, "--find-breaks", "--json", *picture, code=1).out)
    assert data["broken"]
    assert "does not transform" in (surgeon.path / "breaks.svg").read_text()


def test_an_action_may_come_from_elsewhere(surgeon: Surgeon, monkeypatch: pytest.MonkeyPatch) -> None:
    (surgeon.path / "turning.py").write_text(
        "from task import make_task\n"
        "task = make_task()\n"
        "class right:\n"
        "    act = staticmethod(task.act)\n"
        "    act_output = staticmethod(task.act_output)\n"
        "def wrong(g, batch):\n"
        "    return task.act(2 * g, batch)\n"
    )
    monkeypatch.syspath_prepend(str(surgeon.path))
    for name in ("task", "turning"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    told = surgeon("inspect", "net.pt", *TASK, "--action", "turning:right").out
    assert "both to" in told
    assert "to be an action of O3" in surgeon("inspect", "net.pt", *TASK, "--action", "turning:wrong", code=2).err
    assert "turning:missing" in surgeon("inspect", "net.pt", *TASK, "--action", "turning:missing", code=2).err
    for name in ("task", "turning"):
        sys.modules.pop(name, None)


INVARIANTS = """
import torch
from task import TinyTask


class Norms(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)

    def forward(self, scalars, vectors):
        return self.layer(vectors.norm(dim=-1))


class Task(TinyTask):
    def model(self):
        return Norms()

    def act_output(self, g, outputs):
        return outputs


def make_task():
    return Task()
"""


@pytest.mark.parametrize("command", ["inspect", "relax"])
def test_a_refusal_shows_the_audit_first(surgeon: Surgeon, command: str) -> None:
    (surgeon.path / "norms.py").write_text(INVARIANTS)
    torch.save(torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 3)}).state_dict(), surgeon.path / "norms.pt")
    refused = surgeon(command, "norms.pt", "--task", "norms.py", "--group", "O3", code=2)
    assert "all 2 parameter tensors" in refused.out
    assert "so by design" in refused.err
    data = surgeon(command, "norms.pt", "--task", "norms.py", "--group", "O3", "--json", code=2).data
    assert "so by design" in data["refused"]
    assert [entry["coverage"] for entry in data["plan"]["audit"]] == ["invariant"] * 2
