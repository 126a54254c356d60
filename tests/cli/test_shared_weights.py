"""Networks whose layers share weights go the whole way: relax, finetune, strip, export, verify."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from surgeon.algebra.groups.parse import parse_group
from surgeon.algebra.intertwiners import average
from surgeon.algebra.representations.build import irreps
from tests import nets
from tests.commands import QUICK, Surgeon

SHARING = '''

class Sharing(nn.Module):
    """Mixes the features by two layers, which share what ``how`` says, before the last one."""

    def __init__(self, how):
        super().__init__()
        self.first, self.last = o3.Linear(RHO, RHO), o3.Linear(RHO, "1x1o")
        self.second = self.first if how == "module" else o3.Linear(RHO, RHO)
        if how == "parameter":
            self.second.weight = self.first.weight
        if how == "borrowed":
            self.second = Borrowing(self.first)

    def forward(self, scalars, vectors):
        features = torch.cat([scalars, vectors.flatten(1)], 1)
        return self.last(self.second(torch.tanh(self.first(features).square().sum(1, keepdim=True)) * features))


class Borrowing(nn.Module):
    """Calls another layer, under a name of its own."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer

    def forward(self, x):
        return self.inner(x) + x


class SharingTask(TinyTask):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def model(self):
        return Sharing(self.how)


RHO = "2x0e+2x1o"


def make_task(how="module"):
    return SharingTask(how)
'''
LABELS = {"first": ("2x0e+2x1o", "2x0e+2x1o"), "last": ("1x1o", "2x0e+2x1o")}
"""Of the outputs and the inputs of two layers."""

FAST = ("--epochs", "3", "--lr", "1e-2")
FOLDED = {
    "module": {"first.weight", "second.weight", "last.weight"},
    "parameter": {"last.weight"},
    "borrowed": {"first.weight", "second.inner.weight", "last.weight"},
}
ENDS = {site: [irreps(parse_group("O3"), labels) for labels in ends] for site, ends in LABELS.items()}


def linear_map(site: str, weight: Tensor) -> Tensor:
    """Return the matrix of a layer with these weights."""
    rho_out, rho_in = LABELS[site]
    op = nets.o3.Linear(rho_in, rho_out)
    op.load_state_dict({"weight": weight}, strict=False)
    return nets.linear_map(op, None, op.irreps_in.dim, torch.float32)


@pytest.mark.slow
@pytest.mark.e3nn
@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("how", ["module", "parameter", "borrowed"])
def test_shared_weights_go_the_whole_way(surgeon: Surgeon, work: Path, how: str, mode: str) -> None:
    Path("sharing.py").write_text((work / "task.py").read_text() + SHARING)
    options = ("--task", "sharing.py", "--task-args", json.dumps({"how": how}))
    module = runpy.run_path("sharing.py")
    torch.save(module["Sharing"](how).state_dict(), "shared.pt")
    # With a large W the untrained start would be the best epoch, from which nothing folds.
    surgeon("relax", "shared.pt", *options, "--dense", "--strip-mode", mode, "--init-scale", "0.05")
    surgeon("finetune", "shared-relaxed", *FAST)
    surgeon("strip", "shared-run", *QUICK, "-o", "clean")
    before, trained = torch.load("shared.pt"), load_file("shared-run/model.safetensors")
    after, branches = load_file("clean/model.safetensors"), load_file("shared-run/relaxation.safetensors")
    assert before.keys() == trained.keys() == after.keys()
    assert not torch.equal(before["last.weight"], trained["last.weight"])
    if how != "borrowed":
        assert torch.equal(after["first.weight"], after["second.weight"])
    moved = {key for key, value in trained.items() if not torch.equal(value, after[key])}
    assert moved == (FOLDED[how] if mode == "fold" else set())
    parallel = json.loads(Path("clean/certificate.json").read_text())["details"]["theta"][1]
    for key in moved & {"first.weight", "last.weight"}:  # the other names are theirs
        site = key.removesuffix(".weight")
        change = linear_map(site, after[key]) - linear_map(site, trained[key])
        wanted = parallel * average(branches[f"{site}._relaxation.features.weight"], *ENDS[site])
        assert torch.allclose(change, wanted, atol=1e-5 * float(wanted.norm()))
        assert wanted.norm() > 0.01
    if mode == "fold":
        surgeon("export", "shared-run", *QUICK, "--drop", "--metrics", "none", "-o", "dropped", "--pt2")
        dropped = load_file("dropped/model.safetensors")
        assert all(torch.equal(value, dropped[key]) for key, value in trained.items())
    surgeon("verify", "clean", "--against", "shared.pt", *options)
