"""The assertion on a whole network: what holds passes, and what does not is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from surgeon.algebra.equivariance import Symmetry
from surgeon.algebra.groups.parse import parse_group
from surgeon.errors import CheckFailedError, TaskError
from surgeon.finding.breaks import find_breaks
from surgeon.report.breaks import breaks_picture
from surgeon.testing import assert_equivariant_inside


class Inner(nn.Module):
    """Scales vectors by an invariant; ``bug`` spoils them."""

    def __init__(self, bug: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.bug = bug

    def forward(self, vectors: Tensor) -> Tensor:
        spoilt = vectors if self.bug is None else self.bug(vectors)
        return spoilt * torch.tanh(self.weight * spoilt.square().sum(-1, keepdim=True))


class Outer(nn.Module):
    def __init__(self, bug: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.inner = Inner(bug)

    def forward(self, vectors: Tensor, scalars: Tensor) -> dict[str, Tensor]:
        return {"vectors": self.inner(vectors) * scalars, "norms": vectors.norm(dim=-1)}


def act(g: Tensor, vectors: Tensor, scalars: Tensor) -> tuple[Tensor, Tensor]:
    return vectors @ g.T, scalars


def act_output(g: Tensor, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**outputs, "vectors": outputs["vectors"] @ g.T}


def check(model: nn.Module, **options: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 3, generator=generator), torch.randn(5, 1, generator=generator)
    assert_equivariant_inside(model, "O3", *inputs, **{"act": act, "act_output": act_output, **options})


def test_an_equivariant_network_passes_and_is_not_changed() -> None:
    model = Outer().train()
    check(model)
    assert model.training
    assert model.inner.weight.dtype == torch.float32


@pytest.mark.parametrize(("bug", "op"), [(torch.relu, "aten.relu"), (lambda v: v + 0.1, "aten.add")])
def test_the_op_that_breaks_it_is_named(bug: Any, op: str) -> None:
    with pytest.raises(CheckFailedError, match=rf"(?s)does not transform.*first fails at {op}.* in inner \(call 1\)"):
        check(Outer(bug))


def test_what_no_op_is_to_blame_for_is_said_and_a_wrong_action_refused() -> None:
    with pytest.raises(CheckFailedError, match="check act and act_output, which may not fit each other"):
        check(Outer(), act_output=lambda g, outputs: outputs)
    with pytest.raises(TaskError, match="an action of O3"):
        check(Outer(), act=lambda g, vectors, scalars: (vectors @ g, scalars))


def test_the_call_may_be_another() -> None:
    check(Outer(), forward=lambda model, vectors, scalars: model(vectors, scalars.square()))
    with pytest.raises(CheckFailedError, match="in the model's own forward"):
        check(Outer(), forward=lambda model, vectors, scalars: model(torch.relu(vectors), scalars))


def test_the_picture_says_which_tensors_transform() -> None:
    vectors, scalars = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 1, dtype=torch.float64)
    symmetry = Symmetry(parse_group("O3"), act, act_output)
    for bug, marks in ((torch.relu, {"does not transform"}), (None, {"transforms"})):
        found = find_breaks(Outer(bug).double().eval(), symmetry, vectors, scalars)
        texts = {
            each.text for each in ElementTree.fromstring(breaks_picture(found)).iter() if each.tag.endswith("text")
        }
        assert "the model's output" in texts
        assert texts & {"transforms", "does not transform"} >= marks
        assert ("inner: relu" in texts) == (bug is not None)
    assert "does not transform" not in texts
