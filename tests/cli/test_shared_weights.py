"""Networks whose layers share weights go the whole way: relax, finetune, strip, export, verify."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
FAST = ("--epochs", "2")


@pytest.mark.slow
@pytest.mark.e3nn
@pytest.mark.parametrize("mode", ["drop", "fold"])
@pytest.mark.parametrize("how", ["module", "parameter", "borrowed"])
def test_shared_weights_go_the_whole_way(surgeon: Surgeon, work: Path, how: str, mode: str) -> None:
    Path("sharing.py").write_text((work / "task.py").read_text() + SHARING)
    options = ("--task", "sharing.py", "--task-args", json.dumps({"how": how}))
    module = runpy.run_path("sharing.py")
    torch.save(module["Sharing"](how).state_dict(), "shared.pt")
    surgeon("relax", "shared.pt", *options, "--strip-mode", mode, "--init-scale", "0.5")
    surgeon("finetune", "shared-relaxed", *FAST)
    surgeon("strip", "shared-run", *QUICK, "-o", "clean")
    before, after = torch.load("shared.pt"), load_file("clean/model.safetensors")
    assert before.keys() == after.keys()
    assert mode == "fold" or not torch.equal(before["last.weight"], after["last.weight"])
    if how != "borrowed":
        assert torch.equal(after["first.weight"], after["second.weight"])
    surgeon("export", "shared-run", *QUICK, "-o", "exported", "--pt2")
    surgeon("verify", "clean", "--against", "shared.pt", *options)
