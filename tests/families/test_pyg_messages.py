"""torch_geometric's ``MessagePassing``: linear maps inside ``message``, networks of invariants, and ONNX."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import PlanError
from surgeon.finding.find import find
from surgeon.opening.task_calls import task_symmetry
from surgeon.support.trees import to_dtype
from surgeon.testing.soundness import Model, check_plan
from tests.commands import Surgeon

models = pytest.importorskip("torch_geometric.nn.models", reason="torch_geometric is not installed: make test-pyg")

from tests.families import pyg_messages  # noqa: E402 (it needs torch_geometric)

TASK = pyg_messages.task


def double_batch() -> Any:
    return to_dtype(next(TASK.batches("validation", 0)), torch.float64)


def test_a_linear_map_on_every_edge_is_found_and_sound() -> None:
    """The first round of messages is given vectors that are 0."""
    net = pyg_messages.Net().double().eval()
    model = Model(net, (double_batch(),), task_symmetry(TASK, parse_group("O3")))
    plan = find(net, "O3", *model.inputs, act=TASK.act, act_output=TASK.act_output)
    assert [(site.name, bool(site.fold)) for site in plan.sites] == [("layers.1.mix", True), ("readout", True)]
    reasons = {entry.name: entry.reason for entry in plan.skipped}
    assert "it leaves every output as it is" in reasons["layers.0.mix"]
    check_plan(model, plan)


class Distances(nn.Module):
    """Edges between different atoms of one graph, and their lengths."""

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        edges = ((batch[:, None] == batch) & ~torch.eye(len(pos), dtype=torch.bool)).nonzero().T
        return edges, (pos[edges[0]] - pos[edges[1]]).norm(dim=-1)


def test_in_a_network_of_invariants_there_is_nothing_to_relax() -> None:
    net = models.SchNet(8, 8, 2, 8, interaction_graph=Distances()).double()
    batch = double_batch()
    with pytest.raises(PlanError, match="nothing to relax .11 x invariant to invariant"):
        find(
            net,
            "O3",
            batch,
            act=TASK.act,
            act_output=lambda g, y: y,
            forward=lambda net, x: net(torch.ones(len(x.pos), dtype=torch.long), x.pos, x.batch),
        )


@pytest.mark.slow
def test_from_a_state_dict_to_onnx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(pyg_messages.__file__, tmp_path / "task.py")
    torch.save(pyg_messages.Net().state_dict(), "net.pt")
    surgeon = Surgeon(tmp_path, capsys)
    surgeon("relax", "net.pt", "--group", "O3", "--task", "task.py", "--strip-mode", "fold", "-o", "relaxed")
    surgeon("finetune", "relaxed", "--epochs", "1", "-o", "run")
    report = surgeon("export", "run", "--onnx", "-o", "clean", "--json").data["certificate"]
    assert report["grade"] == "same function"
    assert len(report["details"]["onnx"]["sizes"]) >= 3
    assert (tmp_path / "clean" / "model.onnx").is_file()
