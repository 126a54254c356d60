"""escnn's layers for C_n, D_n, SO(2), O(2) and SO(3): found, sound, and from their file to a clean file."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import surgeon
from surgeon.copies import copied
from surgeon.errors import PlanError
from surgeon.groups import Group, parse_group
from surgeon.registry import BaseAdapter, Proposal, Refusal
from surgeon.representations import trivial
from surgeon.soundness import Model, check_plan
from surgeon_adapters.escnn_ops import adapter
from tests.commands import Surgeon
from tests.families import escnn_kinds
from tests.families.escnn_kinds import KINDS

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("escnn", reason="escnn is not installed: make test-escnn")

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

# escnn computes its bases in float32
ROUNDING = 1e-5


def model_of(kind: str) -> Model:
    torch.manual_seed(0)
    task = escnn_kinds.make_task(kind)
    module: Any = task.model()
    # a copy: escnn shares bases between the models of a process, and a cast would reach them all
    module = copied(module).double().eval()
    batch = next(task.batches("validation", 0)).double()[:4]
    return Model(module, (batch,), lambda net, x: net(x), lambda g, x: (task.act(g, x),), task.act_output)


def plan_of(model: Model, group: str, **options: Any) -> surgeon.Plan:
    return surgeon.find(model.module, group, *model.inputs, forward=model.forward, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_both_layers_are_found_and_a_branch_breaks_what_they_keep(kind: str) -> None:
    model, name = model_of(kind), KINDS[kind][0]
    group = parse_group(name)
    elements = group.elements if group.finite else group.sample(2, torch.Generator().manual_seed(0))
    assert model.error(elements) < ROUNDING
    plan = plan_of(model, name)
    assert [site.name for site in plan.sites] == ["first", "second"]
    assert all(site.verified and site.residual is not None and site.residual < ROUNDING for site in plan.sites)
    check_plan(model, plan)


@pytest.mark.parametrize("kind", ["so2-images", "o2-images", "so3-volumes"])
def test_kernels_of_continuous_groups_are_verified_under_quarter_turns(kind: str) -> None:
    model, name = model_of(kind), kind.split("-")[0].upper()
    plan = plan_of(model, name)
    assert [site.name for site in plan.sites] == ["first", "second"]
    assert all(site.verified for site in plan.sites)
    assert sum("discretisation" in note for note in plan.notes) == 2


@pytest.mark.parametrize(
    ("kind", "group"), [("c8-images", "C8"), ("d4-images", "D2"), ("o2-images", "C4"), ("o2-vectors", "D3")]
)
def test_a_network_may_be_relaxed_under_a_subgroup(kind: str, group: str) -> None:
    plan = plan_of(model_of(kind), group)
    assert [site.name for site in plan.sites] == ["first", "second"]


@pytest.mark.parametrize(
    ("kind", "group"), [("c4-images", "D4"), ("so2-vectors", "O2"), ("so3-volumes", "C4"), ("d5-vectors", "C4")]
)
def test_a_larger_or_another_group_is_refused(kind: str, group: str) -> None:
    with pytest.raises(PlanError, match="which does not act as"):
        plan_of(model_of(kind), group)


class AllScalars(BaseAdapter):
    name, groups = "all-scalars", ("D4", "OCTA", "O2")

    def propose(self, module: torch.nn.Module, group: Group) -> Proposal | Refusal | None:
        right = adapter.propose(module, group)
        if not isinstance(right, Proposal) or right.rho_in.is_trivial:
            return right if right is None else Refusal("left out", "excluded")
        labels = (trivial(group, each.dimension) for each in (right.rho_in, right.rho_out))
        return Proposal(
            "input", right.kind, *labels, path_in=("tensor",), path_out=("tensor",), axes_in=right.axes_in,
            axes_out=right.axes_out, convolution=right.convolution,
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["d4-images", "so3-volumes", "o2-vectors"])
def test_wrong_labels_are_refused(kind: str) -> None:
    with pytest.raises(PlanError):
        plan_of(model_of(kind), KINDS[kind][0], adapters={"all-scalars": AllScalars()})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["d4-images", "o2-images", "so3-volumes", "so3-vectors"])
def test_from_file_to_file(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    command, group = Surgeon(Surgeon.folder(tmp_path, monkeypatch), capsys), KINDS[kind][0]
    shutil.copy(escnn_kinds.__file__, "kinds.py")
    torch.manual_seed(0)
    task = escnn_kinds.make_task(kind)
    torch.save(task.model().state_dict(), "net.pt")
    given = ("--task", "kinds.py", "--task-args", json.dumps({"kind": kind}))
    plan = command("inspect", "net.pt", "--group", group, *given, "--json").data["plan"]
    assert [site["name"] for site in plan["sites"]] == ["first", "second"]
    command("relax", "net.pt", "--group", group, *given, "-o", "relaxed")
    command("finetune", "relaxed", "--epochs", "4", "--lr", "1e-2", "-o", "run")
    report = command("export", "run", "-o", "clean", "--onnx", "--json").data["certificate"]
    assert report["identical"]
    assert report["checks"]["as equivariant as the original"]
    assert report["metrics"]["stripped"]["loss"] != report["metrics"]["original"]["loss"]
    for dtypes in (report["equivariance"]["original"], report["equivariance"]["stripped"]):
        assert all(part["maximum"] < ROUNDING for part in dtypes["float64"].values())
    clean = escnn_kinds.make_task(kind).model()
    clean.load_state_dict(load_file("clean/model.safetensors"))
    batch = next(task.batches("test", 0))
    expected = clean.eval()(batch).detach()
    _require_equal(Path("clean/model.onnx"), batch, expected)
    _require_equal_plain_layer(clean, batch)
    command("verify", "clean", "--against", "net.pt", *given)


def _require_equal(path: Path, batch: Tensor, expected: Tensor) -> None:
    import onnxruntime

    (found,) = onnxruntime.InferenceSession(str(path)).run(["scores"], {"features": batch.numpy()})
    assert torch.allclose(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-5)


def _require_equal_plain_layer(net: Any, batch: Tensor) -> None:
    """escnn's own way to plain torch: ``export`` of a layer."""
    plain = net.first.export()
    assert type(plain).__module__.startswith("torch.nn")
    steerable = net.first(net.geometric(batch, net.type_in)).tensor
    assert torch.allclose(plain(batch), steerable, rtol=1e-5, atol=1e-6)
