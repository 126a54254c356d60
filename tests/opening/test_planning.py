"""The group that a plan is for: the user's, or O3 and its rotations where only these are a symmetry."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from surgeon.errors import NotASymmetryError
from surgeon.opening.open import open_path
from surgeon.opening.options import OpenOptions
from surgeon.opening.planning import empty_plan, plan_for
from surgeon.opening.relaxing import RelaxSettings, relax_checkpoint
from surgeon.proof.inspection import inspect

TASK = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.chiral, self.broken = torch.nn.Linear(3, 3, bias=False), {chiral}, {broken}

    def forward(self, x):
        h = self.mix(x)
        y = h.square().sum((-2, -1)) + self.chiral * torch.linalg.det(h)
        return y + self.broken * x[:, 0, 0]

class Task:
    def model(self):
        return Net()

    def batches(self, split, seed):
        generator = torch.Generator().manual_seed(len(split))
        return [torch.randn(6, 3, 3, generator=generator) for _ in range(2)]

    def loss(self, outputs, batch):
        return outputs.square().mean()

    def act(self, g, batch):
        return g.to(batch) @ batch

    def act_output(self, g, outputs):
        return outputs

task = Task()
"""


def checkpoint(folder: Path, chiral: float = 0.0, broken: float = 0.0) -> tuple[Path, OpenOptions, list[str]]:
    """Write a network of vectors; return it, how it is opened, and what is said meanwhile."""
    (folder / "nets.py").write_text(TASK.format(chiral=chiral, broken=broken))
    torch.save({"mix.weight": torch.randn(3, 3)}, folder / "net.pt")
    said: list[str] = []
    return folder / "net.pt", OpenOptions(task=str(folder / "nets.py"), stage=said.append), said


def test_without_inversion_the_default_goes_on_under_rotations(tmp_path: Path) -> None:
    path, options, said = checkpoint(tmp_path, chiral=0.3)
    done = relax_checkpoint(path, tmp_path / "relaxed", options=options)
    (line,) = [sentence for sentence in said if "going on" in sentence]
    assert line.startswith("the model is not symmetric under inversion (error ")
    assert line.endswith("under rotations): going on under SO3")
    error, reference = (
        float(word) for word in (line.split("error ")[1].split()[0], line.split("against ")[1].split()[0])
    )
    assert reference < 1e-7 < 1e-3 < error
    assert done.plan.notes[0] == line
    assert [site.name for site in done.plan.sites] == ["mix"]
    assert done.plan.group == "SO3"
    assert open_path(tmp_path / "relaxed", options).require_relaxed()[0].plan.group == "SO3"


def test_inspection_and_training_without_branches_go_on_alike(tmp_path: Path) -> None:
    path, options, said = checkpoint(tmp_path, chiral=0.3)
    found = inspect(path, options=options)
    assert (found.plan.group, set(found.errors)) == ("SO3", {"identity"})
    assert empty_plan(open_path(path, options), None).group == "SO3"
    assert sum("going on under SO3" in sentence for sentence in said) == 2


def test_a_group_that_the_user_gave_is_refused_and_the_one_that_holds_is_named(tmp_path: Path) -> None:
    path, options, said = checkpoint(tmp_path, chiral=0.3)
    with pytest.raises(NotASymmetryError, match="under 'inversion'.*choose SO3") as caught:
        relax_checkpoint(path, None, RelaxSettings(group="O3"), options=options)
    assert caught.value.plan.audit, "what was found is shown"
    with pytest.raises(NotASymmetryError, match="choose SO3"):
        empty_plan(open_path(path, options), "O3")
    assert not any("going on" in sentence for sentence in said)


def test_a_model_with_inversion_stays_under_o3(tmp_path: Path) -> None:
    path, options, said = checkpoint(tmp_path)
    assert plan_for(open_path(path, options), None).group == "O3"
    assert not any("going on" in sentence for sentence in said)


def test_a_model_without_rotations_is_refused_under_the_default(tmp_path: Path) -> None:
    path, options, said = checkpoint(tmp_path, chiral=0.3, broken=30.0)
    with pytest.raises(NotASymmetryError, match="choose a smaller group"):
        relax_checkpoint(path, None, options=options)
    assert not any("going on" in sentence for sentence in said)
